//! What the server measures of itself, read as others read it: by HTTP, as Prometheus does, and by
//! `scripts/monitor.sh`.
//!
//! On loopback, and with AF_XDP in the two network namespaces of `net_xdp/lab.rs`; that one needs root.

#[path = "net_xdp/lab.rs"]
#[allow(dead_code, reason = "shared with the tests of the AF_XDP backend, which use more of it")]
mod lab;
#[path = "metrics/openmetrics.rs"]
mod openmetrics;
#[path = "namespaces/programs.rs"]
#[allow(dead_code, reason = "shared with the tests in namespaces, which use more of it")]
mod programs;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lab::Lab;
use openmetrics::Exposition;
use programs::{Clients, Home, Server, eventually, refused};

/// A server of two workers on loopback, on sockets, and where its metrics are.
fn on_loopback(home: &Home) -> (Server, String, String) {
    // Free now, and nobody else's until the server has it: the kernel deals out ports at random.
    let listen = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let flags = ["--backend", "socket", "--queues", "2", "--listen", &listen, "--metrics", "127.0.0.1:0"];
    let server = Server::start(home, &flags);
    let metrics = server.started()["metrics"].as_str().expect("an address").to_owned();
    (server, format!("https://{listen}"), metrics)
}

/// Sends a request, and returns all that comes back, head and body.
#[track_caller]
fn ask(address: &str, request: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    (head.to_owned(), body.to_owned())
}

#[track_caller]
fn scrape(address: &str) -> Exposition {
    let (head, body) = ask(address, "GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(
        head.to_lowercase().contains("content-type: application/openmetrics-text; version=1.0.0"),
        "{head}"
    );
    Exposition::parse(&body)
}

#[test]
fn a_scrape_is_openmetrics_and_shows_the_traffic() {
    let home = Home::new();
    let (server, target, metrics) = on_loopback(&home);
    let before = scrape(&metrics);
    assert_eq!(before.sum("xdp_server_received_packets_total"), 0.0);
    let info = before.names().find(|name| name.starts_with("xdp_server_build_info")).unwrap().to_owned();
    assert!(info.contains("backend=\"socket\"") && info.contains(env!("CARGO_PKG_VERSION")), "{info}");

    let clients = Clients::near(&target, &["--clients", "10", "--duration", "3"]);
    let during = eventually("ten connections and their messages", || {
        let now = scrape(&metrics);
        let all_there = now.sum("xdp_server_connections") >= 10.0;
        (all_there && now.sum("xdp_server_messages_total") > 0.0).then_some(now)
    });
    let (code, report) = clients.end();
    assert_eq!(code, 0, "{report}");
    let after = eventually("all pixels are counted", || {
        let now = scrape(&metrics);
        let sent = report["pixels_sent"].as_f64().unwrap();
        (now.sum("xdp_server_pixels_received_total") >= sent).then_some(now)
    });
    during.assert_not_below(&before);
    after.assert_not_below(&during);
    for metric in ["received_packets", "received_bytes", "sent_packets", "sent_bytes", "handshakes_completed"]
    {
        assert!(after.sum(&format!("xdp_server_{metric}_total")) >= 10.0, "{metric}");
    }
    assert!(after.sum("xdp_server_pixels_applied_total") > 0.0);
    for worker in ["0", "1"] {
        let time = format!("xdp_server_time_seconds_total{{worker=\"{worker}\",regime=\"waiting\"}}");
        assert!(after.one(&time) > 0.0);
        let drops = format!("xdp_server_drops_total{{worker=\"{worker}\",cause=\"rx_kernel_drops\"}}");
        assert_eq!(after.one(&drops), 0.0);
    }
    assert!(after.one("process_resident_memory_bytes") > 1e6);
    assert!(after.one("process_cpu_seconds_total") > 0.0);
    assert!(after.one("process_start_time_seconds") > 1.7e9);
    server.stop();
    assert!(TcpStream::connect(&metrics).is_err(), "it ends with the server");
}

#[test]
fn nothing_else_is_answered() {
    let home = Home::new();
    let (_server, _, metrics) = on_loopback(&home);
    let status = |request: &str| {
        let (head, body) = ask(&metrics, &format!("{request} HTTP/1.1\r\nHost: test\r\n\r\n"));
        (head.split(' ').nth(1).unwrap().to_owned(), head, body)
    };
    let (code, _, body) = status("GET /");
    assert_eq!((code.as_str(), body.contains("/metrics")), ("404", true), "{body}");
    let (code, head, _) = status("POST /metrics");
    assert_eq!((code.as_str(), head.to_lowercase().contains("allow: get, head")), ("405", true), "{head}");
    let (code, _, body) = status("HEAD /metrics");
    assert_eq!((code.as_str(), body.as_str()), ("200", ""));
    let (head, _) = ask(&metrics, &format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(20_000)));
    assert!(head.starts_with("HTTP/1.1 4"), "{head}");
    let (head, _) = ask(&metrics, "\x16\x03\x01 nonsense\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 400"), "{head}");
}

#[test]
fn stalled_scrapers_block_nobody() {
    let home = Home::new();
    let (server, _, metrics) = on_loopback(&home);
    let stall = |count| {
        let connect = |_| {
            let mut stream = TcpStream::connect(&metrics).unwrap();
            stream.write_all(b"GET /metrics HTT").unwrap();
            stream
        };
        (0..count).map(connect).collect::<Vec<_>>()
    };
    let stalled = stall(8);
    scrape(&metrics);
    stalled[0].set_nonblocking(true).unwrap();
    let open = (&stalled[0]).read(&mut [0; 16]).unwrap_err();
    assert_eq!(open.kind(), ErrorKind::WouldBlock, "the scrape did not wait for it to be cut off");
    // More than there are places: who comes then has its turn when the first are cut off.
    let _more = stall(12);
    scrape(&metrics);
    stalled[0].set_nonblocking(false).unwrap();
    // Those that were cut off are told so by the end of their connection.
    let mut first = &stalled[0];
    first.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert_eq!(first.read(&mut [0; 16]).unwrap_or(0), 0);
    // And the end of the server does not wait for any.
    let begin = Instant::now();
    server.stop();
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}

#[test]
fn a_taken_address_is_an_error_if_it_was_asked_for_and_a_note_if_not() {
    let home = Home::new();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = other.local_addr().unwrap().to_string();
    let flags = ["--backend", "socket", "--queues", "1", "--listen", "127.0.0.1:0"];
    let listen = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let flags: Vec<&str> = flags.map(|flag| if flag == "127.0.0.1:0" { &listen } else { flag }).to_vec();

    let mut command = home.server(&flags);
    command.args(["--metrics", &taken]);
    let (code, text) = refused(command);
    assert_eq!(code, 1);
    assert!(
        text.contains(&format!("error: --metrics {taken}: ")) && text.contains("--metrics off"),
        "{text}"
    );

    // Held by this test, or by whatever else runs here.
    let _usual = TcpListener::bind("127.0.0.1:9464");
    let server = Server::start(&home, &flags);
    let start = server.started();
    assert!(start["metrics"].is_null(), "{start}");
    let notes = start["notes"].to_string();
    assert!(notes.contains("no metrics: --metrics 127.0.0.1:9464"), "{notes}");
    server.stop();

    let server = Server::start(&home, &[&flags[..], &["--metrics", "off"]].concat());
    let start = server.started();
    assert!(start["metrics"].is_null() && !start["notes"].to_string().contains("metrics"), "{start}");
    server.stop();
}

#[test]
fn queues_of_af_xdp_are_told_apart_by_a_thread_without_privileges() {
    Lab::run(|lab| {
        let home = Home::new();
        lab.server("ip link set dev lo up");
        lab.client("ethtool -K clnt0 tx off");
        let metrics = "10.77.0.1:9464";
        let flags = [
            "--iface",
            "serv0",
            "--queues",
            "2",
            "--backend",
            "xdp",
            "--xdp-mode",
            "copy",
            "--metrics",
            metrics,
        ];
        let server = Server::start(&home, &flags);
        let clients = Clients::far(lab, "https://10.77.0.1:4433", &["--clients", "16", "--duration", "2"]);
        let (code, report) = clients.end();
        assert_eq!(code, 0, "{report}");
        let seen = scrape(metrics);
        assert!(seen.names().any(|name| name.contains("backend=\"xdp\",xdp_mode=\"copy\"")));
        for queue in [0, 1] {
            let labels = format!("worker=\"{queue}\",queue=\"{queue}\"");
            // 16 flows on two queues: each has some.
            assert!(seen.one(&format!("xdp_server_received_packets_total{{{labels}}}")) > 0.0);
            seen.one(&format!("xdp_server_fill_ring_empty_total{{{labels}}}"));
            for cause in ["rx_kernel_drops", "invalid_descriptors"] {
                assert_eq!(seen.one(&format!("xdp_server_drops_total{{{labels},cause=\"{cause}\"}}")), 0.0);
            }
        }
        let threads = fs::read_dir(format!("/proc/{}/task", server.id())).unwrap();
        let file = |thread: &Path, name| fs::read_to_string(thread.join(name)).unwrap();
        let threads: Vec<_> = threads.map(|thread| thread.unwrap().path()).collect();
        let scraped =
            threads.iter().find(|thread| file(thread, "comm").trim() == "metrics").expect("its thread");
        let status = file(scraped, "status");
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert!(status.contains(&format!("{set}:\t0000000000000000")), "{status}");
        }
        server.stop();
    });
}

/// The script, watching `server` for a while.
fn monitor(server: &Server, metrics: &str, more: &[&str]) -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/monitor.sh");
    let mut command = Command::new(script);
    command.args(["--pid", &server.id().to_string(), "--metrics", &format!("http://{metrics}/metrics")]);
    command.args(more).stdin(Stdio::null());
    command
}

/// The rows of the script's CSV, by column; empty fields are `None`.
#[track_caller]
fn rows(csv: &str) -> (Vec<&str>, Vec<Vec<Option<f64>>>) {
    let mut lines = csv.lines();
    let header: Vec<&str> = lines.next().expect("a header").split(',').collect();
    let field = |field: &str| (!field.is_empty()).then(|| field.parse().expect(field));
    let rows: Vec<Vec<_>> = lines.map(|line| line.split(',').map(field).collect()).collect();
    assert!(rows.iter().all(|row| row.len() == header.len()), "{csv}");
    (header, rows)
}

#[test]
fn the_monitor_writes_well_formed_csv_of_a_server_at_work() {
    let home = Home::new();
    let (server, target, metrics) = on_loopback(&home);
    let clients = Clients::near(&target, &["--clients", "10", "--duration", "5"]);
    eventually("traffic", || (scrape(&metrics).sum("xdp_server_connections") >= 10.0).then_some(()));
    let output = monitor(&server, &metrics, &["--duration", "3", "--interval", "0.5"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(!said.contains("metrics"), "{said}");
    let csv = String::from_utf8(output.stdout).unwrap();
    let (header, rows) = rows(&csv);
    let expected = "timestamp,udp_in,udp_out,udp_in_err,rcvbuf_err,sndbuf_err,rss_mb,connections,\
                    fill_ring_empty,rx_dropped,invalid_descs,sq_full,conntrack_count,conntrack_max,\
                    rx_packets_q0,working_share_q0,rx_packets_q1,working_share_q1";
    assert_eq!(header.join(","), expected);
    assert!((3..=7).contains(&rows.len()), "3 s of half seconds, fewer on a busy machine: {csv}");

    let column = |name: &str| {
        let index = header.iter().position(|column| *column == name).unwrap();
        rows.iter().map(|row| row[index]).collect::<Vec<_>>()
    };
    let known = |name: &str| column(name).into_iter().map(|field| field.expect(name)).collect::<Vec<f64>>();
    assert!(known("timestamp").windows(2).all(|pair| pair[0] < pair[1]), "{csv}");
    let counters =
        ["udp_in", "udp_out", "udp_in_err", "rcvbuf_err", "sndbuf_err", "fill_ring_empty", "rx_dropped"];
    let more = ["invalid_descs", "sq_full", "rx_packets_q0", "rx_packets_q1"];
    for name in counters.into_iter().chain(more) {
        assert!(known(name).is_sorted(), "{name} in\n{csv}");
    }
    let grew = |name: &str| known(name).last() > known(name).first();
    assert!(grew("udp_in") && grew("udp_out"), "{csv}");
    assert!(grew("rx_packets_q0") || grew("rx_packets_q1"), "{csv}");
    assert!(known("rss_mb").iter().all(|size| *size > 1.0), "{csv}");
    assert!(known("connections").iter().all(|count| *count >= 10.0), "{csv}");
    for name in ["working_share_q0", "working_share_q1"] {
        let shares = column(name);
        assert_eq!(shares[0], None, "nothing to compare with yet");
        assert!(shares[1..].iter().all(|share| (0.0..=1.0).contains(&share.expect(name))), "{csv}");
        assert!(shares[1..].iter().flatten().any(|share| *share > 0.0), "{csv}");
    }
    assert_eq!(clients.end().0, 0);
    server.stop();
}

#[test]
fn the_monitor_goes_without_metrics_and_ends_with_the_server_or_when_told() {
    let home = Home::new();
    let (server, _, _) = on_loopback(&home);
    let nowhere = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let start = |out: &str| {
        let flags = ["--interval", "0.2", "--out", out];
        monitor(&server, &nowhere, &flags).stderr(Stdio::piped()).spawn().unwrap()
    };
    let [first, second] = ["first.csv", "second.csv"].map(|name| home.file(name));
    let (mut told, ends_with_it) = (start(&first), start(&second));
    let lines = |file: &str| fs::read_to_string(file).unwrap_or_default().lines().count();
    eventually("three lines each", || (lines(&first) > 3 && lines(&second) > 3).then_some(()));

    // Not SIGINT: where this runs in the background of a shell, that is ignored, and shells keep it so.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(told.id() as i32), nix::sys::signal::Signal::SIGTERM)
        .unwrap();
    let status = eventually("it ends when told", || told.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
    server.stop();
    let output = ends_with_it.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert_eq!(said.matches("no metrics of a server at").count(), 1, "said once: {said}");
    assert!(said.contains("has ended, and so does this"), "{said}");
    for file in [first, second] {
        let csv = fs::read_to_string(file).unwrap();
        let (header, rows) = rows(&csv);
        assert_eq!(header.len(), 14, "no columns of queues: {csv}");
        assert!(rows[0][1].is_some() && rows[0][6].is_some() && rows[0][7].is_none(), "{csv}");
    }
}

#[test]
fn where_there_are_no_metrics_the_driver_counts_for_the_queues() {
    let home = Home::new();
    let (server, _, _) = on_loopback(&home);
    let nowhere = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    // What ethtool says of an ice, of a mlx5, and of an ena.
    for names in [["rx_queue_0", "packets"], ["rx0", "packets"], ["queue_0", "rx_cnt"]] {
        let [queue_0, count] = names;
        let queue_1 = queue_0.replace('0', "1");
        let text = format!(
            "NIC statistics:\n  rx_packets: 99\n  {queue_1}_{count}: 12\n  {queue_0}_{count}: 11\n  \
             {queue_0}_bytes: 98\n  rx_dropped: 3\n"
        );
        let ethtool = home.path("ethtool");
        fs::write(&ethtool, format!("#!/bin/sh\ncat <<END\n{text}END\n")).unwrap();
        fs::set_permissions(&ethtool, fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!("{}:{}", ethtool.parent().unwrap().display(), std::env::var("PATH").unwrap());
        let flags = ["--iface", "lo", "--duration", "0.1"];
        let output = monitor(&server, &nowhere, &flags).env("PATH", path).output().unwrap();
        let csv = String::from_utf8(output.stdout).unwrap();
        let (header, rows) = rows(&csv);
        let queues = &header[14..];
        assert_eq!(
            queues,
            ["rx_packets_q0", "working_share_q0", "rx_packets_q1", "working_share_q1"],
            "{csv}"
        );
        assert_eq!(rows[0][14..], [Some(11.0), None, Some(12.0), None], "{csv}");
    }
    server.stop();
}
