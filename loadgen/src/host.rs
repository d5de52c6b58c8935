//! What the run takes of its own machine: CPU time of each thread, memory, and what the kernel dropped.
//!
//! Read from /proc by the coordinator, once a second and at the edges of the window; nothing here is on a
//! client's path. A figure that the kernel does not give is 0 or none, and never an error: a load generator
//! must run in containers that hide half of /proc.

use std::collections::HashSet;
use std::fs;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::{Pid, SysconfVar, sysconf};
use tokio::time::Instant;

/// The load-carrying threads and the sockets of this process, as they make themselves known.
#[derive(Debug, Default)]
pub struct Footprint {
    threads: Mutex<Vec<Pid>>,
    /// Inodes, by which /proc/net/udp tells our sockets from those of others.
    sockets: Mutex<HashSet<u64>>,
}

/// What had been used by one moment.
#[derive(Clone, Debug)]
pub struct Usage {
    at: Instant,
    process: Duration,
    threads: Vec<Duration>,
    /// Datagrams that found one of our sockets' receive buffers full.
    pub receive_drops: u64,
    /// Datagrams for which there was no send buffer, of everybody in this network namespace.
    pub send_drops: u64,
}

/// CPU time over a stretch of time, as shares of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CpuShare {
    /// CPUs' worth of time that the process used.
    pub cpus_busy: f64,
    /// Share of the time that the busiest of its load-carrying threads was on a CPU, 0 to 1.
    pub busiest_thread: f64,
}

impl Footprint {
    /// The calling thread carries load.
    pub fn this_thread(&self) {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(nix::unistd::gettid());
    }

    /// A socket with this inode is ours.
    pub fn socket(&self, inode: u64) {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner).insert(inode);
    }

    /// What has been used by now. Reading the drops walks all sockets of the network namespace: not for
    /// every second.
    pub fn usage(&self) -> Usage {
        let mut usage = self.cpu();
        usage.receive_drops = ["udp", "udp6"]
            .iter()
            .map(|table| fs::read_to_string(format!("/proc/self/net/{table}")).unwrap_or_default())
            .map(|table| drops(&table, &self.sockets.lock().unwrap_or_else(PoisonError::into_inner)))
            .sum();
        usage.send_drops = send_errors(
            &fs::read_to_string("/proc/self/net/snmp").unwrap_or_default(),
            &fs::read_to_string("/proc/self/net/snmp6").unwrap_or_default(),
        );
        usage
    }

    /// The CPU times alone.
    pub fn cpu(&self) -> Usage {
        let threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        Usage {
            at: Instant::now(),
            process: cpu_time("/proc/self/stat"),
            threads: threads.iter().map(|tid| cpu_time(&format!("/proc/self/task/{tid}/stat"))).collect(),
            receive_drops: 0,
            send_drops: 0,
        }
    }
}

impl Usage {
    /// The shares of CPU time since `before`.
    pub fn since(&self, before: &Self) -> CpuShare {
        let elapsed = (self.at - before.at).as_secs_f64().max(f64::MIN_POSITIVE);
        let share = |now: Duration, then: Duration| now.saturating_sub(then).as_secs_f64() / elapsed;
        let threads = self.threads.iter().zip(&before.threads).map(|(now, then)| share(*now, *then));
        CpuShare {
            cpus_busy: share(self.process, before.process),
            busiest_thread: threads.fold(0.0, f64::max),
        }
    }
}

/// CPUs that this process may run on, by number.
pub fn allowed_cpus() -> Vec<usize> {
    let Ok(set) = sched_getaffinity(Pid::from_raw(0)) else { return Vec::new() };
    (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).collect()
}

/// Keeps the calling thread, and those that it starts, on these CPUs.
///
/// # Errors
/// One of them is not there, or not allowed.
pub fn pin(cpus: &[usize]) -> nix::Result<()> {
    let mut set = CpuSet::new();
    cpus.iter().try_for_each(|&cpu| set.set(cpu))?;
    sched_setaffinity(Pid::from_raw(0), &set)
}

/// Resident memory of this process, in bytes.
pub fn resident_bytes() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * sysconf(SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096) as u64
}

/// User and system time of a process or thread, from its `stat` file: in steps of 10 ms, one percent of a
/// second.
fn cpu_time(path: &str) -> Duration {
    let ticks = fs::read_to_string(path).ok().and_then(|stat| cpu_ticks(&stat)).unwrap_or(0);
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    Duration::from_secs_f64(ticks as f64 / per_second as f64)
}

/// Fields 14 and 15 of a `stat` file, counted past the name, which may contain anything.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some(field(14)? + field(15)?)
}

/// The sum of the drops of our sockets in /proc/net/udp's table.
fn drops(table: &str, ours: &HashSet<u64>) -> u64 {
    let of_row = |row: &str| {
        let fields: Vec<&str> = row.split_whitespace().collect();
        let inode = fields.get(9)?.parse().ok()?;
        ours.contains(&inode).then(|| fields.last()?.parse::<u64>().ok()).flatten()
    };
    table.lines().skip(1).filter_map(of_row).sum()
}

/// UDP send buffer errors in both address families' counters.
fn send_errors(snmp: &str, snmp6: &str) -> u64 {
    let mut udp = snmp.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = (udp.next().unwrap_or_default(), udp.next().unwrap_or_default());
    let v4 = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "SndbufErrors");
    let v4 = v4.and_then(|(_, value)| value.parse::<u64>().ok()).unwrap_or(0);
    let v6 = snmp6.lines().find_map(|line| line.strip_prefix("Udp6SndbufErrors"));
    v4 + v6.and_then(|value| value.trim().parse::<u64>().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_any_name() {
        let stat = "12 (a) b ) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 1 0 5 6 7";
        assert_eq!(cpu_ticks(stat), Some(300));
        assert_eq!(cpu_ticks("12 (x"), None);
    }

    #[test]
    fn only_our_sockets_drops_count() {
        let row = |number: u32, inode: u32, drops: u32| {
            format!("{number}: 00000000:1151 00000000:0000 07 0:0 00:0 0 0 0 {inode} 2 ff {drops}\n")
        };
        let table = format!("  sl  local_address rem_address ...\n{}{}", row(1, 111, 40), row(2, 222, 7));
        assert_eq!(drops(&table, &HashSet::from([222])), 7);
        assert_eq!(drops(&table, &HashSet::from([111, 222])), 47);
        assert_eq!(drops("", &HashSet::from([111])), 0);
    }

    #[test]
    fn send_errors_of_both_families_add_up() {
        let snmp =
            "Udp: InDatagrams RcvbufErrors SndbufErrors\nUdp: 5 1 3\nUdpLite: InDatagrams\nUdpLite: 0\n";
        assert_eq!(send_errors(snmp, "Udp6InDatagrams 9\nUdp6SndbufErrors                \t4\n"), 7);
        assert_eq!(send_errors("", ""), 0);
    }

    #[test]
    fn a_busy_thread_shows() {
        let footprint = std::sync::Arc::new(Footprint::default());
        let before = footprint.usage();
        let busy = footprint.clone();
        // However little of a CPU it gets, it uses 200 ms of one; measured while it is still there.
        let measured = std::thread::spawn(move || {
            busy.this_thread();
            let own = format!("/proc/self/task/{}/stat", nix::unistd::gettid());
            while cpu_time(&own) < Duration::from_millis(200) {}
            busy.usage()
        });
        let after = measured.join().unwrap();
        let share = after.since(&Usage { threads: vec![Duration::ZERO], ..before.clone() });
        let seconds = (after.at - before.at).as_secs_f64();
        assert!((0.19..0.5).contains(&(share.busiest_thread * seconds)), "{share:?} of {seconds} s");
        assert!(share.cpus_busy * seconds > 0.15, "{share:?} of {seconds} s");
        assert!(resident_bytes() > 1 << 20 && !allowed_cpus().is_empty());
    }
}
