//! Open-loop honesty: a server that stalls must show it in the percentiles, at the stall's size.

use std::time::Duration;

use crate::fake::{FakeServer, Fault};
use loadgen::cli::Settings;
use loadgen::report::{Loop, Report};
use loadgen::target::Target;

/// How long the server does nothing.
const STALL: u64 = 500;
/// Length of the window; the stall is in its midst.
const WINDOW: Duration = Duration::from_secs(5);

/// 4 clients that all time their paints, against a server that stalls once.
async fn stalled(closed_loop: bool) -> Report {
    let server = FakeServer::start(Fault::Stall(STALL));
    let settings = Settings {
        duration: Some(WINDOW),
        watchers: 4,
        min_pixel_wait: Duration::from_millis(4),
        max_pixel_wait: Duration::from_millis(6),
        closed_loop,
        frame_share: if closed_loop { 1.0 } else { 0.0 },
        quiet: true,
        ..Settings::new(Target::at(server.addr), 4)
    };
    let report = loadgen::run(settings, std::future::pending()).await;
    println!("{}", report.table(false));
    assert_eq!(report.error, None);
    report
}

#[tokio::test]
async fn a_stall_shows_in_an_open_loop_at_its_size() {
    let report = stalled(false).await;
    assert_eq!(report.load_loop, Loop::Open);
    let (p50, p99) = (report.latency_ms.p50.unwrap(), report.latency_ms.p99.unwrap());
    // A tenth of the paints were due during the stall, evenly: they waited for 500 ms down to 0 ms. The
    // hundredth of all that waited longest is a tenth of these: they waited for at least 450 ms. A busy
    // machine makes it longer, and the last digit of a histogram shorter.
    assert!((400.0..1000.0).contains(&p99), "p99 {p99} ms");
    assert!(p50 < 100.0, "p50 {p50} ms: it was to stall once only");
    // Nothing of the load is left out while nobody answers.
    let due = 4.0 * WINDOW.as_secs_f64() / 0.005;
    assert!(report.pixels_sent as f64 > due * 0.9, "{} of {due}", report.pixels_sent);
}

#[tokio::test]
async fn a_closed_loop_hides_the_same_stall_and_says_what_it_is() {
    let report = stalled(true).await;
    assert_eq!(report.load_loop, Loop::Closed);
    let (p99, max) = (report.latency_ms.p99.unwrap(), report.latency_ms.max.unwrap());
    // Each client had one paint on its way during the stall, of its hundreds.
    assert!(report.latency_ms.count > 4 * 150, "{} paints timed", report.latency_ms.count);
    assert!(max >= STALL as f64 * 0.9, "max {max} ms: the stall was there");
    assert!(p99 < STALL as f64 / 2.0, "p99 {p99} ms");
    assert!(report.table(false).contains("CLOSED LOOP"));
    assert!(report.json().contains(r#""loop":"closed""#));
}
