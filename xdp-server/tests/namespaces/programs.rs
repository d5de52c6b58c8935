//! The two programs as child processes: started, watched through their JSON reports, and ended.
//!
//! A child starts in the network namespace of the thread that spawns it. None outlives its test: dropping kills it,
//! and even a server whose test was killed ends by itself, after [`LONGEST`].

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::lab::Lab;

/// Seconds after which a server ends on its own: longer than any test.
const LONGEST: &str = "120";
/// Time for anything that is waited for: many times what it takes, on a machine that does something else too.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until there is what `look` looks for.
#[track_caller]
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A directory for one server: its state, kept over restarts, and what it prints.
pub struct Home(TempDir);

impl Home {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A path, to be given as a flag's value.
    pub fn file(&self, name: &str) -> String {
        self.path(name).to_str().expect("a temporary directory has a plain name").to_owned()
    }

    /// The server's command line, as a user would type it, with its state in here.
    pub fn server(&self, flags: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xdp-server"));
        command.args(["--state", &self.file("state"), "--duration", LONGEST]).args(flags);
        command
    }
}

/// A running server.
pub struct Server {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Server {
    /// Starts a server; returns when it serves.
    #[track_caller]
    pub fn start(home: &Home, flags: &[&str]) -> Self {
        Self::spawn(home, home.server(flags))
    }

    /// The same with a command of the caller's making.
    #[track_caller]
    pub fn spawn(home: &Home, mut command: Command) -> Self {
        let (stdout, stderr) = (home.path("stdout"), home.path("stderr"));
        command.arg("--json").stdin(Stdio::null());
        command.stdout(File::create(&stdout).unwrap()).stderr(File::create(&stderr).unwrap());
        let mut server = Self { child: command.spawn().unwrap(), stdout, stderr };
        eventually("the server starts", || {
            let ended = server.child.try_wait().unwrap();
            assert_eq!(ended, None, "the server ended instead of starting");
            server.last("start")
        });
        server
    }

    /// The newest report of this event, if there is one yet.
    pub fn last(&self, event: &str) -> Option<Value> {
        let text = fs::read_to_string(&self.stdout).unwrap();
        // A line that is not finished is not for now.
        let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        let reports = whole.lines().map(|line| serde_json::from_str::<Value>(line).expect("a line of JSON"));
        reports.rev().find(|report| report["event"] == event)
    }

    /// The report of the start.
    pub fn started(&self) -> Value {
        self.last("start").expect("it has started")
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.id() as i32), signal).unwrap();
    }

    /// Waits for its end, whatever brought it about.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        eventually("the server ends", || self.child.try_wait().unwrap())
    }

    /// Kills it, which it cannot notice.
    pub fn kill(mut self) {
        self.signal(Signal::SIGKILL);
        assert_eq!(self.wait().signal(), Some(Signal::SIGKILL as i32));
    }

    /// Ends it by SIGTERM, and sees to it that it ends well. Returns its summary.
    #[track_caller]
    pub fn stop(mut self) -> Value {
        self.signal(Signal::SIGTERM);
        assert_eq!(self.wait().code(), Some(0));
        self.last("summary").expect("a summary at the end")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            println!("the server said:\n{}", fs::read_to_string(&self.stderr).unwrap_or_default());
        }
    }
}

/// Runs a server that cannot start. Returns its exit code and its standard error.
#[track_caller]
pub fn refused(mut command: Command) -> (i32, String) {
    // If it starts after all it is to end soon; the last of equal flags counts.
    let output = command.args(["--quiet", "--duration", "1"]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "nothing but the error");
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

/// A running load generator.
pub struct Clients(Option<Child>);

impl Clients {
    /// Starts it at the far end of the cable.
    pub fn far(lab: &Lab, target: &str, flags: &[&str]) -> Self {
        lab.in_client(|| Self::near(target, flags))
    }

    /// Starts it beside the server.
    pub fn near(target: &str, flags: &[&str]) -> Self {
        let mut command = Command::new(loadgen());
        command.args(["--json", "--quiet", "--target", target]).args(flags);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self(Some(command.spawn().unwrap()))
    }

    /// Waits for its end. Returns exit code and report.
    #[track_caller]
    pub fn end(mut self) -> (i32, Value) {
        let child = self.0.take().expect("it ends once");
        let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
        let code = status.code().expect("an exit code");
        let report = serde_json::from_slice(&stdout);
        let report = report.unwrap_or_else(|_| panic!("no report: {}", String::from_utf8_lossy(&stderr)));
        (code, report)
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The load generator's program, beside the server's. `cargo test --workspace` has built it; where only this crate is
/// tested it may be missing or old, and is built now.
pub fn loadgen() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let server = Path::new(env!("CARGO_BIN_EXE_xdp-server"));
        let directory = server.parent().unwrap();
        let program = directory.join("loadgen");
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let sources = ["loadgen/src", "canvas/src"].map(|sources| workspace.join(sources));
        let newest = sources.iter().map(|sources| newest_file(sources)).max().unwrap();
        let built = fs::metadata(&program).and_then(|program| program.modified());
        if built.is_ok_and(|built| built >= newest) {
            return program;
        }
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--package", "loadgen", "--manifest-path"]).arg(workspace.join("Cargo.toml"));
        build.arg("--target-dir").arg(directory.parent().unwrap());
        if directory.ends_with("release") {
            build.arg("--release");
        }
        let status = build.status().expect("cargo");
        assert!(status.success(), "these tests need the load generator; type: cargo build -p loadgen");
        program
    })
}

/// When the newest file below `directory` was changed.
fn newest_file(directory: &Path) -> SystemTime {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let changed = |path: PathBuf| match path.is_dir() {
        true => newest_file(&path),
        false => fs::metadata(path).unwrap().modified().unwrap(),
    };
    entries.map(changed).max().unwrap_or(SystemTime::UNIX_EPOCH)
}
