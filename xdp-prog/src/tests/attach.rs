//! The program's attachment: made as asked, undone in every case, and refused with a reason and a remedy.

use std::env;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::net::if_::if_nametoindex;

use super::{Veth, config, in_namespace, ip, load};
use crate::{Error, Mode, XdpProgram};

/// The mode of the XDP program on the interface; `None` when there is none.
fn attached(interface: &str) -> Option<Mode> {
    let link = ip(&format!("-j link show dev {interface}"));
    let (_, xdp) = link.split_once("\"xdp\":{\"mode\":")?;
    // linux/if_link.h: XDP_ATTACHED_DRV, XDP_ATTACHED_SKB.
    match xdp.as_bytes().first() {
        Some(b'1') => Some(Mode::Native),
        Some(b'2') => Some(Mode::Generic),
        other => panic!("mode {other:?} in {link}"),
    }
}

#[test]
fn attached_in_the_mode_asked_for_until_dropped() {
    in_namespace(|| {
        let veth = Veth::new(2);
        for mode in [Mode::Native, Mode::Generic] {
            let mut program = load();
            assert_eq!(attached("right"), None);
            program.attach(veth.right, mode).expect("it attaches");
            assert_eq!(attached("right"), Some(mode));
            drop(program);
            assert_eq!(attached("right"), None);
        }
    });
}

#[test]
fn attaching_again_moves_the_program() {
    in_namespace(|| {
        let veth = Veth::new(2);
        let mut program = load();
        program.attach(veth.right, Mode::Native).expect("it attaches");
        program.attach(veth.right, Mode::Generic).expect("it changes the mode");
        assert_eq!(attached("right"), Some(Mode::Generic));
        program.attach(veth.left, Mode::Native).expect("it changes the interface");
        assert_eq!((attached("left"), attached("right")), (Some(Mode::Native), None));
        program.detach();
        assert_eq!(attached("left"), None);
        program.detach();
    });
}

#[test]
fn a_second_program_is_refused_and_the_first_named() {
    in_namespace(|| {
        let veth = Veth::new(2);
        let (mut first, mut second) = (load(), load());
        for (mode, other) in [(Mode::Native, Mode::Native), (Mode::Generic, Mode::Native)] {
            first.attach(veth.right, mode).expect("it attaches");
            for mode_of_second in [mode, other] {
                let error = second.attach(veth.right, mode_of_second).expect_err("the place is taken");
                assert!(matches!(error, Error::Busy { .. }), "{error}");
                let message = error.to_string();
                for part in ["right already has", "xdp_quic (program id ", &format!("{mode} mode")] {
                    assert!(message.contains(part), "{part} in: {message}");
                }
                assert_eq!(attached("right"), Some(mode), "the first is untouched");
            }
        }
        drop(first);
        second.attach(veth.right, Mode::Native).expect("now it attaches");
    });
}

#[test]
fn what_the_driver_cannot_do_is_explained() {
    in_namespace(|| {
        let mut program = load();
        let loopback = if_nametoindex("lo").expect("it exists");
        let error = program.attach(loopback, Mode::Native).expect_err("the loopback driver has no XDP");
        assert!(matches!(error, Error::NoNativeXdp { .. }), "{error}");
        program.attach(loopback, Mode::Generic).expect("generic mode works on any interface");

        let error = program.attach(0xffff, Mode::Native).expect_err("no such interface");
        assert!(matches!(error, Error::NoSuchInterface { ifindex: 0xffff }), "{error}");
        assert_eq!(attached("lo"), None, "after an error it is attached to nothing");

        let veth = Veth::new(2);
        ip("link set left mtu 9000");
        let error = program.attach(veth.right, Mode::Native).expect_err("the peer's packets are too large");
        assert!(error.to_string().contains("mtu 1500"), "{error}");

        let [one, two] = ["numrxqueues 1 numtxqueues 1", "numrxqueues 2 numtxqueues 2"];
        ip(&format!("link add few {one} type veth peer name many {two}"));
        let few = if_nametoindex("few").expect("it exists");
        let error = program.attach(few, Mode::Native).expect_err("the peer has more queues");
        assert!(error.to_string().contains("numrxqueues"), "{error}");
    });
}

#[test]
fn a_socket_that_cannot_be_registered_is_refused() {
    let program = load();
    let file = File::open("/dev/null").expect("it exists");
    let error = program.register(2, file.as_fd()).expect_err("queues 0 and 1 exist");
    assert!(matches!(error, Error::QueueOutOfRange { queue: 2, queues: 2 }), "{error}");
    let error = program.register(1, file.as_fd()).expect_err("a file is no socket");
    assert!(matches!(error, Error::Register { queue: 1, .. }), "{error}");
}

/// Leaves the calling thread, and no other, only these of its capabilities.
fn keep_capabilities(bits: &[u32]) {
    /// _LINUX_CAPABILITY_VERSION_3: two sets of 32 bits each.
    const VERSION: u32 = 0x2008_0522;
    let kept = bits.iter().fold(0_u64, |set, bit| set | 1 << bit);
    let header = [VERSION, 0];
    let [low, high] = [kept as u32, (kept >> 32) as u32];
    // Effective, permitted and inheritable, low half before high half.
    let sets = [low, low, 0, high, high, 0];
    // SAFETY: both arrays have the layout and size that this version of the call takes.
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) };
    assert_eq!(result, 0, "capset: {}", std::io::Error::last_os_error());
}

#[test]
fn missing_capabilities_are_named() {
    const CAP_NET_ADMIN: u32 = 12;
    const CAP_PERFMON: u32 = 38;
    const CAP_BPF: u32 = 39;
    let cases: [(&[u32], &str); 4] = [
        (&[], "missing CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON."),
        (&[CAP_NET_ADMIN, CAP_PERFMON], "missing CAP_BPF."),
        (&[CAP_BPF, CAP_PERFMON], "missing CAP_NET_ADMIN."),
        (&[CAP_BPF, CAP_NET_ADMIN], "missing CAP_PERFMON."),
    ];
    for (kept, expected) in cases {
        in_namespace(move || {
            keep_capabilities(kept);
            let error = XdpProgram::load(&config()).expect_err("not permitted");
            assert!(matches!(error, Error::Permission { .. }), "{error}");
            assert!(error.to_string().contains(expected), "{error}");
            assert!(error.to_string().contains("sudo"), "{error}");
        });
    }
    in_namespace(|| {
        let veth = Veth::new(2);
        keep_capabilities(&[CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON]);
        load().attach(veth.right, Mode::Native).expect("these three are enough");
    });
}

#[test]
fn sigkill_leaves_the_interface_clean() {
    /// Set in the process that is to be killed: the interface that it attaches to.
    const VICTIM: &str = "XDP_PROG_TEST_VICTIM";
    const READY: &str = "attached, waiting to be killed";
    if let Ok(interface) = env::var(VICTIM) {
        let ifindex = if_nametoindex(interface.as_str()).expect("it exists");
        let mut program = load();
        program.attach(ifindex, Mode::Native).expect("it attaches");
        println!("\n{READY}");
        // Longer than the test waits; bounded, should that die first.
        sleep(Duration::from_secs(60));
        return;
    }
    in_namespace(|| {
        Veth::new(2);
        // This very test, in another process but in this thread's namespace.
        let mut victim = Command::new(env::current_exe().expect("it has a path"))
            .args(["--exact", "tests::attach::sigkill_leaves_the_interface_clean", "--nocapture"])
            .env(VICTIM, "right")
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut lines = BufReader::new(victim.stdout.take().expect("it is piped")).lines();
        assert!(lines.any(|line| line.expect("UTF-8") == READY), "it attached");
        assert_eq!(attached("right"), Some(Mode::Native));
        victim.kill().expect("it is killed");
        victim.wait().expect("it is dead");
        let deadline = Instant::now() + Duration::from_secs(5);
        while attached("right").is_some() {
            assert!(Instant::now() < deadline, "still attached");
            sleep(Duration::from_millis(10));
        }
    });
}
