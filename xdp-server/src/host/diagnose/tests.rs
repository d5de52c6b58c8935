use super::*;
use std::os::unix::fs::symlink;

/// CapEff and CapBnd of root, as the kernel writes them.
const ALL: &str = "000001ffffffffff";
const NONE: &str = "0000000000000000";
/// Those of Docker's default bounding set: NET_RAW is among them, the others that AF_XDP takes are not.
const DOCKER: &str = "00000000a80425fb";

/// What a host looks like, one file after the other. The defaults are those of root on a plain host.
struct Fixture {
    effective: &'static str,
    bounding: &'static str,
    no_new_privs: u8,
    seccomp: u8,
    uid_map: &'static str,
    memlock: &'static str,
    io_uring_disabled: Option<&'static str>,
    lsm: &'static str,
    lockdown: &'static str,
}

impl Default for Fixture {
    fn default() -> Self {
        Self {
            effective: ALL,
            bounding: ALL,
            no_new_privs: 0,
            seccomp: 0,
            uid_map: "         0          0 4294967295\n",
            memlock: "8388608              8388608",
            io_uring_disabled: Some("0\n"),
            lsm: "lockdown,capability,apparmor",
            lockdown: "[none] integrity confidentiality\n",
        }
    }
}

impl Fixture {
    fn why(&self, step: Step) -> String {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, content: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        let Self { effective, bounding, no_new_privs, seccomp, .. } = self;
        write(
            "proc/thread-self/status",
            &format!(
                "Name:\txdp-server\nCapPrm:\t{effective}\nCapEff:\t{effective}\nCapBnd:\t{bounding}\n\
                 NoNewPrivs:\t{no_new_privs}\nSeccomp:\t{seccomp}\nSeccomp_filters:\t1\n"
            ),
        );
        write("proc/self/uid_map", self.uid_map);
        let header = "Limit                     Soft Limit           Hard Limit           Units     \n";
        write("proc/self/limits", &format!("{header}Max locked memory         {} bytes\n", self.memlock));
        if let Some(value) = self.io_uring_disabled {
            write("proc/sys/kernel/io_uring_disabled", value);
        }
        write("sys/kernel/security/lsm", self.lsm);
        write("sys/kernel/security/lockdown", self.lockdown);
        symlink("/usr/local/bin/xdp-server", root.path().join("proc/self/exe")).unwrap();
        Host::read(root.path()).why_denied(step)
    }

    #[track_caller]
    fn expect(&self, step: Step, words: &[&str]) {
        let why = self.why(step);
        for word in words {
            assert!(why.contains(word), "{word:?} is not in: {why}");
        }
    }
}

#[test]
fn missing_capabilities_are_named_together_with_the_command_that_grants_them() {
    let command =
        "sudo setcap cap_net_admin,cap_net_raw,cap_bpf,cap_perfmon,cap_ipc_lock=ep /usr/local/bin/xdp-server";
    let ordinary = Fixture { effective: NONE, ..Fixture::default() };
    for step in [Step::XdpProgram, Step::XdpSocket] {
        let all = "CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF, CAP_PERFMON, CAP_IPC_LOCK are missing";
        ordinary.expect(step, &[all, "with sudo", command]);
    }
    // CAP_NET_ADMIN and CAP_NET_RAW, but not the rest.
    Fixture { effective: "0000000000003000", ..Fixture::default() }
        .expect(Step::XdpProgram, &["denied: CAP_BPF, CAP_PERFMON, CAP_IPC_LOCK are missing", command]);
    // CAP_SYS_ADMIN stands in for CAP_BPF: then it was something else.
    Fixture { effective: "0000017fffffffff", ..Fixture::default() }
        .expect(Step::XdpProgram, &["no capability is missing"]);
    Fixture { effective: "0000004000007000", ..Fixture::default() }
        .expect(Step::XdpProgram, &["denied: CAP_BPF is missing", command]);
}

#[test]
fn where_sudo_and_setcap_do_not_help_they_are_not_advised() {
    let container = Fixture { effective: DOCKER, bounding: DOCKER, seccomp: 2, ..Fixture::default() };
    container.expect(
        Step::XdpProgram,
        &[
            "CAP_NET_ADMIN, CAP_BPF, CAP_PERFMON, CAP_IPC_LOCK are missing",
            "bounding set",
            "docker run --cap-add NET_ADMIN --cap-add BPF --cap-add PERFMON --cap-add IPC_LOCK;",
        ],
    );
    assert!(!container.why(Step::XdpProgram).contains("setcap"));

    let unit = Fixture { effective: NONE, no_new_privs: 1, ..Fixture::default() };
    unit.expect(Step::XdpSocket, &["no_new_privs", "AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW CAP_BPF"]);
    assert!(!unit.why(Step::XdpSocket).contains("sudo setcap"));
}

#[test]
fn a_user_namespace_is_named_before_its_worthless_capabilities() {
    for uid_map in ["         0       1000          1\n", "0 100000 65536\n65536 200000 1\n"] {
        let rootless = Fixture { uid_map, seccomp: 2, ..Fixture::default() };
        rootless.expect(Step::XdpProgram, &["user namespace", "rootless container"]);
        // io_uring does not mind.
        rootless.expect(Step::IoUring, &["seccomp filter"]);
    }
}

#[test]
fn a_seccomp_filter_is_suspected_when_no_capability_is_missing() {
    let filtered = Fixture { seccomp: 2, ..Fixture::default() };
    filtered.expect(Step::XdpProgram, &["no capability is missing", "seccomp", "bpf()", "--security-opt"]);
    filtered.expect(Step::XdpSocket, &["seccomp", "socket(AF_XDP)"]);
    filtered.expect(Step::IoUring, &["seccomp", "io_uring_setup()", "--security-opt seccomp=unconfined"]);
    // An ordinary user needs no capability for io_uring.
    Fixture { effective: NONE, seccomp: 2, ..Fixture::default() }.expect(Step::IoUring, &["seccomp filter"]);
}

#[test]
fn security_modules_and_lockdown_are_the_last_suspects() {
    Fixture { lockdown: "none integrity [confidentiality]\n", ..Fixture::default() }.expect(
        Step::XdpProgram,
        &["security module", "active: lockdown,capability,apparmor; lockdown is at confidentiality", "dmesg"],
    );
    Fixture { lsm: "", lockdown: "", ..Fixture::default() }.expect(Step::IoUring, &["active: unknown"]);
}

#[test]
fn io_uring_may_be_switched_off_for_all_or_for_most() {
    let switched =
        |value, effective| Fixture { io_uring_disabled: Some(value), effective, ..Fixture::default() };
    let command = "sudo sysctl -w kernel.io_uring_disabled=0";
    switched("2\n", ALL).expect(Step::IoUring, &["io_uring_disabled is 2, off for everybody", command]);
    switched("1\n", NONE)
        .expect(Step::IoUring, &["io_uring_disabled is 1", "kernel.io_uring_group", command]);
    // It is not off for root: then it was something else. Nor is it on kernels that have no such switch.
    switched("1\n", ALL).expect(Step::IoUring, &["security module"]);
    Fixture { io_uring_disabled: None, ..Fixture::default() }.expect(Step::IoUring, &["security module"]);
}

#[test]
fn the_limit_of_locked_memory_is_compared_and_lifted() {
    let lock = Step::LockMemory { bytes: 16 << 20 };
    Fixture { effective: NONE, ..Fixture::default() }.expect(
        lock,
        &[
            "16 MiB of locked memory",
            "lock 8192 KiB",
            "ulimit -l unlimited",
            "LimitMEMLOCK=infinity",
            "memlock=-1",
        ],
    );
    // With CAP_IPC_LOCK, or without a limit, it is the memory itself.
    Fixture::default().expect(lock, &["memory is short"]);
    Fixture { effective: NONE, memlock: "unlimited            unlimited", ..Fixture::default() }
        .expect(lock, &["memory is short"]);
}

#[test]
fn a_host_that_tells_nothing_is_no_reason_to_fail() {
    let nothing = tempfile::tempdir().unwrap();
    let host = Host::read(nothing.path());
    for step in [Step::XdpProgram, Step::XdpSocket, Step::IoUring, Step::LockMemory { bytes: 1 }] {
        assert!(host.why_denied(step).contains("denied"));
    }
    assert_eq!(host.program, "PROGRAM");
}

#[test]
fn this_process_is_read_as_the_kernel_writes_it() {
    let host = Host::read(Path::new("/"));
    assert_ne!(host.program, "PROGRAM");
    let effective = caps::read(None, caps::CapSet::Effective).unwrap();
    assert_eq!(host.effective.count_ones() as usize, effective.len());
    for (ours, theirs) in [(NET_ADMIN, caps::Capability::CAP_NET_ADMIN), (BPF, caps::Capability::CAP_BPF)] {
        assert_eq!(host.has(ours), effective.contains(&theirs));
        assert_eq!(ours.1, u32::from(theirs.index()));
    }
}
