//! Two network namespaces, joined by a veth pair, with two queues unless asked for others:
//!
//! ```text
//!   server namespace                         client namespace
//!     serv0  10.77.0.1/24   ◄── veth ──►   clnt0  10.77.0.2/24
//!            fd77::1/64                           fd77::2/64
//! ```
//!
//! They belong to the test's own thread, which is in the server's, and to descriptors; both go when the test
//! ends, however it ends. Nothing outside of them is touched.

use std::fs::File;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};

/// The tests share two cores and count descriptors of the process: one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

pub struct Lab {
    client: File,
}

impl Lab {
    /// Runs `test` in a laboratory of its own.
    pub fn run(test: impl FnOnce(&Lab) + Send) {
        Self::with_queues(2, test);
    }

    /// The same with this many queues each way.
    pub fn with_queues(queues: usize, test: impl FnOnce(&Lab) + Send) {
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test makes network namespaces: run it as root (sudo -E)"
        );
        let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        thread::scope(|scope| {
            if let Err(panic) = scope.spawn(|| test(&Lab::new(queues))).join() {
                std::panic::resume_unwind(panic);
            }
        });
    }

    fn new(queues: usize) -> Self {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let client = File::open("/proc/thread-self/ns/net").unwrap();
        // /sys shows the network namespace that it was mounted from.
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        let lab = Self { client };
        lab.server("mount --make-rprivate / && mount -t sysfs sysfs /sys");
        let queues = format!("numrxqueues {queues} numtxqueues {queues}");
        let peer = lab.client_path();
        lab.server(&format!("ip link add serv0 {queues} type veth peer name clnt0 {queues} netns {peer}"));
        // Addresses without duplicate address detection, which takes seconds.
        lab.server("ip address add 10.77.0.1/24 dev serv0");
        lab.server("ip address add fd77::1/64 dev serv0 nodad");
        lab.server("ip link set dev serv0 up");
        lab.client("ip address add 10.77.0.2/24 dev clnt0");
        lab.client("ip address add fd77::2/64 dev clnt0 nodad");
        lab.client("ip link set dev clnt0 up");
        lab.client("ping -q -c 1 -W 5 10.77.0.1 || true");
        lab
    }

    fn client_path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.client.as_raw_fd())
    }

    /// Runs a shell command in the server's namespace; returns its output.
    #[track_caller]
    pub fn server(&self, command: &str) -> String {
        let output = Command::new("sh").arg("-c").arg(command).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{command}: {text}{}", String::from_utf8_lossy(&output.stderr));
        text
    }

    /// And in the client's.
    #[track_caller]
    pub fn client(&self, command: &str) -> String {
        self.server(&format!("nsenter --net={} sh -c '{command}'", self.client_path()))
    }

    /// An ordinary UDP socket in the client's namespace.
    pub fn socket(&self, local: &str, peer: &str) -> UdpSocket {
        self.in_client(|| {
            let socket = UdpSocket::bind(local).unwrap();
            socket.connect(peer).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            socket
        })
    }

    /// Runs `work` on a thread in the client's namespace, with its /sys.
    pub fn in_client<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.client, CloneFlags::CLONE_NEWNET).unwrap();
                unshare(CloneFlags::CLONE_NEWNS).unwrap();
                self.server("mount -t sysfs sysfs /sys");
                work()
            });
            thread.join().unwrap()
        })
    }
}
