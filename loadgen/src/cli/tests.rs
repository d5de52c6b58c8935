//! Tests of the command line.

use std::time::Duration;

use clap::CommandFactory;

use super::*;
use crate::scenario::Scenario;

fn settings(flags: &str) -> Result<Settings, UsageError> {
    parse(&format!("--target https://10.0.0.1 {flags}"))
}

fn parse(flags: &str) -> Result<Settings, UsageError> {
    let words = ["loadgen"].into_iter().chain(flags.split_whitespace()).map(OsString::from);
    match Cli::try_parse_from(with_command(words)).expect("flags parse").command {
        Command::Run(args) => args.settings(),
        other => panic!("not a run: {other:?}"),
    }
}

#[test]
fn the_command_is_well_formed() {
    Cli::command().debug_assert();
}

#[test]
fn the_guides_command_line_works() {
    let s = settings(
        "--clients 15000 --id machine1-worker-1 --max-conn-jitter 60000 \
         --min-pixel-wait 20 --max-pixel-wait 50",
    )
    .unwrap();
    assert_eq!((s.clients, s.endpoints, s.watchers, s.frame_share), (15_000, 60, 1, 0.0));
    assert_eq!(s.max_conn_jitter, Duration::from_secs(60));
    assert_eq!((s.min_pixel_wait, s.max_pixel_wait), (Duration::from_millis(20), Duration::from_millis(50)));
    assert_eq!(s.duration, None);
}

#[test]
fn defaults_depend_on_other_flags() {
    let s = settings("--verify --duration 2.5").unwrap();
    assert_eq!((s.watchers, s.frame_share, s.endpoints), (8, 0.05, 16));
    assert_eq!(s.duration, Some(Duration::from_millis(2500)));
    let s = settings("--verify --clients 3").unwrap();
    assert_eq!((s.watchers, s.endpoints), (3, 3));
    assert_eq!((s.rebind, s.dump), (None, None));
    let s = settings("--verify --dump x --rebind 0.5").unwrap();
    assert_eq!((s.rebind, s.dump), (Some(Duration::from_millis(500)), Some("x".into())));
    let s = settings("--clients 100 --threads 7 --num-endpoints 2").unwrap();
    assert_eq!((s.threads, s.endpoints), (7, 7));
}

#[test]
fn wrong_values_are_refused_by_name() {
    for (flags, flag) in [
        ("--clients 0", "--clients"),
        ("--threads 0", "--threads"),
        ("--num-endpoints 0", "--num-endpoints"),
        ("--clients 4 --watchers 5", "--watchers"),
        ("--verify --watchers 0", "--watchers"),
        ("--frame-share 101", "--frame-share"),
        ("--frame-share NaN", "--frame-share"),
        ("--max-failed inf", "--max-failed"),
        ("--min-pixel-wait 0 --max-pixel-wait 0", "--max-pixel-wait"),
        ("--min-pixel-wait 51", "--min-pixel-wait"),
        ("--duration inf", "--duration"),
        ("--connect-timeout 0", "--connect-timeout"),
        ("--rebind 0", "--rebind"),
        ("--cert-sha256 abc", "--cert-sha256"),
        ("--target ftp://x", "--target"),
        ("--painters 1001", "--painters"),
        ("--viewers 900 --newcomers 200", "--newcomers"),
        ("--rate 5", "--rate"),
        ("--newcomers 1 --rate 0", "--rate"),
        ("--processes 0", "--processes"),
        ("--warmup inf", "--warmup"),
        ("--out x --id a/b", "--id"),
        ("--dump x", "--dump"),
        ("--verify --dump x --processes 2", "--dump"),
    ] {
        let target = if flag == "--target" { "" } else { "--target https://10.0.0.1" };
        let error = parse(&format!("{target} {flags}")).expect_err(flags).to_string();
        assert!(error.contains(flag), "{flags}: {error}");
    }
}

#[test]
fn chosen_ports_are_not_replaced() {
    let words = "loadgen run --target https://10.0.0.1 --rebind 1 --align-queues --rss-config x";
    let error = Cli::try_parse_from(words.split(' ')).unwrap_err().to_string();
    assert!(error.contains("--rebind") && error.contains("--align-queues"), "{error}");
}

#[test]
fn scenarios_are_defaults_that_flags_override() {
    let of = |flags: &str| parse(&format!("run {flags} --target https://10.0.0.1")).unwrap();
    let roles = |s: &Settings| (s.clients, s.watchers, s.viewers, s.newcomers, s.painters);
    assert_eq!(roles(&of("")), (1000, 1, 0, 0, 1000));
    assert_eq!(roles(&of("handshake")), (100, 1, 0, 99, 0));
    assert_eq!(roles(&of("idle --clients 10")), (10, 1, 0, 0, 0));
    assert_eq!(roles(&of("fanout")), (1000, 1, 999, 0, 10));
    assert_eq!(roles(&of("fanout --clients 20 --viewers 5 --painters 3")), (20, 1, 5, 0, 3));
    assert_eq!(roles(&of("mixed")), (1000, 1, 200, 50, 500));
    assert_eq!(roles(&of("mixed --clients 2")), (2, 1, 0, 1, 1));
    assert_eq!(roles(&of("paint --newcomers 10")), (1000, 1, 0, 10, 990));
    let verify = of("verify --dump x");
    assert_eq!((verify.verify, verify.watchers, verify.frame_share), (true, 8, 0.05));
    assert_eq!((verify.scenario, verify.duration), (Scenario::Verify, Some(Duration::from_secs(10))));
    assert_eq!((of("handshake").rate, of("handshake --rate 5").rate), (200.0, 5.0));
    assert_eq!((of("idle").closed_loop, of("--closed-loop").frame_share), (false, 1.0));
    assert_eq!(of("--processes 4 --clients 3").processes, 3);
    assert!(of("--processes 20").endpoints >= 20, "each process has a socket");
}

#[test]
fn a_command_may_be_left_out() {
    let words = |line: &str| {
        let words = with_command(line.split(' ').map(OsString::from));
        words.iter().map(|word| word.to_str().unwrap().to_owned()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(words("loadgen --clients 3"), "loadgen run --clients 3");
    assert_eq!(words("loadgen --join a b --out c"), "loadgen join a b --out c");
    for as_it_is in ["loadgen --help", "loadgen -V", "loadgen run idle", "loadgen report x"] {
        assert_eq!(words(as_it_is), as_it_is);
    }
    let join = Cli::try_parse_from(["loadgen", "join", "a", "b", "--out", "c"]).unwrap().command;
    assert!(matches!(join, Command::Join(join) if join.files.len() == 2 && join.out == Some("c".into())));
}

#[test]
fn pins_may_have_colons() {
    let plain = "0123456789abcdef".repeat(4);
    let colons =
        plain.as_bytes().chunks(2).map(|b| str::from_utf8(b).unwrap().to_uppercase()).collect::<Vec<_>>();
    let expected = settings(&format!("--cert-sha256 {plain}")).unwrap().cert_sha256.unwrap();
    assert_eq!(expected[..3], [0x01, 0x23, 0x45]);
    let s = settings(&format!("--cert-sha256 {}", colons.join(":"))).unwrap();
    assert_eq!(s.cert_sha256, Some(expected));
}
