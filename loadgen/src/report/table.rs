//! The report as a table for people.

use std::fmt::Write as _;

use super::{Loop, Percentiles, Report};
use crate::rss::{QueueShare, skew};

/// Terminal codes for red and back.
const RED: (&str, &str) = ("\x1b[31;1m", "\x1b[0m");
/// Columns of a row's name, and of what it says: with a space between, 100.
const NAME: usize = 16;
const TEXT: usize = 83;

struct Table {
    out: String,
    colour: bool,
}

impl Table {
    /// A row; text that is too long goes on in the next lines.
    fn row(&mut self, name: &str, text: &str) {
        self.styled(name, text, ("", ""));
    }

    /// A row as it is: wrapping would close its columns up.
    fn columns(&mut self, name: &str, columns: &str) {
        writeln!(self.out, "{name:<NAME$} {columns}").expect("writing to a String cannot fail");
    }

    /// A row that must not be overlooked.
    fn alarm(&mut self, name: &str, text: &str) {
        self.styled(name, text, if self.colour { RED } else { ("", "") });
    }

    fn styled(&mut self, name: &str, text: &str, (on, off): (&str, &str)) {
        let mut name = name;
        for line in wrapped(text) {
            writeln!(self.out, "{name:<NAME$} {on}{line}{off}").expect("writing to a String cannot fail");
            name = "";
        }
    }
}

/// Lines of at most `TEXT` columns, broken at spaces; a word that is longer stays whole.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let last = lines.last_mut().expect("never empty");
        if !last.is_empty() && last.chars().count() + 1 + word.chars().count() > TEXT {
            lines.push(word.to_owned());
        } else {
            if !last.is_empty() {
                last.push(' ');
            }
            last.push_str(word);
        }
    }
    lines
}

impl Report {
    /// Several lines; what is wrong in red, if `colour`.
    pub fn table(&self, colour: bool) -> String {
        let mut table = Table { out: String::new(), colour };
        self.what(&mut table);
        self.load(&mut table);
        self.queues(&mut table);
        self.times(&mut table);
        self.machine(&mut table);
        self.outcome(&mut table);
        table.out
    }

    fn what(&self, table: &mut Table) {
        table.row("run", &format!("{} -> {}", self.id, self.target));
        let kind = match self.load_loop {
            Loop::Open => "open loop: times count from when an action was due",
            Loop::Closed => "CLOSED LOOP: clients wait for answers, so stalls of the server hardly show",
        };
        table.row("scenario", &format!("{}, {kind}", self.scenario.name()));
        let early = match (self.partial, self.interrupted) {
            (false, _) => "",
            (true, false) => " (ended early)",
            (true, true) => " (interrupted)",
        };
        table.row("time", &format!("{:.1} s ramp, {:.1} s measured{early}", self.ramp_s, self.duration_s));
        if self.processes > 1 {
            table.row("processes", &self.processes.to_string());
        }
    }

    fn load(&self, table: &mut Table) {
        let text = format!(
            "{} of {} came up, {} at a time, {} failed; {} watched",
            self.connections, self.clients, self.connections_peak, self.failed, self.watchers
        );
        table.row("connections", &text);
        for (cause, count) in &self.failures_by_cause {
            table.row("", &format!("{count} x {cause}"));
        }
        if self.handshakes > 0 {
            table.row("newcomers", &format!("{} greeted, {:.0}/s", self.handshakes, self.handshakes_per_s));
        }
        let text = format!(
            "{} ({} in datagrams, {} in frames, {} due but unsent), {:.0}/s",
            self.pixels_sent,
            self.pixels_sent_datagram,
            self.pixels_sent_frame,
            self.pixels_unsent,
            self.pixels_per_s
        );
        table.row("pixels sent", &text);
        let text = match self.pixels_applied {
            Some(n) => format!("{n} of {} of the whole run, by the server's count", self.pixels_sent_run),
            None => "unknown: the server did not say".to_owned(),
        };
        table.row("pixels applied", &text);
        let text = format!("{} applied, {} rejected", self.pixels_acked, self.pixels_rejected);
        table.row("frames' pixels", &text);
        let text = format!(
            "{} diffs, {} records applied, {} gaps, {} repairs asked",
            self.diff_datagrams, self.records_applied, self.gaps, self.repairs
        );
        table.row("watchers got", &text);
    }

    /// What each of the server's queues was to get.
    fn queues(&self, table: &mut Table) {
        let Some(queues) = &self.queues else { return };
        let connections: Vec<f64> = queues.iter().map(|share| share.connections as f64).collect();
        let text = format!("{}, skew {:.2} (most over mean)", queues.len(), skew(&connections));
        table.row("queues aimed for", &text);
        table.columns("", &format!("{:>9}{:>13}{:>14}", "queue", "connections", "source ports"));
        for QueueShare { queue, connections, ports } in queues {
            table.columns("", &format!("{queue:>9}{connections:>13}{ports:>14}"));
        }
    }

    fn times(&self, table: &mut Table) {
        let heads = ["p50", "p90", "p99", "p99.9", "p99.99", "max", "count"];
        let heads = heads.map(|head| format!("{head:>9}")).concat();
        table.columns("times in ms", &heads);
        let unconfirmed = match self.unconfirmed {
            0 => String::new(),
            n => format!("  (and {n} unconfirmed)"),
        };
        for (name, times, more) in [
            ("paint to diff", &self.latency_ms, unconfirmed.as_str()),
            ("handshake", &self.handshake_ms, ""),
            ("ping", &self.ping_ms, ""),
            ("client was late", &self.client.late_ms, ""),
        ] {
            table.columns(name, &format!("{}{more}", times.columns()));
        }
    }

    fn machine(&self, table: &mut Table) {
        let client = &self.client;
        let text = format!(
            "{:.0} % of {} CPUs, busiest thread {:.0} %; {:.0} MB, {:.1} KB a client",
            client.cpu_share * 100.0,
            client.cpus,
            client.max_thread_cpu_share * 100.0,
            client.rss_mb,
            client.kb_per_client
        );
        table.row("load generator", &text);
        if client.udp_rcvbuf_errors + client.udp_sndbuf_errors + client.ports_exhausted > 0 {
            let text = format!(
                "{} datagrams dropped on receipt, {} not sent by the kernel, {} ports missing",
                client.udp_rcvbuf_errors, client.udp_sndbuf_errors, client.ports_exhausted
            );
            table.row("", &text);
        }
        if let Some(limit) = &self.limited_by_client {
            table.alarm("CLIENT-LIMITED", &format!("{limit}. These figures are not the server's."));
        }
    }

    fn outcome(&self, table: &mut Table) {
        match (self.verified, &self.verify_error, self.pixels_proven) {
            (None, ..) => table.row("verified", "not asked for"),
            (Some(true), _, Some(n)) => {
                table.row("verified", &format!("yes: all watchers equal the snapshot, {n} pixels proven"));
            }
            (Some(true), ..) => {
                table.row("verified", "yes: all watchers equal the snapshot; others painted too");
            }
            (Some(false), error, _) => {
                let reason = error.as_deref().unwrap_or("no reason known");
                table.alarm("verified", &format!("NO: {reason}"));
            }
        }
        if let Some(error) = &self.error {
            table.alarm("failed", error);
        }
    }
}

impl Percentiles {
    /// Columns of nine characters: the percentiles, the longest and the count.
    fn columns(&self) -> String {
        let times = [self.p50, self.p90, self.p99, self.p999, self.p9999, self.max];
        let mut out = times.map(|ms| ms.map_or(format!("{:>9}", "-"), |ms| format!("{ms:>9.1}"))).concat();
        write!(out, "{:>9}", self.count).expect("writing to a String cannot fail");
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loud() -> Report {
        Report {
            limited_by_client: Some("a thread was busy ".to_owned() + &"very ".repeat(30)),
            load_loop: Loop::Closed,
            latency_ms: Percentiles { p50: Some(123_456.7), count: 1_234_567, ..Percentiles::default() },
            ..Report::default()
        }
    }

    #[test]
    fn it_fits_a_hundred_columns() {
        for line in loud().table(false).lines() {
            assert!(line.chars().count() <= 100, "{line}");
        }
    }

    #[test]
    fn there_is_a_row_for_each_queue() {
        let queues = vec![
            QueueShare { queue: 0, connections: 3, ports: 2 },
            QueueShare { queue: 47, connections: 1, ports: 2 },
        ];
        let text = Report { queues: Some(queues), ..Report::default() }.table(false);
        let lines: Vec<_> = text.lines().map(str::split_whitespace).map(Vec::from_iter).collect();
        let first = lines.iter().position(|line| line.starts_with(&["queues"])).unwrap();
        assert_eq!(lines[first][3..], ["2,", "skew", "1.50", "(most", "over", "mean)"]);
        assert_eq!(lines[first + 2..first + 4], [["0", "3", "2"], ["47", "1", "2"]]);
        assert!(!Report::default().table(false).contains("queues"));
    }

    #[test]
    fn a_limited_client_is_red_on_a_terminal_only() {
        let (plain, red) = (loud().table(false), loud().table(true));
        assert!(plain.contains("CLIENT-LIMITED") && !plain.contains('\x1b'));
        assert!(red.contains("\x1b[31;1ma thread was busy"), "{red}");
        assert!(plain.contains("CLOSED LOOP"));
        assert!(!Report::default().table(true).contains('\x1b'));
    }
}
