//! Every row of the diagnosis, provoked by constructed files that go all the way through reading and
//! measuring; and the same files without the provocation, which are healthy.

use std::fmt::Write as _;
use std::fs;

use serde_json::{Value, json};

use super::super::folder;
use super::super::measure::Measured;
use super::super::report::Analysis;
use super::*;
use crate::report::{PhaseTimes, Report};
use crate::sample::Stage;
use crate::stats::Distribution;
use std::time::Duration;

/// Seconds of the run: a ramp of 5, a window of 20, a drain of 5.
const SECONDS: u64 = 30;
const STARTED_UNIX_MS: u64 = 1_735_732_800_000; // 2025-01-01T12:00:00Z

/// A column's value at a second.
type OfTime = fn(u64) -> f64;

/// A folder in the making: a healthy run of 100 clients on two queues of `backend`, to be spoilt.
struct Run {
    report: Value,
    /// Fields of each `second` of the server.
    second: Value,
    start: Value,
    /// Counters of worker 0 at the end.
    summary: Value,
    /// Columns of the CSV, as functions of time.
    columns: Vec<(&'static str, OfTime)>,
    dmesg: String,
    /// Files not to write.
    without: &'static [&'static str],
}

impl Run {
    fn on(backend: &str) -> Run {
        let worker = json!({"connections": 50, "messages_per_s": 1500, "rx_packets_per_s": 1500,
                            "drops_per_s": 0, "working": 0.4});
        Run {
            report: serde_json::to_value(Report {
                id: "a".to_owned(),
                target: "https://10.0.0.1".to_owned(),
                started_unix_ms: STARTED_UNIX_MS,
                clients: 100,
                connections: 100,
                pixels_per_s: 3000.0,
                phases: vec![
                    PhaseTimes { name: Stage::Ramp, start_s: 0.0, end_s: 5.0 },
                    PhaseTimes { name: Stage::Window, start_s: 5.0, end_s: 25.0 },
                    PhaseTimes { name: Stage::Drain, start_s: 25.0, end_s: 30.0 },
                ],
                ..Report::default()
            })
            .unwrap(),
            second: json!({"interval_s": 1.0, "connections": 100, "messages_per_s": 3000,
                           "rx_packets_per_s": 3000, "tx_packets_per_s": 2000, "drops": {},
                           "master_working": 0.1, "workers": [worker.clone(), worker]}),
            start: json!({"backend": backend, "queues": 2}),
            summary: json!({"fill_ring_empty": 0, "sq_full": 0, "refused_full": 0}),
            columns: vec![
                ("rss_mb", |t| 100.0 + (t % 3) as f64),
                ("rcvbuf_err", |_| 7.0),
                ("fill_ring_empty", |_| 0.0),
                ("sq_full", |_| 0.0),
                ("conntrack_count", |_| 200.0),
                ("conntrack_max", |_| 65_536.0),
            ],
            dmesg: "[1.0] eth0: link is up\n".to_owned(),
            without: &[],
        }
    }

    fn column(mut self, name: &str, values: OfTime) -> Run {
        let column = self.columns.iter_mut().find(|column| column.0 == name).expect("a column of this name");
        column.1 = values;
        self
    }

    fn drops(mut self, cause: &str, each_second: u64) -> Run {
        self.second["drops"][cause] = each_second.into();
        self
    }

    fn analysis(&self) -> Analysis {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| {
            if !self.without.contains(&name) {
                fs::write(folder.path().join(name), text).unwrap();
            }
        };
        let line = |event: &str, t: u64, fields: &Value| {
            let mut object = fields.clone();
            object["event"] = event.into();
            object["time"] = format!("2025-01-01T12:00:{t:02}Z").into();
            object.to_string() + "\n"
        };
        let mut server = line("start", 0, &self.start);
        (1..=SECONDS).for_each(|t| server += &line("second", t, &self.second));
        server += &line("summary", SECONDS, &json!({"workers": [self.summary, {}]}));
        let mut csv = "timestamp".to_owned();
        self.columns.iter().for_each(|(name, _)| write!(csv, ",{name}").unwrap());
        for t in 0..=SECONDS {
            write!(csv, "\n{}", STARTED_UNIX_MS / 1000 + t).unwrap();
            self.columns.iter().for_each(|(_, value)| write!(csv, ",{}", value(t)).unwrap());
        }
        let timeline = (1..=SECONDS).map(|t| {
            let latency = json!({"p50": 25.0, "count": 9});
            json!({"t_s": t, "connections": 100, "pixels_sent": 3000 * t, "latency_ms": latency}).to_string()
                + "\n"
        });
        write("loadgen-a.json", self.report.to_string());
        write("timeline-a.jsonl", timeline.collect());
        write("server.jsonl", server);
        write("monitor.csv", csv);
        write("dmesg.txt", self.dmesg.clone());
        write("host.json", "{}".to_owned());
        Analysis::of(folder.path()).unwrap()
    }

    /// That the verdict is this, that nothing else is found, and that the evidence has these figures.
    fn is(&self, id: &str, figures: &[&str]) {
        let verdict = self.analysis().verdict;
        assert_eq!(verdict.verdict, id, "{verdict:#?}");
        let ids: Vec<&str> = verdict.findings.iter().map(|finding| finding.id).collect();
        assert_eq!(ids, [id], "{verdict:#?}");
        let finding = &verdict.findings[0];
        for figure in figures {
            assert!(finding.evidence.contains(figure), "no {figure:?} in {finding:#?}");
        }
        assert!(!finding.remedy.is_empty());
    }

    fn found(&self) -> Vec<(&'static str, Severity)> {
        self.analysis().verdict.findings.iter().map(|finding| (finding.id, finding.severity)).collect()
    }
}

#[test]
fn a_healthy_run_is_called_healthy_on_every_backend() {
    for backend in ["xdp", "io_uring", "socket"] {
        let verdict = Run::on(backend).analysis().verdict;
        assert_eq!((verdict.verdict, verdict.findings.len()), (HEALTHY, 0), "{backend}: {verdict:#?}");
        assert!(
            verdict.checks.iter().all(|check| matches!(check.outcome, Outcome::Clear(_))),
            "{verdict:#?}"
        );
        assert!(verdict.sentence.contains("40% busy"), "{}", verdict.sentence);
    }
}

#[test]
fn receive_buffer_overflow_by_the_server_and_by_the_kernel() {
    // 19 whole seconds of the window: 30 of 3030 packets each, that is 1 %.
    let run = Run::on("socket").drops("rx_kernel_drops", 30);
    run.is("receive_buffer_overflow", &["570 lost", "(0.9901%)", "330 outside of the window"]);
    assert!(run.analysis().verdict.findings[0].remedy.contains("--socket-recv-buffer"));
    // The window's 20 seconds of the CSV: 100 each.
    let mut run = Run::on("io_uring").column("rcvbuf_err", |t| 100.0 * t as f64);
    assert_eq!(run.found(), [("receive_buffer_overflow", Severity::Note)]);
    run.without = &["server.jsonl"];
    run.is("receive_buffer_overflow", &["2000 lost"]);
    let run = Run::on("xdp").drops("rx_kernel_drops", 30);
    run.is("receive_buffer_overflow", &["570 lost"]);
    assert!(run.analysis().verdict.findings[0].remedy.contains("--poll busy"));
}

#[test]
fn few_losses_are_a_note_and_the_run_healthy() {
    let run = Run::on("socket").drops("rx_kernel_drops", 1);
    assert_eq!(run.found(), [("receive_buffer_overflow", Severity::Note)]);
    assert_eq!(run.analysis().verdict.verdict, HEALTHY);
    // Losses in the ramp do not count, but are told.
    let mut ramp = Run::on("socket").column("rcvbuf_err", |t| if t < 3 { 0.0 } else { 50_000.0 });
    ramp.without = &["server.jsonl"];
    assert_eq!(ramp.found(), [("receive_buffer_overflow", Severity::Note)]);
}

#[test]
fn fill_ring_empty_is_told_from_a_full_receive_ring() {
    // The kernel counts each of these packets under both.
    let mut run = Run::on("xdp").drops("rx_kernel_drops", 30).column("fill_ring_empty", |t| 30.0 * t as f64);
    run.summary["fill_ring_empty"] = 900.into();
    run.is("fill_ring_empty", &["600 lost"]);
    assert!(Run::on("socket").column("fill_ring_empty", |t| 30.0 * t as f64).found().is_empty());
}

#[test]
fn one_core_busy_the_others_idle() {
    let mut run = Run::on("xdp");
    run.second["workers"][0] = json!({"rx_packets_per_s": 3000, "messages_per_s": 3000, "working": 0.97});
    run.second["workers"][1] = json!({"rx_packets_per_s": 2, "messages_per_s": 2, "working": 0.01});
    run.is("one_core_busy", &["queue 0", "97% busy", "skew 2.00"]);
    assert_eq!(run.found()[0].1, Severity::Limit);
    assert!(run.analysis().verdict.findings[0].remedy.contains("--align-queues"));
    // The same with room left is no limit yet, but will be.
    run.second["workers"][0]["working"] = 0.5.into();
    assert_eq!(run.found(), [("one_core_busy", Severity::Fault)]);
    // Uneven to a degree that hashing makes is not.
    run.second["workers"][1] = json!({"rx_packets_per_s": 1800, "working": 0.3});
    assert!(run.found().is_empty());
    // And what an idle server receives says nothing.
    run.second["workers"][0]["rx_packets_per_s"] = 20.into();
    run.second["workers"][1]["rx_packets_per_s"] = 0.into();
    assert!(run.found().is_empty());
}

#[test]
fn servers_cores_and_the_masters() {
    let mut run = Run::on("xdp");
    run.second["workers"][0]["working"] = 0.98.into();
    run.second["workers"][1]["working"] = 0.96.into();
    run.is("server_cpu", &["97%", "98%"]);
    let mut run = Run::on("xdp");
    run.second["master_working"] = 0.95.into();
    run.is("master_busy", &["95%"]);
}

#[test]
fn connection_tracking_full_by_its_count_or_by_the_kernels_word() {
    Run::on("socket").column("conntrack_count", |_| 65_000.0).is("conntrack_full", &["65000 of 65536"]);
    let mut run = Run::on("socket");
    run.dmesg = "[9.1] nf_conntrack: nf_conntrack: table full, dropping packet\n".repeat(3);
    run.is("conntrack_full", &["3 lines"]);
}

#[test]
fn memory_growing_with_constant_connections_only() {
    let growing = |t: u64| 100.0 + 2.0 * t as f64;
    Run::on("xdp").column("rss_mb", growing).is("memory_growing", &["+120.0 MB a minute", "100 connections"]);
    // Warming up, then constant.
    assert!(Run::on("xdp").column("rss_mb", |t| 100.0 + 5.0 * t.min(9) as f64).found().is_empty());
    // Clients that are still coming take memory: that is no growth, and nothing can be said.
    let mut run = Run::on("xdp").column("rss_mb", growing);
    run.start["queues"] = 2.into();
    run.without = &["server.jsonl"];
    run.columns.push(("connections", |t| 10.0 * t as f64));
    let verdict = run.analysis().verdict;
    let memory = verdict.checks.iter().find(|check| check.id == "memory_growing").unwrap();
    assert_eq!(memory.outcome, Outcome::Unknown("connections were not constant: 50 to 250".to_owned()));
}

#[test]
fn the_connection_cap_by_the_clients_and_by_the_server() {
    let mut run = Run::on("xdp");
    run.report["failures_by_cause"] = json!({"SERVER_FULL": 40});
    run.is("connection_cap", &["40 clients"]);
    let remedy = &run.analysis().verdict.findings[0].remedy;
    // 100 clients on two workers, and half as many again.
    assert!(remedy.contains("--max-connections-per-worker 128"), "{remedy}");
    let mut run = Run::on("xdp");
    run.summary["refused_full"] = 12.into();
    run.is("connection_cap", &["counts 12 refusals"]);
    run.report["clients"] = 480_000.into();
    assert!(run.analysis().verdict.findings[0].remedy.contains("--queues 11"));
}

#[test]
fn submission_queue_full_by_its_share_of_packets() {
    let run = Run::on("io_uring").column("sq_full", |t| 100.0 * t as f64); // 5 % of 2000 packets a second
    run.is("submission_queue_full", &["2000 times"]);
    assert_eq!(run.found()[0].1, Severity::Fault);
    let run = Run::on("io_uring").column("sq_full", |t| t as f64);
    assert_eq!(run.found(), [("submission_queue_full", Severity::Note)]);
    assert!(Run::on("socket").column("sq_full", |t| 100.0 * t as f64).found().is_empty());
}

#[test]
fn paint_queue_full() {
    Run::on("xdp").drops("pixels_overload", 300).is("paint_queue_full", &["5700 lost", "pixels"]);
}

#[test]
fn the_client_is_the_limit_when_it_says_so() {
    let mut run = Run::on("xdp");
    run.report["limited_by_client"] = "a thread was busy 97 % of the window".into();
    run.report["client"]["cpu_share"] = 0.95.into();
    run.is("client_limited", &["97 %", "client CPU 95%"]);
}

#[test]
fn what_the_server_loses_or_refuses_is_the_verdict_though_the_client_was_a_limit_too() {
    let mut run = Run::on("socket").drops("rx_kernel_drops", 30);
    run.report["limited_by_client"] = "busy".into();
    let ids: Vec<&str> = run.found().iter().map(|finding| finding.0).collect();
    assert_eq!(ids, ["receive_buffer_overflow", "client_limited"]);
}

#[test]
fn failures_of_no_known_cause_and_failed_runs_are_not_healthy() {
    let mut run = Run::on("xdp");
    run.report["failed"] = 3.into();
    run.report["failures_by_cause"] = json!({"timed out": 3});
    run.is("connections_failed", &["3 x timed out"]);
    let mut run = Run::on("xdp");
    run.report["error"] = "the server died".into();
    run.is("run_failed", &["the server died"]);
}

#[test]
fn what_cannot_be_judged_is_said_not_called_clear() {
    let mut run = Run::on("xdp");
    run.without = &["monitor.csv", "dmesg.txt"];
    let analysis = run.analysis();
    assert_eq!(analysis.verdict.verdict, HEALTHY);
    assert!(analysis.verdict.sentence.contains("not judged"), "{}", analysis.verdict.sentence);
    assert!(analysis.notes.iter().any(|note| note == "monitor.csv is missing"), "{:?}", analysis.notes);
    run.without = &["server.jsonl", "monitor.csv", "dmesg.txt", "timeline-a.jsonl"];
    let unknown =
        run.analysis().verdict.checks.iter().filter(|c| matches!(c.outcome, Outcome::Unknown(_))).count();
    assert_eq!(unknown, 9);
}

#[test]
fn files_cut_off_anywhere_are_read_as_far_as_they_go() {
    let run = Run::on("xdp");
    let folder = tempfile::tempdir().unwrap();
    let names = ["loadgen-a.json", "timeline-a.jsonl", "server.jsonl", "monitor.csv"];
    let whole: Vec<String> = {
        // The same files as `analysis` makes: from a folder that lives long enough to be read.
        let lines = |n: u64| -> String { (1..=n).map(|t| json!({"t_s": t}).to_string() + "\n").collect() };
        let second = |t: u64| {
            let mut second = run.second.clone();
            second["event"] = "second".into();
            second["time"] = format!("2025-01-01T12:00:{t:02}Z").into();
            second.to_string() + "\n"
        };
        vec![
            run.report.to_string(),
            lines(4),
            (1..=4).map(second).collect(),
            "timestamp,rss_mb\n1735732801,5\n1735732802,6\n".to_owned(),
        ]
    };
    for cut in 0..=100 {
        for (name, text) in names.iter().zip(&whole) {
            fs::write(folder.path().join(name), &text[..text.len() * cut / 100]).unwrap();
        }
        let results = folder::read(folder.path()).expect("the folder is one of results");
        let verdict = diagnose(&results, &Measured::of(&results));
        assert_eq!(verdict.checks.len(), CHECKS.len());
        let analysis = Analysis::of(folder.path()).unwrap();
        assert!(analysis.html().contains("</html>") && analysis.text().starts_with("verdict"));
    }
}

#[test]
fn several_processes_are_one_run() {
    let encoded = |from: u64| {
        let mut times = Distribution::default();
        (from..from + 1000).for_each(|ms| times.record(Duration::from_millis(ms)));
        String::from(times)
    };
    let folder = tempfile::tempdir().unwrap();
    for (id, late, from) in [("a", 0, 1), ("b", 2000, 1001)] {
        let mut run = Run::on("xdp").report;
        run["id"] = id.into();
        run["started_unix_ms"] = (STARTED_UNIX_MS + late).into();
        run["processes"] = 1.into();
        run["histograms"]["latency_us"] = encoded(from).into();
        run["queues"] = json!([{"queue": 0, "connections": 60, "ports": 3}]);
        fs::write(folder.path().join(format!("loadgen-{id}.json")), run.to_string()).unwrap();
        let timeline: String = (1..=SECONDS)
            .map(|t| json!({"t_s": t, "connections": 100, "pixels_sent": 3000 * t}).to_string() + "\n")
            .collect();
        fs::write(folder.path().join(format!("timeline-{id}.jsonl")), timeline).unwrap();
    }
    let clients = folder::read(folder.path()).unwrap().clients.unwrap();
    assert_eq!(clients.window(), Some((7.0, 25.0)));
    let report = &clients.report;
    assert_eq!((report.clients, report.processes, report.pixels_per_s), (200, 2, 6000.0));
    assert_eq!((report.latency_ms.count, report.queues.as_ref().unwrap()[0].connections), (2000, 120));
    let p50 = report.latency_ms.p50.unwrap();
    assert!((p50 - 1000.0).abs() <= 1.0, "{p50}");
    let last = clients.curves[0].points.last().unwrap();
    assert!((last.1 - 2000.0).abs() <= 2.0 && last.0 == 2000.0, "{last:?}");
    // b began two seconds later: in the first second there is a alone, in the tenth both.
    let rate = |second: usize| clients.timeline[second - 1].pixels_per_s;
    assert_eq!((rate(1), rate(10), rate(31)), (3000.0, 6000.0, 3000.0));
}
