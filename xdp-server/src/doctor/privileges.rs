//! Privileges of this process: capabilities, and the limits on locked memory and open files.
//!
//! Only AF_XDP needs any. Read from /proc, where the kernel shows them for the process that reads.

use std::path::PathBuf;

use super::root::Root;
use super::row::{Remedy, Row, quoted};
use super::wanted::Wanted;
use crate::net::xdp::socket::{FRAME_SIZE, FRAMES_PER_QUEUE};
use crate::report::grouped;

/// Capabilities by the bit that the kernel gives them in linux/capability.h, and what each is for. AF_XDP
/// takes all but the last, which stands in for a limit on locked memory that is too low.
const CAPABILITIES: [(u32, &str, &str); 5] = [
    (12, "CAP_NET_ADMIN", "attaches the XDP program"),
    (13, "CAP_NET_RAW", "makes AF_XDP sockets"),
    (39, "CAP_BPF", "loads the XDP program"),
    (38, "CAP_PERFMON", "lets the verifier accept it"),
    (14, "CAP_IPC_LOCK", "locks packet memory beyond the limit"),
];
const CAP_NET_ADMIN: u32 = 12;
const CAP_IPC_LOCK: u32 = 14;
const CAP_SYS_ADMIN: u32 = 21;
/// What `CAP_SYS_ADMIN` comprises, for older kernels' sake.
const IN_SYS_ADMIN: [u32; 2] = [38, 39];

/// Files of a worker (its sockets, an eventfd, an AF_XDP socket with its maps) and of all else together, in
/// descriptors: more than have been seen, so that a limit that passes here is not met later.
const FILES_PER_WORKER: u64 = 8;
const OTHER_FILES: u64 = 64;

/// What this process may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Effective capabilities, by bit.
    pub effective: u64,
    /// Capabilities that a program may get from its file.
    pub bounding: u64,
    /// Programs get nothing from their files.
    pub no_new_privileges: bool,
    /// Capabilities count within a user namespace only, which is not enough for BPF.
    pub user_namespace: bool,
    /// Limits on locked memory in bytes, that in force and that up to which anybody may raise it; `None`:
    /// unlimited.
    pub locked: [Option<u64>; 2],
    /// Hard limit on open files, to which the server raises its own; `None`: unlimited.
    pub files: Option<u64>,
    /// This program.
    pub program: PathBuf,
}

impl Facts {
    /// Reads /proc.
    pub fn gather(root: &Root) -> Self {
        let mask = |name: &str| {
            let text: Option<String> = root.field("proc/self/status", name);
            text.and_then(|text| u64::from_str_radix(&text, 16).ok()).unwrap_or(0)
        };
        let limits = root.text("proc/self/limits").unwrap_or_default();
        // The host's own namespace maps all users, from 0 on, to themselves.
        let users = root.numbers("proc/self/uid_map");
        Self {
            effective: mask("CapEff"),
            bounding: mask("CapBnd"),
            no_new_privileges: root.field::<u32>("proc/self/status", "NoNewPrivs") == Some(1),
            user_namespace: users.is_some_and(|users| users != [0, 0, u64::from(u32::MAX)]),
            locked: limit(&limits, "Max locked memory"),
            files: limit(&limits, "Max open files")[1],
            program: std::env::current_exe().unwrap_or_else(|_| "xdp-server".into()),
        }
    }

    /// True if buffers may be larger than the limits of net.core.
    pub fn is_net_admin(&self) -> bool {
        self.has(CAP_NET_ADMIN) && !self.user_namespace
    }

    fn has(&self, bit: u32) -> bool {
        let has = |bit: u32| self.effective >> bit & 1 == 1;
        has(bit) || IN_SYS_ADMIN.contains(&bit) && has(CAP_SYS_ADMIN)
    }

    /// The checks.
    pub fn rows(&self, wanted: &Wanted<'_>) -> Vec<Row> {
        let mut rows = vec![self.privileges(wanted)];
        if wanted.uses_xdp() {
            rows.push(self.locked_memory(wanted));
        }
        rows.push(self.open_files(wanted));
        rows
    }

    fn privileges(&self, wanted: &Wanted<'_>) -> Row {
        const CHECK: &str = "privileges";
        if !wanted.uses_xdp() {
            return Row::ok(CHECK, "none needed without AF_XDP");
        }
        let lacking: Vec<_> = CAPABILITIES.iter().filter(|(bit, ..)| !self.has(*bit)).collect();
        if self.user_namespace {
            return wanted.xdp.broken(
                CHECK,
                "in a user namespace (a container without root on the host), where no BPF program can be loaded",
                Remedy::flags("--backend socket").or("run it outside, or in a privileged container"),
            );
        }
        if lacking.iter().all(|(bit, ..)| *bit == CAP_IPC_LOCK) {
            let has = CAPABILITIES.iter().filter(|(bit, ..)| self.has(*bit)).map(|(_, name, _)| *name);
            return Row::ok(CHECK, has.collect::<Vec<_>>().join(", "));
        }
        let list: Vec<_> = lacking.iter().map(|(_, name, purpose)| format!("{name} ({purpose})")).collect();
        wanted.xdp.broken(CHECK, format!("lacks {}", list.join(", ")), self.gain_capabilities())
    }

    fn locked_memory(&self, wanted: &Wanted<'_>) -> Row {
        const CHECK: &str = "locked memory";
        if self.has(CAP_IPC_LOCK) && !self.user_namespace {
            return Row::ok(CHECK, "no limit with CAP_IPC_LOCK");
        }
        let needed = wanted.workers() as u64 * u64::from(FRAMES_PER_QUEUE) * u64::from(FRAME_SIZE);
        let needs = format!("{} MiB for packet memory", needed >> 20);
        let remedy = match self.locked {
            [None, _] => return Row::ok(CHECK, format!("unlimited; {needs}")),
            [Some(limit), _] if limit >= needed => {
                return Row::ok(CHECK, format!("{} MiB; {needs}", limit >> 20));
            }
            [_, None] => Remedy::command("ulimit -l unlimited"),
            [_, Some(hard)] if hard >= needed => Remedy::command(format!("ulimit -l {}", needed >> 10)),
            _ => self.gain_capabilities(),
        };
        let limit = self.locked[0].unwrap_or(0) >> 10;
        let found = format!("limited to {limit} KiB, and AF_XDP needs {needs}");
        wanted.xdp.broken(CHECK, found, remedy)
    }

    /// How a program without them gets all capabilities.
    fn gain_capabilities(&self) -> Remedy {
        if self.no_new_privileges || CAPABILITIES.iter().any(|(bit, ..)| self.bounding >> bit & 1 == 0) {
            let names = CAPABILITIES.map(|(_, name, _)| format!("--cap-add {}", &name["CAP_".len()..]));
            let how = "programs cannot gain them in this process; in a container:";
            return Remedy::flags("--backend socket").or(format!("{how} {}", names.join(" ")));
        }
        let all = CAPABILITIES.map(|(_, name, _)| name.to_lowercase()).join(",");
        let program = quoted(&self.program.to_string_lossy());
        Remedy::command(format!("sudo setcap {all}=ep {program}"))
            .or("run it with sudo, or as a service with AmbientCapabilities= and LimitMEMLOCK=infinity")
    }

    fn open_files(&self, wanted: &Wanted<'_>) -> Row {
        const CHECK: &str = "open files";
        let needed = OTHER_FILES + FILES_PER_WORKER * wanted.workers() as u64;
        match self.files {
            None => Row::ok(CHECK, "unlimited"),
            Some(limit) if limit >= needed => {
                Row::ok(CHECK, format!("{} allowed, {needed} enough", grouped(limit)))
            }
            Some(limit) => Row::fail(
                CHECK,
                format!("{limit} allowed, {needed} needed by {} workers", wanted.workers()),
                Remedy::command(format!("sudo prlimit --pid $$ --nofile={needed}:{needed}"))
                    .or(format!("as a systemd service: LimitNOFILE={needed}")),
            ),
        }
    }
}

/// The soft and the hard limit of this name in /proc/self/limits; `None` if it is unlimited, or not there.
fn limit(limits: &str, name: &str) -> [Option<u64>; 2] {
    let values = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    let mut values = values.split_whitespace().map(|value| value.parse().ok());
    [(); 2].map(|()| values.next().flatten())
}

#[cfg(test)]
mod tests {
    use super::super::root::fixture;
    use super::super::row::Status;
    use super::super::tests::{host, settings, typed};
    use super::*;

    const LIMITS: &str = "Limit                     Soft Limit           Hard Limit           Units     \n\
        Max open files            1024                 20000                files     \n\
        Max locked memory         8388608              unlimited            bytes     \n";

    fn process(status: &str, uid_map: &str) -> Facts {
        let (_directory, root) = fixture(&[
            ("proc/self/status", status),
            ("proc/self/limits", LIMITS),
            ("proc/self/uid_map", uid_map),
        ]);
        Facts { program: "/opt/x y/xdp-server".into(), ..Facts::gather(&root) }
    }

    const ROOT: &str = "CapEff:\t000001ffffffffff\nCapBnd:\t000001ffffffffff\nNoNewPrivs:\t0\n";
    const USER: &str = "CapEff:\t0000000000000000\nCapBnd:\t000001ffffffffff\nNoNewPrivs:\t0\n";
    const HOST: &str = "         0          0 4294967295\n";

    fn row(facts: &Facts, flags: &str, check: &str) -> Row {
        let (settings, host) = (settings(flags), host());
        let rows = facts.rows(&Wanted::new(&settings, &host));
        rows.into_iter().find(|row| row.check == check).unwrap()
    }

    #[test]
    fn proc_is_read() {
        let root = process(ROOT, HOST);
        assert_eq!((root.locked, root.files), ([Some(8 << 20), None], Some(20_000)));
        assert_eq!((root.is_net_admin(), root.user_namespace, root.no_new_privileges), (true, false, false));
        assert!(process(ROOT, "0 100000 65536\n").user_namespace);
        assert!(process("NoNewPrivs:\t1\n", HOST).no_new_privileges);
    }

    #[test]
    fn capabilities_that_are_lacking_are_named_with_their_purpose() {
        let status = |facts: &Facts, flags| row(facts, flags, "privileges").status;
        assert_eq!(status(&process(ROOT, HOST), "--iface eth0 --backend xdp"), Status::Ok);
        let user = process(USER, HOST);
        assert_eq!(status(&user, ""), Status::Ok);
        assert_eq!(status(&user, "--iface eth0 --backend socket"), Status::Ok);
        assert_eq!(status(&user, "--iface eth0 --backend xdp"), Status::Fail);
        let row = row(&user, "--iface eth0", "privileges");
        assert_eq!(row.status, Status::Warn);
        assert!(row.found.starts_with("lacks CAP_NET_ADMIN (attaches"), "{row:?}");
        assert_eq!(
            typed(&row),
            "sudo setcap cap_net_admin,cap_net_raw,cap_bpf,cap_perfmon,cap_ipc_lock=ep '/opt/x y/xdp-server'"
        );
    }

    #[test]
    fn older_names_of_privileges_count() {
        // CAP_SYS_ADMIN, NET_ADMIN, NET_RAW, IPC_LOCK: what was needed before CAP_BPF.
        let facts = process("CapEff:\t0000000000207000\nCapBnd:\t000001ffffffffff\n", HOST);
        assert_eq!(row(&facts, "--iface eth0 --backend xdp", "privileges").status, Status::Ok);
    }

    #[test]
    fn one_capability_is_another_limits_business() {
        let status = |effective: &str| {
            let facts = process(&format!("CapEff:\t{effective}\nCapBnd:\t000001ffffffffff\n"), HOST);
            row(&facts, "--iface eth0 --backend xdp", "privileges").status
        };
        assert_eq!(status("000000c000003000"), Status::Ok, "all but CAP_IPC_LOCK");
        assert_eq!(status("0000008000007000"), Status::Fail, "all but CAP_PERFMON");
    }

    #[test]
    fn where_nothing_can_be_gained_that_is_said() {
        let container = process("CapEff:\t0000000000000000\nCapBnd:\t0000000000002000\n", HOST);
        let found = row(&container, "--iface eth0", "privileges");
        assert_eq!(typed(&found), "--backend socket");
        assert!(found.remedy.unwrap().also.unwrap().contains("--cap-add NET_ADMIN"));
        let rootless = process(ROOT, "0 1000 1\n");
        assert!(row(&rootless, "--iface eth0 --backend xdp", "privileges").found.contains("user namespace"));
    }

    #[test]
    fn limits_are_compared_with_the_need() {
        let status = |facts: &Facts, flags, check| row(facts, flags, check).status;
        let user = process(USER, HOST);
        assert_eq!(status(&user, "--iface eth0 --queues 4 --backend xdp", "locked memory"), Status::Fail);
        assert!(row(&user, "--iface eth0 --queues 4", "locked memory").found.contains("64 MiB"));
        assert_eq!(status(&process(ROOT, HOST), "--iface eth0", "locked memory"), Status::Ok);
        let locked = |soft, hard, flags: &str| {
            let facts = Facts { locked: [soft, hard], ..user.clone() };
            let row = row(&facts, &format!("--iface eth0 {flags}"), "locked memory");
            row.remedy.is_some().then(|| typed(&row).to_owned())
        };
        let mib = |mib: u64| Some(mib << 20);
        assert_eq!(locked(None, None, "--queues 4"), None);
        assert_eq!(locked(mib(64), mib(64), "--queues 4"), None);
        assert_eq!(locked(mib(8), None, "--queues 4").unwrap(), "ulimit -l unlimited");
        assert_eq!(locked(mib(8), mib(64), "--queues 4").unwrap(), "ulimit -l 65536");
        assert!(locked(mib(8), mib(8), "--queues 4").unwrap().contains("setcap"));
        assert_eq!(status(&user, "--queues 256", "open files"), Status::Ok);
        let few = Facts { files: Some(1024), ..user };
        let row = row(&few, "--queues 256", "open files");
        assert_eq!((row.status, typed(&row)), (Status::Fail, "sudo prlimit --pid $$ --nofile=2112:2112"));
    }
}
