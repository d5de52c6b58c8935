//! The program from outside: exit codes, streams, signals.

use std::net::Ipv4Addr;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::fake::{FakeServer, Fault};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

pub fn loadgen(server: &FakeServer) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadgen"));
    command.args(["--target", &format!("https://{}", server.addr)]).args([
        "--clients",
        "20",
        "--connect-timeout",
        "3",
    ]);
    command
}

pub fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).expect("UTF-8")
}

pub fn json(output: &Output) -> Value {
    let last = text(&output.stdout).lines().last().expect("a last line");
    serde_json::from_str(last).expect("a JSON object")
}

#[test]
fn wrong_usage_is_exit_code_2() {
    for args in [&["--target", "http://x"][..], &[], &["--target", "https://x", "--no-such-flag"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_loadgen")).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(text(&output.stderr).contains("--target") || text(&output.stderr).contains("--no-such-flag"));
    }
}

#[test]
fn an_unreachable_target_is_exit_code_3_and_still_json() {
    let args = ["--target", "https://127.0.0.1:1", "--connect-timeout", "0.3", "--json", "--id", "nobody"];
    let output = Command::new(env!("CARGO_BIN_EXE_loadgen")).args(args).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(json(&output)["id"], "nobody");
    assert_eq!(json(&output)["connections"], 0);
    assert!(text(&output.stderr).contains("cannot reach https://127.0.0.1:1"));
}

#[test]
fn a_pinned_certificate_must_be_the_servers() {
    use sha2::{Digest, Sha256};
    let server = FakeServer::start(Fault::None);
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let right = hex(&Sha256::digest(&server.certificate));
    let output = loadgen(&server).args(["--duration", "0.2", "--cert-sha256", &right]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let output = loadgen(&server).args(["--cert-sha256", &"00".repeat(32)]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stderr).contains(&right), "{}", text(&output.stderr));
}

#[test]
fn progress_goes_to_stderr_and_the_table_to_stdout() {
    let server = FakeServer::start_at(Ipv4Addr::LOCALHOST.into(), Fault::None);
    let output = loadgen(&server).args(["--duration", "2.2", "--id", "m1"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let progress: Vec<_> = text(&output.stderr).lines().collect();
    assert!(progress.iter().all(|line| line.starts_with("[m1] ")), "{progress:#?}");
    assert!(progress.iter().filter(|line| line.contains("window: 20 connected, 0 failed")).count() >= 1);
    assert!(text(&output.stdout).contains("20 of 20 came up"));
    let output = loadgen(&server).args(["--duration", "0.2", "--quiet"]).output().unwrap();
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn ctrl_c_ends_the_load_and_verifies() {
    let server = FakeServer::start(Fault::None);
    let child = loadgen(&server)
        .args(["--verify", "--json", "--quiet"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_secs(2));
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(json(&output)["verified"], true);
    assert_eq!(json(&output)["failed"], 0);
}

#[test]
fn a_second_ctrl_c_quits_at_once() {
    let server = FakeServer::start(Fault::None);
    let mut child = loadgen(&server).args(["--verify", "--quiet"]).stdout(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let pid = Pid::from_raw(child.id() as i32);
    kill(pid, Signal::SIGINT).unwrap();
    // Two signals in one instant are one; and a verification takes longer than this.
    std::thread::sleep(Duration::from_millis(500));
    kill(pid, Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
}
