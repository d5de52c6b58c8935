//! The network of a test, and the doctor run in it.

use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use nix::sched::{CloneFlags, unshare};
use serde_json::Value;
use tempfile::TempDir;

/// The user without any rights, by number.
const NOBODY: u32 = 65_534;

/// The program under test.
pub fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_xdp-server"))
}

/// A network namespace with one veth pair.
pub struct Network;

impl Network {
    /// Runs `test` in a network of its own, with a /sys that shows it. It belongs to the test's thread, and
    /// goes with it.
    pub fn run(test: impl FnOnce() + Send) {
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test makes network namespaces: run it as root (sudo -E)"
        );
        thread::scope(|scope| {
            let in_namespace = || {
                unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
                sh("mount --make-rprivate / && mount -t sysfs sysfs /sys");
                let queues = "numrxqueues 4 numtxqueues 4";
                sh(&format!("ip link add serv0 {queues} type veth peer name clnt0 {queues}"));
                sh("ip address add 10.78.0.1/24 dev serv0");
                sh("ip link set dev lo up && ip link set dev clnt0 up && ip link set dev serv0 up");
                test();
            };
            if let Err(panic) = scope.spawn(in_namespace).join() {
                std::panic::resume_unwind(panic);
            }
        });
    }
}

/// Runs a shell command; returns its output.
#[track_caller]
pub fn sh(command: &str) -> String {
    let output = Command::new("sh").arg("-c").arg(command).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// A copy of the program, where every user can run it and nothing else depends on it; gone with this.
pub struct Copy {
    program: PathBuf,
    _directory: TempDir,
}

impl Copy {
    /// Makes one.
    pub fn new() -> Self {
        let directory = open_directory();
        let program = directory.path().join("xdp-server");
        fs::copy(binary(), &program).unwrap();
        Self { program, _directory: directory }
    }
}

/// A directory that every user can enter; gone with the value.
pub fn open_directory() -> TempDir {
    let directory = tempfile::tempdir_in("/tmp").unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    directory
}

/// Who runs the doctor, and how.
pub struct Doctor {
    program: PathBuf,
    user: Option<u32>,
    filtered: bool,
}

impl Doctor {
    /// As root.
    pub fn root() -> Self {
        Self { program: binary().to_owned(), user: None, filtered: false }
    }

    /// As a user without any rights.
    pub fn nobody(copy: &Copy) -> Self {
        Self { program: copy.program.clone(), user: Some(NOBODY), filtered: false }
    }

    /// Behind a seccomp filter that refuses io_uring, as containers have.
    pub fn without_io_uring(self) -> Self {
        Self { filtered: true, ..self }
    }

    /// Its diagnosis for these flags.
    #[track_caller]
    pub fn run(&self, flags: &str) -> Seen {
        let mut command = Command::new(&self.program);
        command.arg("doctor").args(flags.split_whitespace()).arg("--json");
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        if self.filtered {
            // SAFETY: between fork and exec only the two system calls of `refuse_io_uring` are made.
            unsafe { command.pre_exec(refuse_io_uring) };
        }
        let output = command.output().unwrap_or_else(|error| panic!("{}: {error}", self.program.display()));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let json: Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {text}"));
        let exit = output.status.code().unwrap();
        assert_eq!(json["exit"], exit);
        Seen { json, exit, text }
    }

    /// Does what the row of `check` says, which has `status` for now, and sees it turn to ok. Returns what
    /// was said.
    #[track_caller]
    pub fn mend(&self, check: &str, flags: &str, status: &str) -> String {
        let seen = self.run(flags);
        assert_eq!(seen.status(check), status, "{seen}");
        let remedy = seen.remedy(check);
        let after = match seen.row(check).get("type") {
            Some(_) => {
                // Root types it, on hosts without sudo, too.
                sh(&format!("sudo() {{ \"$@\"; }}; {remedy}"));
                self.run(flags)
            }
            None => self.run(&format!("{flags} {remedy}")),
        };
        assert_eq!(after.status(check), "ok", "after {remedy}: {after}");
        remedy
    }
}

/// Types, in a clone of the repository, the script that `seen` offers for `check` instead of its command,
/// with more options of it. Returns what was offered.
#[track_caller]
pub fn type_script(seen: &Seen, check: &str, more: &str) -> String {
    let also = seen.row(check)["or"]
        .as_str()
        .unwrap_or_else(|| panic!("no script for {check} in: {seen}"))
        .to_owned();
    let clone = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    // Root types it, on hosts without sudo, too.
    sh(&format!("cd {} && sudo() {{ \"$@\"; }}; {also} {more}", clone.display()));
    also
}

/// A diagnosis, as a script would see it.
pub struct Seen {
    /// All of it.
    pub json: Value,
    /// The exit status.
    pub exit: i32,
    text: String,
}

impl Seen {
    #[track_caller]
    fn row(&self, check: &str) -> &Value {
        let rows = self.json["checks"].as_array().unwrap();
        rows.iter().find(|row| row["check"] == check).unwrap_or_else(|| panic!("no {check} in: {self}"))
    }

    /// The status of a check.
    #[track_caller]
    pub fn status(&self, check: &str) -> &str {
        self.row(check)["status"].as_str().unwrap()
    }

    /// What a check found.
    #[track_caller]
    pub fn found(&self, check: &str) -> String {
        self.row(check)["found"].as_str().unwrap().to_owned()
    }

    /// What a check says to type, or to give.
    #[track_caller]
    pub fn remedy(&self, check: &str) -> String {
        let row = self.row(check);
        let remedy = row.get("type").or(row.get("give")).and_then(Value::as_str);
        remedy.unwrap_or_else(|| panic!("no remedy for {check} in: {self}")).to_owned()
    }

    /// Whether any check has this status.
    pub fn has(&self, status: &str) -> bool {
        self.json["checks"].as_array().unwrap().iter().any(|row| row["status"] == status)
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exit {}\n{}", self.exit, self.text)
    }
}

/// Makes io_uring_setup fail with EPERM in this process, for good.
fn refuse_io_uring() -> std::io::Result<()> {
    const fn statement(code: u32, skip_unless: u8, k: u32) -> libc::sock_filter {
        libc::sock_filter { code: code as u16, jt: 0, jf: skip_unless, k }
    }
    // The number of the system call is the first word of what the filter sees.
    let mut filter = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, libc::SYS_io_uring_setup as u32),
        statement(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        statement(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the filter outlives the call, which copies it; unprivileged processes need the first call, too.
    let refused = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) != 0
    };
    if refused { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}
