//! Diagnosis: which gate is closed when the kernel denies something, and what opens it.
//!
//! Theory of operation
//! -------------------
//! EPERM does not say who refused. [`why_denied`] looks at what /proc and /sys tell of this thread and its
//! sandbox, gate by gate, from the one that nothing inside can open to the one that only guesses can name:
//!
//! 1. a switch that is off for everybody: `kernel.io_uring_disabled`, `RLIMIT_MEMLOCK`
//! 2. a user namespace, in which capabilities do not count for the host's networks and BPF
//! 3. a capability that is missing, and whether sudo or `setcap` could grant it: not when it is out of the
//!    bounding set, or under `no_new_privs`
//! 4. a seccomp filter. That there is one is known, what it refuses is not: it is named when nothing else is
//!    left
//! 5. a security module, or lockdown
//!
//! `kernel.unprivileged_bpf_disabled` is not among them: XDP programs take CAP_BPF whatever it says.
//!
//! Reads only, changes nothing. To be called on the thread that was denied, before it gives up its
//! capabilities.

use std::fs;
use std::path::Path;

/// What was denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Loading or attaching the XDP program.
    XdpProgram,
    /// Opening or binding an AF_XDP socket.
    XdpSocket,
    /// Locking so many bytes of memory, such as a UMEM, at once. Others of the same user count, too.
    LockMemory {
        /// Bytes.
        bytes: u64,
    },
    /// Making an io_uring.
    IoUring,
}

/// A capability: its name, and its bit in linux/capability.h.
type Capability = (&'static str, u32);

const NET_ADMIN: Capability = ("CAP_NET_ADMIN", 12);
const NET_RAW: Capability = ("CAP_NET_RAW", 13);
const IPC_LOCK: Capability = ("CAP_IPC_LOCK", 14);
const SYS_ADMIN: Capability = ("CAP_SYS_ADMIN", 21);
const PERFMON: Capability = ("CAP_PERFMON", 38);
const BPF: Capability = ("CAP_BPF", 39);

/// What AF_XDP as a whole takes, whichever step was denied first: nobody wants to hear of them one by one.
const FOR_XDP: [Capability; 5] = [NET_ADMIN, NET_RAW, BPF, PERFMON, IPC_LOCK];

/// Which gate is closed for `step`, and what to type: one or two sentences without a full stop at the end.
pub fn why_denied(step: Step) -> String {
    Host::read(Path::new("/")).why_denied(step)
}

/// What there is to know of this thread and its sandbox. What the host does not tell is taken for open.
#[derive(Clone, Debug)]
struct Host {
    /// The program's path, for what to type.
    program: String,
    effective: u64,
    bounding: u64,
    no_new_privs: bool,
    seccomp_filter: bool,
    user_namespace: bool,
    /// In bytes; `None`: unlimited.
    memlock: Option<u64>,
    io_uring_disabled: u32,
    /// Names of the security modules, and lockdown's level.
    modules: String,
}

impl Host {
    /// Reads it under `root`, which is `/` but for tests.
    fn read(root: &Path) -> Host {
        let text = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
        let status = text("proc/thread-self/status");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.map(str::trim).unwrap_or_default()
        };
        let set = |name: &str| u64::from_str_radix(field(name), 16).unwrap_or(u64::MAX);
        let program = fs::read_link(root.join("proc/self/exe")).ok();
        Host {
            program: program.map_or_else(|| "PROGRAM".to_owned(), |path| path.display().to_string()),
            effective: set("CapEff"),
            bounding: set("CapBnd"),
            no_new_privs: field("NoNewPrivs") == "1",
            seccomp_filter: field("Seccomp") == "2",
            user_namespace: is_user_namespace(&text("proc/self/uid_map")),
            memlock: memlock(&text("proc/self/limits")),
            io_uring_disabled: text("proc/sys/kernel/io_uring_disabled").trim().parse().unwrap_or(0),
            modules: modules(&text("sys/kernel/security/lsm"), &text("sys/kernel/security/lockdown")),
        }
    }

    fn has(&self, (_, bit): Capability) -> bool {
        self.effective >> bit & 1 == 1
    }

    fn why_denied(&self, step: Step) -> String {
        match step {
            Step::XdpProgram => self.why_not_xdp("bpf()"),
            Step::XdpSocket => self.why_not_xdp("socket(AF_XDP)"),
            Step::LockMemory { bytes } => self.why_not_locked(bytes),
            Step::IoUring => self.why_not_io_uring(),
        }
    }

    fn why_not_xdp(&self, call: &str) -> String {
        if self.user_namespace {
            return "AF_XDP is denied: this is a user namespace (a rootless container, or `unshare --user`), \
                    whose capabilities do not count for BPF; start the server outside of it, or in a \
                    container run by root"
                .to_owned();
        }
        // CAP_SYS_ADMIN stands for CAP_BPF and CAP_PERFMON, as it did before there were such.
        let stands_in = |(_, bit)| bit >= PERFMON.1 && self.has(SYS_ADMIN);
        let lacks = |capability: &Capability| !self.has(*capability) && !stands_in(*capability);
        let mut missing: Vec<Capability> = FOR_XDP.into_iter().filter(lacks).collect();
        // It only lifts a limit: alone, it denies nothing here.
        if missing == [IPC_LOCK] {
            missing.clear();
        }
        if missing.is_empty() {
            return format!("AF_XDP is denied, and no capability is missing: {}", self.sandbox(call));
        }
        let list = |write: &dyn Fn(&str) -> String, between: &str| {
            missing.iter().map(|(name, _)| write(name)).collect::<Vec<_>>().join(between)
        };
        let names = list(&str::to_owned, ", ");
        let are = if missing.len() == 1 { "is" } else { "are" };
        let short = |name: &str| format!("--cap-add {}", name.trim_start_matches("CAP_"));
        if missing.iter().any(|(_, bit)| self.bounding >> bit & 1 == 0) {
            format!(
                "AF_XDP is denied: {names} {are} missing, and out of this process's bounding set, so that \
                 sudo does not help; a container gets them by: docker run {}; a systemd unit by \
                 AmbientCapabilities= and CapabilityBoundingSet=",
                list(&short, " ")
            )
        } else if self.no_new_privs {
            format!(
                "AF_XDP is denied: {names} {are} missing, and no_new_privs is set, so that neither sudo nor \
                 setcap helps; a systemd unit gets them by: AmbientCapabilities={}; a container by: \
                 docker run {}",
                list(&str::to_owned, " "),
                list(&short, " ")
            )
        } else {
            let all = FOR_XDP.map(|(name, _)| name.to_lowercase()).join(",");
            format!(
                "AF_XDP is denied: {names} {are} missing; run the server with sudo, or grant them for good: \
                 sudo setcap {all}=ep {}",
                self.program
            )
        }
    }

    fn why_not_locked(&self, bytes: u64) -> String {
        let wanted = format!("{} MiB of locked memory are denied", bytes.div_ceil(1 << 20));
        match self.memlock {
            Some(limit) if !self.has(IPC_LOCK) => format!(
                "{wanted}: RLIMIT_MEMLOCK lets this user lock {} KiB in all, and CAP_IPC_LOCK is missing; \
                 type, as root: ulimit -l unlimited; in a systemd unit: LimitMEMLOCK=infinity; in a \
                 container: docker run --ulimit memlock=-1",
                limit >> 10
            ),
            _ => format!(
                "{wanted}, although no limit is set: memory is short; see `free -h` and the cgroup's \
                 memory.max"
            ),
        }
    }

    fn why_not_io_uring(&self) -> String {
        match self.io_uring_disabled {
            1 if !self.has(SYS_ADMIN) => {
                "io_uring is denied: kernel.io_uring_disabled is 1, which leaves it to the group of \
                 kernel.io_uring_group and to CAP_SYS_ADMIN; type: sudo sysctl -w kernel.io_uring_disabled=0"
                    .to_owned()
            }
            0 | 1 => format!("io_uring is denied: {}", self.sandbox("io_uring_setup()")),
            _ => "io_uring is denied: kernel.io_uring_disabled is 2, off for everybody; \
                  type: sudo sysctl -w kernel.io_uring_disabled=0"
                .to_owned(),
        }
    }

    /// Who may have refused `call` when nothing that can be read has.
    fn sandbox(&self, call: &str) -> String {
        if self.seccomp_filter {
            format!(
                "a seccomp filter is in force, and seems to refuse {call}; Docker's own profile does, so: \
                 docker run --security-opt seccomp=unconfined, or a profile that allows it; in a systemd \
                 unit: SystemCallFilter="
            )
        } else {
            format!(
                "a security module seems to refuse {call} (active: {}); what it says is in: \
                 sudo dmesg | tail",
                self.modules
            )
        }
    }
}

/// Whether the map of user IDs is another than the first namespace's, which maps all to themselves.
fn is_user_namespace(uid_map: &str) -> bool {
    let first: Vec<&str> = uid_map.split_whitespace().collect();
    !first.is_empty() && first != ["0", "0", "4294967295"]
}

/// The soft limit of locked memory, in bytes, from /proc/self/limits; `None`: unlimited, or not told.
fn memlock(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn modules(lsm: &str, lockdown: &str) -> String {
    // The kernel puts its choice in brackets: `none [integrity] confidentiality`.
    let level = lockdown.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    let names = match lsm.trim() {
        "" => "unknown, /sys/kernel/security does not say",
        names => names,
    };
    match level {
        Some((level, _)) => format!("{names}; lockdown is at {level}"),
        None => names.to_owned(),
    }
}

#[cfg(test)]
mod tests;
