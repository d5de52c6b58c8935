//! The programs against each other, over loopback: every server applies exactly what the client sends.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const SATURATE: &str = env!("CARGO_BIN_EXE_saturate");
const QUICHE: &str = env!("CARGO_BIN_EXE_peer-quiche");
const QUINN: &str = env!("CARGO_BIN_EXE_peer-quinn");

/// Seconds after which a server ends on its own, also when its test was killed.
const LONGEST: &str = "120";

/// A running server, killed when it is dropped.
struct Server {
    child: Child,
    lines: Box<dyn Iterator<Item = Value>>,
    address: String,
}

impl Server {
    /// Starts a server on a port that nobody has; it must take `--listen` and `--duration`.
    fn start(mut command: Command) -> Self {
        let port = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        command.args(["--listen", &address, "--duration", LONGEST]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut lines =
            output.map(|line| serde_json::from_str::<Value>(&line.unwrap()).expect("a line of JSON"));
        assert_eq!(lines.next().expect("it starts")["event"], "start");
        Self { child, lines: Box::new(lines), address }
    }

    /// Ends it by SIGTERM. Returns its summary.
    fn stop(mut self) -> Value {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM).unwrap();
        let summary = self.lines.by_ref().last().expect("a summary");
        assert!(self.child.wait().unwrap().success());
        assert_eq!(summary["event"], "summary");
        summary
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn saturate(target: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(SATURATE);
    command.args(["--target", target, "--via", "udp", "--json"]).args(arguments);
    command.stdin(Stdio::null()).output().unwrap()
}

/// Runs the client. Returns its report.
fn report(target: &str, arguments: &[&str]) -> Value {
    let output = saturate(target, arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("a JSON object")
}

/// The server counts what the client sent: to the packet, as a rate that any machine takes loses none.
fn counts_what_was_sent(server: Server) {
    let report = report(&server.address, &["--connections", "70", "--rate", "4000", "--seconds", "0.5"]);
    assert_eq!(report["packets_sent"], 2000);
    assert_eq!(report["applied"], 2000);
    assert_eq!((&report["rejected"], &report["loss"]), (&0.into(), &0.0.into()));
    let summary = server.stop();
    assert_eq!(summary["pixels_applied"], 2000);
}

/// Every watcher gets every tick, without a gap.
fn broadcasts_without_gaps(server: Server) {
    let report = report(&server.address, &["--watch", "20", "--pixels", "400", "--seconds", "1"]);
    assert_eq!(report["version_gaps"], 0);
    assert_eq!(report["ticks"], report["ticks_complete"]);
    assert!(report["ticks"].as_u64() >= Some(5), "{report}");
    assert!(report["diff_datagrams"].as_u64() >= Some(20 * 5), "{report}");
}

/// Handshakes succeed, and are resumed if and only if that was asked for.
fn shakes_hands(server: Server) {
    let full = report(&server.address, &["--handshakes", "--seconds", "0.3"]);
    assert!(full["handshakes"].as_u64() >= Some(1), "{full}");
    assert_eq!(full["resumed"], 0);
    let resumed = report(&server.address, &["--handshakes", "--resume", "--seconds", "0.3"]);
    assert!(resumed["handshakes"].as_u64() >= Some(1), "{resumed}");
    assert_eq!(resumed["resumed"], resumed["handshakes"]);
}

#[test]
fn quiche_counts_what_was_sent() {
    counts_what_was_sent(Server::start(Command::new(QUICHE)));
}

#[test]
fn quinn_counts_what_was_sent() {
    counts_what_was_sent(Server::start(Command::new(QUINN)));
}

#[test]
fn xdp_server_counts_what_was_sent() {
    let state = tempfile::tempdir().unwrap();
    let mut command = Command::new(xdp_server());
    command.args(["--backend", "socket", "--queues", "1", "--json", "--state"]).arg(state.path());
    counts_what_was_sent(Server::start(command));
}

#[test]
fn quiche_broadcasts_without_gaps() {
    broadcasts_without_gaps(Server::start(Command::new(QUICHE)));
}

#[test]
fn quinn_broadcasts_without_gaps() {
    broadcasts_without_gaps(Server::start(Command::new(QUINN)));
}

#[test]
fn quiche_shakes_hands() {
    shakes_hands(Server::start(Command::new(QUICHE)));
}

#[test]
fn quinn_shakes_hands() {
    shakes_hands(Server::start(Command::new(QUINN)));
}

#[test]
fn a_search_finds_a_rate_and_what_is_left_in_overload() {
    let server = Server::start(Command::new(QUICHE));
    let report = report(
        &server.address,
        &[
            "--connections",
            "20",
            "--search",
            "--rate",
            "500",
            "--most",
            "600",
            "--seconds",
            "0.2",
            "--loss",
            "5",
        ],
    );
    assert!(report["lossless"]["packets_sent"].as_u64() >= Some(100), "{report}");
    assert!(report["overload"]["applied"].as_u64() >= Some(1), "{report}");
    let best = report["most"]["messages_per_s"].as_f64();
    let attempts = report["attempts"].as_array().unwrap();
    assert!(attempts.iter().all(|attempt| attempt["messages_per_s"].as_f64() <= best), "{report}");
}

#[test]
fn a_server_that_is_not_there_is_exit_code_1_and_ctrl_c_130() {
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let target = silent.local_addr().unwrap().to_string();
    let mut command = Command::new(SATURATE);
    command.args(["--target", &target, "--via", "udp"]).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    // When its first packet has come it is at work.
    silent.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    silent.recv(&mut [0; 2000]).unwrap();
    let asked = Instant::now();
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(asked.elapsed() < Duration::from_secs(5));
    assert_eq!(saturate(&target, &["--seconds", "0"]).status.code(), Some(2));
    assert_eq!(saturate(&target, &["--search", "--watch", "3"]).status.code(), Some(2));
    let output = saturate(&target, &["--connections", "3"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("answers no more"));
}

/// xdp-server's program, beside ours. `cargo test --workspace` has built it; where only this crate is tested
/// it is built now.
fn xdp_server() -> PathBuf {
    let directory = Path::new(SATURATE).parent().unwrap();
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--locked", "--quiet", "--package", "xdp-server", "--manifest-path"]);
    build.arg(workspace.join("Cargo.toml")).arg("--target-dir").arg(directory.parent().unwrap());
    if directory.ends_with("release") {
        build.arg("--release");
    }
    assert!(build.status().expect("cargo").success(), "these tests need xdp-server");
    directory.join("xdp-server")
}
