//! The real server program as a child process, and what the kernel says of its threads.

use std::fs;
use std::io::{BufRead, BufReader, Lines, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Lines to wait for an event: about as many seconds.
const PATIENCE: usize = 10;

/// A place that every user can get to, with a copy of the program and a state directory.
pub struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    /// The state directory belongs to user and group `owner`.
    pub fn new(owner: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let place = Self { dir };
        // The target directory may be in somebody's home, out of the reach of others.
        fs::copy(env!("CARGO_BIN_EXE_xdp-server"), place.program()).unwrap();
        fs::create_dir(place.state()).unwrap();
        chown(place.state(), Some(owner), Some(owner)).unwrap();
        place
    }

    pub fn program(&self) -> PathBuf {
        self.dir.path().join("xdp-server")
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// A command line of the shell that starts the server by way of `wrapper`, with small tables and plain
    /// pages.
    pub fn command(&self, wrapper: &str, flags: &str) -> Command {
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!(
            "exec {wrapper} {} --state {} --json --quiet --listen 0.0.0.0:4433 --queues 2 --poll adaptive \
             --max-connections-per-worker 64 --huge-pages plain {flags}",
            self.program().display(),
            self.state().display()
        ));
        // Whoever runs the tests may have called sudo.
        for variable in ["SUDO_UID", "SUDO_GID", "SUDO_USER"] {
            command.env_remove(variable);
        }
        command
    }

    /// Runs a server that must not start; returns what it says.
    #[track_caller]
    pub fn refusal(&self, wrapper: &str, flags: &str) -> String {
        let output = self.command(wrapper, &format!("{flags} --duration 1")).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        text
    }
}

/// A server that runs; killed when dropped.
pub struct Server {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    /// The start's JSON.
    pub start: Value,
}

impl Server {
    /// Starts it and waits until it serves.
    #[track_caller]
    pub fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut server = Self { child, lines, start: Value::Null };
        server.start = server.event("start");
        server
    }

    /// The next event of this kind.
    #[track_caller]
    pub fn event(&mut self, kind: &str) -> Value {
        for _ in 0..PATIENCE {
            let Some(line) = self.lines.next() else { break };
            let event: Value = serde_json::from_str(&line.unwrap()).unwrap();
            if event["event"] == kind {
                return event;
            }
        }
        let _ = self.child.kill();
        let mut errors = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        panic!("no event {kind}: {errors}");
    }

    /// All notes of the start, one a line.
    pub fn notes(&self) -> String {
        let notes = self.start["notes"].as_array().unwrap().iter();
        notes.map(|note| note.as_str().unwrap()).collect::<Vec<_>>().join("\n")
    }

    /// Asserts that every thread is user and group `id` for good, in no other group, and can do nothing
    /// special.
    #[track_caller]
    pub fn expect_powerless(&self, id: u32) {
        let threads = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let mut names = Vec::new();
        for thread in threads {
            let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
                line.unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
            };
            assert_eq!(field("Uid"), [id; 4].map(|id| id.to_string()).join(" "), "{status}");
            assert_eq!(field("Gid"), [id; 4].map(|id| id.to_string()).join(" "), "{status}");
            for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
                assert_eq!(u64::from_str_radix(&field(set), 16), Ok(0), "{set} in {status}");
            }
            assert_eq!(field("NoNewPrivs"), "1", "{status}");
            if id != 0 {
                assert_eq!(field("Groups"), "", "{status}");
            }
            names.push(field("Name"));
        }
        names.sort();
        for name in ["signals", "worker-0", "worker-1", "xdp-server"] {
            assert!(names.iter().any(|found| found == name), "{name} is not among {names:?}");
        }
    }

    /// Asserts that other processes of the same user can neither trace it nor get a core file of it: its
    /// files in /proc are then root's.
    #[track_caller]
    pub fn expect_undumpable(&self) {
        let memory = fs::metadata(format!("/proc/{}/mem", self.child.id())).unwrap();
        assert_eq!(memory.uid(), 0);
    }

    /// Tells it to drain; returns how it ended.
    pub fn stop(&mut self) -> ExitStatus {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM).unwrap();
        self.child.wait().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
