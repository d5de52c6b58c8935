//! Which backend the program takes by itself, and what it says of those that it did not: as any user, and
//! where a sandbox blocks io_uring.

use std::io;
use std::mem;
use std::net::UdpSocket;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

use serde_json::Value;

/// `nobody`, as far as Linux is concerned.
const NOBODY: u32 = 65_534;

/// A program that is about to start, for one second, and where it keeps its state.
struct Server {
    command: Command,
    state: tempfile::TempDir,
}

impl Server {
    fn new(backend: &str) -> Self {
        // Free now, and nobody else's until the server has it: the kernel deals out ports at random.
        let listen = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let state = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_xdp-server"));
        command.args(["--json", "--duration", "1", "--workers", "1", "--width", "64", "--height", "64"]);
        command.args(["--listen", &listen.to_string(), "--backend", backend, "--state"]);
        command.arg(state.path());
        Self { command, state }
    }

    /// Without any privilege, if the test has some to give up.
    fn by_nobody(mut self) -> Self {
        if nix::unistd::geteuid().is_root() {
            chown(self.state.path(), Some(NOBODY), Some(NOBODY)).unwrap();
            self.command.uid(NOBODY).gid(NOBODY);
        }
        self
    }

    /// With a seccomp filter that lets a system call fail, as container runtimes' profiles do.
    fn without(mut self, system_call: libc::c_long) -> Self {
        // SAFETY: between fork and exec only prctl is called, and no memory is allocated.
        unsafe { self.command.pre_exec(move || forbid(system_call)) };
        self
    }

    fn run(mut self) -> Output {
        self.command.output().unwrap()
    }

    /// What it says at its start.
    fn start(self) -> Start {
        let output = self.run();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
        let start: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        let notes = start["notes"].as_array().unwrap().iter();
        Start {
            backend: start["backend"].as_str().unwrap().to_owned(),
            notes: notes.map(|note| note.as_str().unwrap().to_owned()).collect(),
        }
    }
}

struct Start {
    backend: String,
    notes: Vec<String>,
}

impl Start {
    fn says(&self, words: &str) -> bool {
        self.notes.iter().any(|note| note.contains(words))
    }
}

fn forbid(system_call: libc::c_long) -> io::Result<()> {
    let code = |code: u32, jf, k| libc::sock_filter { code: code as u16, jt: 0, jf, k };
    let number = mem::offset_of!(libc::seccomp_data, nr) as u32;
    let mut filter = [
        code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, number),
        code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, system_call as u32),
        code(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        code(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program points at `len` instructions, which the kernel checks and copies.
    let result = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[test]
fn an_ordinary_user_gets_io_uring() {
    let start = Server::new("auto").by_nobody().start();
    assert_eq!(start.backend, "io_uring", "{:?}", start.notes);
    assert!(start.says("AF_XDP not tried: it needs --iface IF"), "{:?}", start.notes);
    assert!(!start.says("io_uring"), "{:?}", start.notes);
}

#[test]
fn a_sandbox_that_keeps_the_server_from_learning_is_noted() {
    let start = Server::new("auto").by_nobody().without(libc::SYS_process_vm_readv).start();
    assert!(start.says("allow process_vm_readv"), "{:?}", start.notes);
    let start = Server::new("auto").by_nobody().start();
    assert!(!start.says("process_vm_readv"), "{:?}", start.notes);
}

#[test]
fn where_a_sandbox_blocks_io_uring_sockets_serve() {
    let start = Server::new("auto").by_nobody().without(libc::SYS_io_uring_setup).start();
    assert_eq!(start.backend, "socket", "{:?}", start.notes);
    assert!(start.says("io_uring not taken: a sandbox blocks io_uring_setup"), "{:?}", start.notes);
}

#[test]
fn a_backend_by_name_is_that_one_or_an_error() {
    for name in ["socket", "io_uring"] {
        let start = Server::new(name).start();
        assert_eq!(start.backend, name);
        assert!(!start.says("AF_XDP"), "{:?}", start.notes);
    }
    let output = Server::new("io_uring").without(libc::SYS_io_uring_setup).run();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("a sandbox blocks io_uring_setup") && text.contains("--backend socket"), "{text}");
}

#[test]
fn a_kernel_thread_may_submit() {
    let mut server = Server::new("io_uring");
    server.command.arg("--sqpoll");
    assert_eq!(server.start().backend, "io_uring");
}
