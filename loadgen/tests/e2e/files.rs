//! Result files, several processes, and the errors that a run can end with.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::fake::{FakeServer, Fault};
use crate::program::{json, loadgen, text};
use loadgen::results::read_report;
use loadgen::stats::Distribution;
use serde_json::Value;

/// Runs a measured second of 20 clients, all of whose paints are timed, with these flags.
fn measured(server: &FakeServer, out: &Path, flags: &[&str]) -> Output {
    let mut command = loadgen(server);
    command.args(["--duration", "1"]).args(["--watchers", "20", "--json", "--quiet", "--out"]);
    command.arg(out).args(flags);
    command.output().unwrap()
}

/// Every sample of a distribution, to the width of its buckets.
fn samples(times: &Distribution) -> Vec<u64> {
    let buckets = times.microseconds().iter_recorded();
    buckets.flat_map(|b| vec![b.value_iterated_to(); b.count_at_value() as usize]).collect()
}

fn lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn two_processes_results_join_into_that_of_all_their_samples() {
    let server = FakeServer::start(Fault::None);
    let folder = tempfile::tempdir().unwrap();
    let mut all = Vec::new();
    for id in ["one", "two"] {
        let output = measured(&server, folder.path(), &["--id", id, "--warmup", "0.5"]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let report = read_report(&folder.path().join(format!("loadgen-{id}.json"))).unwrap();
        assert!(report.latency_ms.count > 100);
        all.extend(samples(&report.histograms.latency_us));
    }
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let joined = file("both.json");
    let output = Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .args(["--join", &file("loadgen-one.json"), &file("loadgen-two.json"), "--out", &joined, "--json"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let mut together = Distribution::default();
    all.iter().for_each(|&us| together.record(std::time::Duration::from_micros(us)));
    let report = read_report(Path::new(&joined)).unwrap();
    assert_eq!(report.histograms.latency_us, together);
    assert_eq!((report.processes, report.clients, report.latency_ms.count), (2, 40, all.len() as u64));
    assert_eq!(json(&output)["latency_ms"]["p99"], report.latency_ms.p99.unwrap());
}

#[test]
fn pinned_processes_share_the_clients_and_make_one_report() {
    let server = FakeServer::start(Fault::None);
    let folder = tempfile::tempdir().unwrap();
    let output = measured(&server, folder.path(), &["--processes", "2", "--warmup", "1.2", "--verify"]);
    let report = json(&output);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!((&report["processes"], &report["verified"]), (&2.into(), &true.into()));
    assert_eq!((&report["connections"], &report["failed"]), (&20.into(), &0.into()));
    let counted = report["latency_ms"]["count"].as_u64().unwrap();
    assert!(counted > 100, "{counted}");
    assert_eq!(report["handshake_ms"]["count"], 20);
    let stages: Vec<_> = report["phases"].as_array().unwrap().iter().map(|p| p["name"].clone()).collect();
    assert_eq!(stages, ["ramp", "warmup", "window", "drain"]);
    let timeline = lines(&folder.path().join("timeline-loadgen.jsonl"));
    assert!(timeline.len() >= 3 && timeline.iter().any(|line| line["connections"] == 20), "{timeline:#?}");
    let last = timeline.last().unwrap();
    assert!(last["pixels_sent"].as_u64() >= report["pixels_sent"].as_u64(), "{last:#}");
}

/// The parent reads standard input, once; each process binds sockets of its own.
#[test]
fn processes_align_with_what_their_parent_was_told() {
    let server = FakeServer::start(Fault::None);
    let mut command = loadgen(&server);
    command.args(["--processes", "2", "--threads", "1", "--num-endpoints", "6", "--duration", "0.3"]);
    command.args(["--align-queues", "--rss-config", "-", "--json", "--quiet"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = command.spawn().unwrap();
    let fields = ["src_ip", "dst_ip", "src_port", "dst_port"];
    let key = "6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa";
    let told = serde_json::json!({ "queues": 4, "key": key, "indirection": [0, 1, 2, 3],
        "fields": { "udp4": fields, "udp6": fields } });
    running.stdin.take().unwrap().write_all(told.to_string().as_bytes()).unwrap();
    let output = running.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let share = |queue| serde_json::json!({ "queue": queue, "connections": 5, "ports": 2 });
    assert_eq!(json(&output)["queues"], (0..4).map(share).collect::<Value>());
}

#[test]
fn warm_up_does_not_count() {
    let server = FakeServer::start(Fault::None);
    let folder = tempfile::tempdir().unwrap();
    let output = measured(&server, folder.path(), &["--warmup", "1.5"]);
    let report = json(&output);
    let (window, run) =
        (report["pixels_sent"].as_u64().unwrap(), report["pixels_sent_run"].as_u64().unwrap());
    // One second of two and a half.
    assert!(window > 0 && window * 2 < run + run / 10, "{window} of {run}");
    let phase = |index: usize, field: &str| report["phases"][index][field].as_f64().unwrap();
    assert!(phase(1, "end_s") - phase(1, "start_s") >= 1.5);
    assert_eq!((&report["partial"], &report["interrupted"]), (&false.into(), &false.into()));
    let timeline = lines(&folder.path().join("timeline-loadgen.jsonl"));
    assert!(timeline.iter().any(|line| line["phase"] == "warmup"), "{timeline:#?}");
}

#[test]
fn a_refused_token_is_exit_code_5() {
    let server = FakeServer::start(Fault::Unauthorized);
    for (flags, words) in [(&[][..], "wants a token"), (&["--token", "wrong"], "refused it")] {
        let output = loadgen(&server).args(flags).args(["--json", "--quiet"]).output().unwrap();
        assert_eq!(output.status.code(), Some(5));
        assert_eq!(json(&output)["failure"], "token_refused");
        let said = text(&output.stderr);
        assert!(said.contains(words) && said.contains("--token TOKEN"), "{said}");
    }
}

#[test]
fn a_server_that_dies_is_exit_code_4_also_of_processes() {
    let folder = tempfile::tempdir().unwrap();
    for processes in ["1", "2"] {
        let server = FakeServer::start(Fault::CloseAll(5));
        let flags = ["--duration", "30", "--processes", processes, "--out"];
        let mut command = loadgen(&server);
        let output = command.args(flags).arg(folder.path()).args(["--json", "--quiet"]).output().unwrap();
        assert_eq!(output.status.code(), Some(4), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains("every connection was lost"), "{}", text(&output.stderr));
        let report = json(&output);
        assert_eq!((&report["partial"], &report["failed"]), (&true.into(), &20.into()));
        assert!(report["pixels_sent"].as_u64().unwrap() > 0, "a partial report");
    }
}

#[test]
fn results_that_cannot_be_written_are_exit_code_6_and_the_report_is_printed() {
    let server = FakeServer::start(Fault::None);
    let folder = tempfile::tempdir().unwrap();
    // Not a folder.
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let output = measured(&server, &file, &[]);
    assert_eq!(output.status.code(), Some(6));
    assert!(text(&output.stderr).contains(file.to_str().unwrap()), "{}", text(&output.stderr));
    // A disk that is full from the start: the first line of the timeline does not fit.
    std::os::unix::fs::symlink("/dev/full", folder.path().join("timeline-full.jsonl")).unwrap();
    for processes in ["1", "2"] {
        let mut command = loadgen(&server);
        command.args(["--id", "full", "--duration", "60", "--json", "--quiet", "--processes", processes]);
        let output = command.arg("--out").arg(folder.path()).output().unwrap();
        assert_eq!(output.status.code(), Some(6), "{}", text(&output.stderr));
        let said = text(&output.stderr);
        assert!(said.contains("timeline-full.jsonl") && said.contains("make room"), "{said}");
        let report = json(&output);
        assert_eq!((&report["partial"], &report["connections"]), (&true.into(), &20.into()));
        assert_eq!(report["failure"], "unwritten");
    }
}

#[test]
fn files_that_are_no_results_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("notes.txt");
    fs::write(&file, "hello").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadgen"));
    let output = command.arg("join").arg(&file).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("notes.txt is no result of loadgen"), "{}", text(&output.stderr));
}
