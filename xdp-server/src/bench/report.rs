//! What was measured, as tables for people and as JSON for machines.

use super::broadcast::BroadcastCost;
use super::handshake::HandshakeCost;
use super::memory::MemoryCost;
use super::message::MessageCost;
use super::stages::StageCost;
use crate::report::grouped;
use std::fmt::Write as _;

/// Messages a second that the whole machine is to take: the goal of the server's benchmarking guide.
const GOAL: f64 = 1.2e6;

/// All figures of a run.
#[derive(Debug, Default, serde::Serialize)]
pub struct Report {
    /// A message, by number of connections.
    pub messages: Vec<MessageCost>,
    /// Its stages.
    pub stages: Vec<StageCost>,
    /// A broadcast packet, by number of subscribers.
    pub broadcasts: Vec<BroadcastCost>,
    /// Full and resumed handshakes.
    pub handshakes: Vec<HandshakeCost>,
    /// An idle connection, by number of them.
    pub memory: Vec<MemoryCost>,
}

impl Report {
    /// Tables of at most 100 columns.
    pub fn text(&self) -> String {
        let parts = [
            self.messages(),
            self.stages(),
            self.broadcasts(),
            self.handshakes(),
            self.memory(),
            self.extrapolation(),
        ];
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n")
    }

    fn messages(&self) -> String {
        table(
            "A message (one pixel, one packet), ns of one core",
            &["connections", "worker", "of it ACKs", "ACKs each", "QUIC alone", "its ACK", "master", "ratio"],
            self.messages.iter().map(|cost| {
                vec![
                    grouped(cost.connections.into()),
                    whole(cost.worker_ns),
                    whole(cost.sending_ns),
                    format!("{:.3}", cost.acks_per_message),
                    whole(cost.floor_ns),
                    whole(cost.floor_ack_ns),
                    whole(cost.master_ns),
                    format!("{:.2} ({:.2} without ACKs)", cost.ratio, cost.receive_ratio),
                ]
            }),
        )
    }

    fn stages(&self) -> String {
        table(
            "Its stages, ns",
            &["connections", "headers", "ID, table", "QUIC", "session", "paint queue", "ACKs", "rest"],
            self.stages.iter().map(|cost| {
                vec![
                    grouped(cost.connections.into()),
                    whole(cost.frame_ns),
                    whole(cost.route_ns),
                    whole(cost.quic_ns),
                    whole(cost.session_ns),
                    whole(cost.paint_queue_ns),
                    whole(cost.acknowledging_ns),
                    whole(cost.rest_ns),
                ]
            }),
        )
    }

    fn broadcasts(&self) -> String {
        table(
            "A broadcast packet, ns of one core; and the client's acknowledgement of it",
            &["subscribers", "bytes", "packets", "worker", "QUIC alone", "ratio", "ACK in", "by QUIC alone"],
            self.broadcasts.iter().map(|cost| {
                vec![
                    grouped(cost.subscribers.into()),
                    grouped(cost.bytes as u64),
                    format!("{:.2}", cost.packets),
                    whole(cost.worker_ns),
                    whole(cost.floor_ns),
                    format!("{:.2}", cost.ratio),
                    whole(cost.worker_ack_ns),
                    whole(cost.floor_ack_ns),
                ]
            }),
        )
    }

    fn handshakes(&self) -> String {
        table(
            "A handshake, us of one core, server's side",
            &["handshake", "worker", "QUIC alone", "ratio", "BoringSSL alone", "ratio"],
            self.handshakes.iter().map(|cost| {
                vec![
                    if cost.resumed { "resumed".into() } else { "full".into() },
                    format!("{:.1}", cost.worker_us),
                    format!("{:.1}", cost.floor_us),
                    format!("{:.2}", cost.ratio),
                    format!("{:.1}", cost.tls_us),
                    format!("{:.2}", cost.tls_ratio),
                ]
            }),
        )
    }

    fn memory(&self) -> String {
        table(
            "An idle connection, bytes",
            &["connections", "resident", "of it the table"],
            self.memory.iter().map(|cost| {
                let bytes = |bytes: f64| grouped(bytes.max(0.0) as u64);
                vec![grouped(cost.connections.into()), bytes(cost.resident), bytes(cost.table)]
            }),
        )
    }

    /// What the figures mean for a machine.
    fn extrapolation(&self) -> String {
        let mut text = table(
            "For a machine",
            &["connections/worker", "messages/s of a worker", "workers for 1.2 M/s", "of 47 workers"],
            self.messages.iter().map(|cost| {
                let one = 1e9 / cost.worker_ns;
                let (workers, master) = (47.0 * one, 1e9 / cost.master_ns.max(1.0));
                let limit = if master < workers { " (the master's limit)" } else { "" };
                vec![
                    grouped(cost.connections.into()),
                    grouped(one as u64),
                    grouped((GOAL / one).ceil() as u64),
                    format!("{}/s{limit}", grouped(workers.min(master) as u64)),
                ]
            }),
        );
        if !text.is_empty() {
            text += "Assumed: a core to each worker and one to the master; no packet I/O (rings, driver)\n\
                     and no broadcasts; workers that share neither caches nor memory bandwidth.\n";
        }
        text
    }
}

fn whole(value: f64) -> String {
    format!("{value:.0}")
}

/// A title, a line of headings, and rows, with columns aligned to the right; nothing without rows.
fn table(title: &str, headings: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut lines: Vec<Vec<String>> = vec![headings.iter().map(|heading| (*heading).to_owned()).collect()];
    lines.extend(rows);
    if lines.len() == 1 {
        return String::new();
    }
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let mut text = format!("{title}\n");
    for line in &lines {
        let cells: Vec<String> =
            line.iter().zip(&widths).map(|(cell, width)| format!("{cell:>width$}")).collect();
        let _ = writeln!(text, "  {}", cells.join("  ")); // a String takes everything
    }
    text
}
