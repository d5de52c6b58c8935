//! Hosts that have no io_uring for us, or less of it.

use super::*;
use crate::net::datagram_tests::sandbox::without_call;

#[test]
fn a_sandbox_is_recognised() {
    for errno in [libc::EPERM, libc::ENOSYS] {
        let error = without_call(libc::SYS_io_uring_setup, None, errno, || {
            open(&config(2)).err().expect("io_uring_setup is forbidden")
        });
        let sysctl = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
        if sysctl.trim() == "0" || errno == libc::ENOSYS {
            assert!(matches!(error, UringError::Sandbox { .. }), "{error:?}");
            assert!(error.to_string().contains("--security-opt seccomp="), "{error}");
        }
    }
}

#[test]
fn what_is_done_without_is_noted_once() {
    let notes = |limits, sqpoll| {
        let rings = open_within(&UringConfig { sqpoll, ..config(3) }, limits).unwrap();
        rings.notes.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(notes(Limits::default(), false), [""; 0], "this kernel has everything");
    assert_eq!(notes(Limits::default(), true), [""; 0]);
    let old = Limits { task_work: TaskWork::Cooperative, multishot: false, buffers: None };
    let notes = notes(old, false);
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(notes[0].contains("DEFER_TASKRUN (6.1) and SINGLE_ISSUER (6.0)"), "{}", notes[0]);
    assert!(notes[1].contains("no multishot receive (6.0)"), "{}", notes[1]);
}

#[test]
fn an_impossible_depth_is_an_error_of_the_call() {
    let error = open(&UringConfig { sq_depth: 1 << 20, ..config(1) }).err().expect("the kernel takes 32,768");
    assert!(matches!(error, UringError::System { call: "io_uring_setup", .. }), "{error:?}");
}
