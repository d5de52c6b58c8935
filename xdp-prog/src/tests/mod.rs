//! Tests against the running kernel: they load the program, run it on fixtures, attach it to veth pairs
//! in network namespaces of their own, and send real packets through.
//!
//! They need root, and fail without it. Nothing that they make outlives the test, nor is seen outside.

mod addresses;
mod attach;
mod classify;
mod frames;
mod inspect;
mod traffic;
mod xsk;

use std::net::IpAddr;
use std::panic::resume_unwind;
use std::process::Command;
use std::thread::{self, sleep};
use std::time::Duration;

use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};

use crate::{Config, XdpProgram};

/// The port that the programs under test serve.
const PORT: u16 = 4433;

/// A program for two queues, [`PORT`], and the addresses of the fixtures.
fn load() -> XdpProgram {
    require_root();
    XdpProgram::load(&config()).expect("the program loads")
}

fn config() -> Config {
    let addresses = vec![IpAddr::from(frames::SERVER_V4), IpAddr::from(frames::SERVER_V6)];
    Config { port: PORT, queues: 2, addresses }
}

fn require_root() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test loads BPF programs and makes network namespaces, so it needs root: \
         sudo -E env PATH=\"$PATH\" cargo test -p xdp-prog"
    );
}

/// Runs `test` on a thread with a network namespace of its own, which goes when the thread ends.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    require_root();
    let thread = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace");
        test();
    });
    if let Err(panic) = thread.join() {
        resume_unwind(panic);
    }
}

/// A veth pair in the calling thread's namespace, both ends up: what is sent on `left` arrives on `right`.
struct Veth {
    left: u32,
    right: u32,
}

impl Veth {
    fn new(queues: u32) -> Self {
        let ends = format!("numrxqueues {queues} numtxqueues {queues}");
        ip(&format!("link add left {ends} type veth peer name right {ends}"));
        ip("link set left up");
        ip("link set right up");
        // The kernel notices the carrier up to a second later, and drops what is sent until then.
        while ["left", "right"].iter().any(|end| !ip(&format!("link show {end}")).contains("state UP")) {
            sleep(Duration::from_millis(10));
        }
        let index = |name| if_nametoindex(name).expect("the veth end exists");
        Self { left: index("left"), right: index("right") }
    }
}

fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split_whitespace()).output();
    let output = output.unwrap_or_else(|error| panic!("ip: {error}; type: apt-get install iproute2"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {stderr}");
    String::from_utf8(output.stdout).expect("ip prints UTF-8")
}
