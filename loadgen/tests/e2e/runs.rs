//! Whole runs against a server in the same process, honest and faulty. Verification is worth something only
//! if it fails where it should: each fault of the server has a test that demands to be told of it.

use std::time::{Duration, Instant};

use crate::fake::{FakeServer, Fault, HEIGHT, WIDTH};
use loadgen::cli::Settings;
use loadgen::report::{EXIT_FAILED, EXIT_OK, EXIT_SERVER_DIED, EXIT_UNREACHABLE, Report};
use loadgen::target::Target;

/// 50 clients for 2 s, verified, a tenth of the paints acknowledged.
fn settings(server: &FakeServer) -> Settings {
    Settings {
        duration: Some(Duration::from_secs(2)),
        verify: true,
        watchers: 4,
        frame_share: 0.1,
        endpoints: 5,
        threads: 2,
        quiet: true,
        // The fake server loses nothing, unless told to: no VERSIONS need be waited for.
        rest: Duration::from_secs(1),
        ..Settings::new(Target::at(server.addr), 50)
    }
}

async fn run(settings: Settings) -> Report {
    let report = loadgen::run(settings, std::future::pending()).await;
    println!("{}", report.table(false));
    report
}

/// Runs against a server with this fault, which verification must find and name so.
async fn caught(fault: Fault, named: &str) {
    let server = FakeServer::start(fault);
    let report = run(settings(&server)).await;
    assert_eq!(report.verified, Some(false));
    assert_eq!(report.exit_code(), EXIT_FAILED);
    let error = report.verify_error.expect("a reason");
    assert!(error.contains(named), "{error}");
}

#[tokio::test]
async fn an_honest_server_is_verified() {
    let server = FakeServer::start(Fault::None);
    let report = run(Settings { max_conn_jitter: Duration::from_millis(300), ..settings(&server) }).await;
    assert_eq!((report.verified, &report.verify_error, &report.error), (Some(true), &None, &None));
    assert_eq!(report.exit_code(), EXIT_OK);
    assert_eq!((report.connections, report.connections_peak, report.failed), (50, 50, 0));
    assert!(report.failures_by_cause.is_empty());
    // 50 clients, one paint in 35 ms each, 2 s: about 2,900.
    assert!((2_000..4_500).contains(&report.pixels_sent), "{}", report.pixels_sent);
    assert_eq!(report.pixels_sent, report.pixels_sent_datagram + report.pixels_sent_frame);
    assert!(report.pixels_sent_frame > 100);
    assert_eq!((report.pixels_acked, report.pixels_rejected), (report.pixels_sent_frame, 0));
    let (applied, sent) = (report.pixels_applied.expect("the server's count"), report.pixels_sent_run);
    assert!(applied <= sent && applied >= sent * 9 / 10, "{applied}");
    assert!(sent >= report.pixels_sent);
    assert!(report.pixels_proven.expect("nobody else paints") > 100);
    assert!(report.diff_datagrams > 4 * 20 && report.records_applied > report.diff_datagrams);
    assert_eq!(report.handshake_ms.count, 50);
    assert!(report.ping_ms.count >= 4);
    // A paint waits for the tick, 25 ms on average; a busy machine may take longer, but not this long.
    let p50 = report.latency_ms.p50.expect("paints of watchers were timed");
    assert!((5.0..1_000.0).contains(&p50), "{p50}");
    assert!(report.latency_ms.count > 100);
}

#[tokio::test]
async fn lost_diffs_are_repaired() {
    let server = FakeServer::start(Fault::LoseDiffs);
    let report = run(Settings { rest: Duration::from_secs(4), ..settings(&server) }).await;
    assert_eq!((report.verified, &report.verify_error), (Some(true), &None));
    assert!(report.gaps > 0 && report.repairs > 0, "{} gaps, {} repairs", report.gaps, report.repairs);
}

#[tokio::test]
async fn connections_survive_new_source_ports() {
    let server = FakeServer::start(Fault::None);
    let rebind = Some(Duration::from_millis(500));
    let report = run(Settings { rebind, rest: Duration::from_secs(4), ..settings(&server) }).await;
    assert_eq!((report.verified, &report.verify_error), (Some(true), &None));
    assert_eq!((report.connections, report.failed), (50, 0));
    // 5 sockets, 2 s, each twice a second: 20, or fewer on a busy machine.
    assert!((5..=20).contains(&report.rebinds), "{}", report.rebinds);
}

#[tokio::test]
async fn the_verified_canvas_is_dumped() {
    let server = FakeServer::start(Fault::None);
    let file = std::env::temp_dir().join(format!("loadgen-dump-{}", std::process::id()));
    let report = run(Settings { dump: Some(file.clone()), ..settings(&server) }).await;
    let dump = std::fs::read(&file).expect("the dump");
    std::fs::remove_file(&file).unwrap();
    assert_eq!(report.verified, Some(true));
    assert_eq!(dump.len(), usize::from(WIDTH) * usize::from(HEIGHT));
    // Random pixels: rarely one on another, one in 32 of colour 0.
    let painted = dump.iter().filter(|&&colour| colour != 0).count() as u64;
    let sent = report.pixels_sent_run;
    assert!(painted * 10 > sent * 8 && painted <= sent, "{painted}");

    let nowhere = Settings { dump: Some("/nonexistent/canvas".into()), ..settings(&server) };
    let report = run(nowhere).await;
    assert_eq!((report.verified, report.exit_code()), (Some(false), EXIT_FAILED));
    assert!(report.verify_error.expect("a reason").contains("cannot write /nonexistent/canvas (--dump)"));
}

#[tokio::test]
async fn a_pixel_left_out_of_a_diff_is_caught() {
    caught(Fault::DropPixel, "the first different pixel is (").await;
}

#[tokio::test]
async fn a_wrong_pixel_in_a_snapshot_is_caught() {
    caught(Fault::CorruptTile, "watcher ").await;
}

#[tokio::test]
async fn missing_acknowledgements_are_caught() {
    caught(Fault::NeverAck, "PAINT frames were not acknowledged").await;
}

#[tokio::test]
async fn acknowledgements_of_other_counts_are_caught() {
    caught(Fault::WrongAck, "does not count one pixel of one").await;
}

#[tokio::test]
async fn second_acknowledgements_are_caught() {
    caught(Fault::DoubleAck, "PAINT_ACK of no outstanding PAINT").await;
}

#[tokio::test]
async fn pixels_acknowledged_but_not_painted_are_caught() {
    caught(Fault::LosePaint, "was painted once").await;
}

#[tokio::test]
async fn pixels_acknowledged_but_not_counted_are_caught() {
    caught(Fault::Miscount, "in its STATS").await;
}

#[tokio::test]
async fn a_draining_server_is_named() {
    let server = FakeServer::start(Fault::CloseAll(5));
    let report = run(settings(&server)).await;
    assert_eq!(report.exit_code(), EXIT_SERVER_DIED);
    assert_eq!(report.failures_by_cause.get("DRAINING"), Some(&50));
    assert!(report.error.expect("a reason").contains("50 x DRAINING"));
    assert!(report.pixels_sent > 0, "a partial report");
}

#[tokio::test]
async fn an_announced_end_counts_even_if_the_close_is_lost() {
    let server = FakeServer::start(Fault::AnnounceOnly);
    let longer_than_the_wait = Some(Duration::from_secs(20));
    let clients = Settings { frame_share: 1.0, duration: longer_than_the_wait, ..settings(&server) };
    let start = Instant::now();
    let report = run(clients).await;
    assert_eq!(report.failures_by_cause.get("DRAINING"), Some(&50), "{:?}", report.failures_by_cause);
    assert!(start.elapsed() < Duration::from_secs(15), "they waited for an idle timeout");
}

#[tokio::test]
async fn a_full_server_fails_the_run_unless_tolerated() {
    // One for the load generator's own questions.
    let server = FakeServer::start(Fault::Full(21));
    let short = Settings {
        duration: Some(Duration::from_millis(300)),
        verify: false,
        // Else one watcher of four may be refused.
        watchers: 0,
        ..settings(&server)
    };
    let report = run(short.clone()).await;
    assert_eq!((report.connections, report.failed), (20, 30));
    assert_eq!(report.failures_by_cause.get("SERVER_FULL"), Some(&30));
    assert_eq!(report.exit_code(), EXIT_FAILED);
    assert_eq!(report.verified, None);
    let report = run(Settings { max_failed: 0.6, ..short }).await;
    assert_eq!((report.failed, report.exit_code()), (30, EXIT_OK));
}

#[tokio::test]
async fn a_server_that_dies_ends_the_run_with_a_partial_report() {
    let server = FakeServer::start(Fault::None);
    let long = Settings {
        duration: Some(Duration::from_secs(60)),
        connect_timeout: Duration::from_secs(3),
        ..settings(&server)
    };
    let start = Instant::now();
    let running = tokio::spawn(run(long));
    tokio::time::sleep(Duration::from_secs(1)).await;
    tokio::task::spawn_blocking(move || drop(server)).await.unwrap();
    let report = running.await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    assert_eq!(report.exit_code(), EXIT_SERVER_DIED);
    assert!(report.error.expect("a reason").contains("every connection was lost"));
    assert_eq!((report.verified, report.connections, report.failed), (Some(false), 50, 50));
    assert!(report.pixels_sent > 0 && report.pixels_applied.is_none());
}

#[tokio::test]
async fn without_a_server_the_target_is_unreachable() {
    let free = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let target = Target::at(free.local_addr().unwrap());
    // Bound, so that nobody else is there, but never answered.
    let settings =
        Settings { connect_timeout: Duration::from_millis(300), quiet: true, ..Settings::new(target, 5) };
    let report = run(settings).await;
    assert_eq!(report.exit_code(), EXIT_UNREACHABLE);
    assert!(report.error.expect("a reason").contains("connect timeout"));
}

#[tokio::test]
async fn stopping_early_still_verifies() {
    let server = FakeServer::start(Fault::None);
    let endless = Settings { duration: None, ..settings(&server) };
    let report = loadgen::run(endless, tokio::time::sleep(Duration::from_millis(1500))).await;
    assert_eq!((report.verified, report.exit_code()), (Some(true), EXIT_OK));
    assert!((0.5..3.0).contains(&report.duration_s), "{}", report.duration_s);
}

#[tokio::test]
async fn stopping_while_clients_still_connect_verifies_those_that_did() {
    let server = FakeServer::start(Fault::None);
    // Half of the clients, watchers among them, are still waiting for their turn when it stops.
    let slow = Settings { max_conn_jitter: Duration::from_secs(3), watchers: 20, ..settings(&server) };
    let report = loadgen::run(slow, tokio::time::sleep(Duration::from_millis(1500))).await;
    assert_eq!((report.verified, report.failed, report.exit_code()), (Some(true), 0, EXIT_OK));
    assert!((5..45).contains(&report.connections), "{}", report.connections);
}

#[tokio::test]
async fn a_server_that_takes_no_client_is_unreachable() {
    // One for the load generator's own questions.
    let server = FakeServer::start(Fault::Full(1));
    let report = run(settings(&server)).await;
    assert_eq!((report.connections, report.failed, report.exit_code()), (0, 50, EXIT_UNREACHABLE));
    assert!(report.error.expect("a reason").contains("50 x SERVER_FULL"));
    assert_eq!(report.verified, Some(false));
}
