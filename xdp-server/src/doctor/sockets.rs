//! Limits of ordinary sockets: their buffers, and the memory of all UDP sockets together.
//!
//! They matter with AF_XDP, too: an ordinary socket stands beside each queue, and is the way when AF_XDP is
//! not.

use super::root::Root;
use super::row::{Remedy, Row, s};
use super::wanted::Wanted;
use crate::report::grouped;

/// Least limit that is advised for a buffer, in bytes: what `scripts/tune_server.sh` sets, twice the default
/// of `--socket-recv-buffer`.
const ADVISED_LIMIT: usize = 134_217_728;

/// Bytes of a page by which `net.ipv4.udp_mem` counts, on the processors that this runs on.
const PAGE: u64 = 4096;

/// The kernel's limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// `net.core.rmem_max`, in bytes.
    pub receive: Option<usize>,
    /// `net.core.wmem_max`, in bytes.
    pub send: Option<usize>,
    /// `net.ipv4.udp_mem`, in pages: all well below the first, nothing above the last.
    pub udp: Option<Vec<u64>>,
    /// Memory of the host, in bytes.
    pub memory: u64,
    /// This process may go beyond the limits of buffers.
    pub is_net_admin: bool,
}

impl Facts {
    /// Reads /proc.
    pub fn gather(root: &Root, is_net_admin: bool) -> Self {
        Self {
            receive: root.number("proc/sys/net/core/rmem_max"),
            send: root.number("proc/sys/net/core/wmem_max"),
            udp: root.numbers("proc/sys/net/ipv4/udp_mem"),
            memory: root.field::<u64>("proc/meminfo", "MemTotal").unwrap_or(0) << 10,
            is_net_admin,
        }
    }

    /// The checks.
    pub fn rows(&self, wanted: &Wanted<'_>) -> Vec<Row> {
        let settings = wanted.settings;
        vec![
            self.buffer("receive buffer", "net.core.rmem_max", self.receive, settings.socket_recv_buffer),
            self.buffer("send buffer", "net.core.wmem_max", self.send, settings.socket_send_buffer),
            self.udp_memory(wanted),
        ]
    }

    fn buffer(&self, check: &'static str, name: &str, limit: Option<usize>, asked: usize) -> Row {
        // Network namespaces do not show it, and have the host's.
        let Some(limit) = limit else { return Row::skip(check, format!("{name} is not shown here")) };
        let found = format!("{} asked for, {name} is {}", size(asked), size(limit));
        if limit >= asked {
            return Row::ok(check, found);
        }
        if self.is_net_admin {
            return Row::ok(check, format!("{found}, which CAP_NET_ADMIN passes"));
        }
        let command = format!("sudo sysctl -w {name}={}", asked.max(ADVISED_LIMIT));
        Row::warn(
            check,
            found,
            Remedy::command(command).or("sudo scripts/tune_server.sh apply --only sockets"),
        )
    }

    fn udp_memory(&self, wanted: &Wanted<'_>) -> Row {
        const CHECK: &str = "UDP memory";
        let Some([_, _, most]) = self.udp.as_deref() else {
            return Row::skip(CHECK, "net.ipv4.udp_mem is not shown here");
        };
        let workers = wanted.workers();
        // The kernel gives a socket the double of what is asked for, for its own bookkeeping.
        let each = 2 * wanted.settings.socket_recv_buffer as u64;
        let needed = (each * workers as u64).div_ceil(PAGE);
        let found = format!(
            "{} MiB at most (udp_mem), {} MiB in {workers} full receive buffer{}",
            grouped((most * PAGE) >> 20),
            grouped((needed * PAGE) >> 20),
            s(workers)
        );
        if *most >= needed {
            return Row::ok(CHECK, found);
        }
        if needed * PAGE > self.memory / 2 {
            let fitting = (most * PAGE / workers as u64 / 2) >> 10;
            let found = format!("{found}; the host has not the memory for more");
            return Row::warn(
                CHECK,
                found,
                Remedy::flags(format!("--socket-recv-buffer {}KiB", fitting.max(4))),
            );
        }
        // The steps of the kernel's own default: pressure begins at half, ends at a quarter.
        let command = format!("sudo sysctl -w net.ipv4.udp_mem=\"{} {} {needed}\"", needed / 4, needed / 2);
        Row::warn(CHECK, found, Remedy::command(command).or("sudo scripts/tune_server.sh apply --only udp"))
    }
}

/// A size in the largest unit that leaves it whole.
fn size(bytes: usize) -> String {
    match bytes {
        _ if bytes >= 1 << 20 && bytes.is_multiple_of(1 << 20) => format!("{} MiB", bytes >> 20),
        _ if bytes >= 1 << 10 => format!("{} KiB", bytes >> 10),
        _ => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::root::fixture;
    use super::super::row::Status::{Ok as Good, Skip, Warn};
    use super::super::tests::{host, settings, typed};
    use super::*;

    fn facts(is_net_admin: bool) -> Facts {
        let (_directory, root) = fixture(&[
            ("proc/sys/net/core/rmem_max", "212992\n"),
            ("proc/sys/net/core/wmem_max", "67108864\n"),
            ("proc/sys/net/ipv4/udp_mem", "8192\t16384\t32768\n"),
            ("proc/meminfo", "MemTotal:       16777216 kB\n"),
        ]);
        Facts::gather(&root, is_net_admin)
    }

    fn rows(facts: &Facts, flags: &str) -> [Row; 3] {
        let (settings, host) = (settings(flags), host());
        facts.rows(&Wanted::new(&settings, &host)).try_into().unwrap()
    }

    #[test]
    fn buffers_are_compared_with_what_is_asked_for() {
        let [receive, send, _] = rows(&facts(false), "");
        assert_eq!((receive.status, typed(&receive)), (Warn, "sudo sysctl -w net.core.rmem_max=134217728"));
        assert_eq!(receive.found, "64 MiB asked for, net.core.rmem_max is 208 KiB");
        assert_eq!(send.status, Good);
        let [receive, send, _] = rows(&facts(true), "--socket-send-buffer 1GiB");
        assert_eq!((receive.status, send.status), (Good, Good));
        let [receive, send, _] = rows(&facts(false), "--socket-send-buffer 1GiB --socket-recv-buffer 64K");
        assert_eq!(receive.status, Good);
        assert_eq!(typed(&send), "sudo sysctl -w net.core.wmem_max=1073741824");
    }

    #[test]
    fn udp_memory_holds_the_buffers_of_all_workers() {
        // 128 MiB at most. Two full buffers of 32 MiB each take that, doubled; of 64 MiB twice.
        let udp = |flags: &str| rows(&facts(true), flags)[2].clone();
        assert_eq!(udp("--queues 2 --socket-recv-buffer 32MiB").status, Good);
        let short = udp("--queues 2");
        assert_eq!(typed(&short), "sudo sysctl -w net.ipv4.udp_mem=\"16384 32768 65536\"");
        assert_eq!(short.found, "128 MiB at most (udp_mem), 256 MiB in 2 full receive buffers");
        let small = Facts { memory: 256 << 20, ..facts(true) };
        let [_, _, row] = rows(&small, "--queues 2");
        assert_eq!((row.status, typed(&row)), (Warn, "--socket-recv-buffer 32768KiB"));
        assert_eq!(rows(&small, "--queues 2 --socket-recv-buffer 32768KiB")[2].status, Good);
    }

    #[test]
    fn limits_that_are_not_shown_are_not_judged() {
        let (_directory, root) = fixture(&[]);
        assert!(rows(&Facts::gather(&root, false), "").iter().all(|row| row.status == Skip));
    }
}
