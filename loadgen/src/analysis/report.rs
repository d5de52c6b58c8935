//! One object with everything that is told of a run: what `report.json` holds, and what the terminal's table,
//! the page and `scripts/visualize_load.py` are made from.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::diagnose::{Verdict, diagnose};
use super::folder::{Clients, FolderError, Results, Server};
use super::measure::{Measured, mean};
use super::{folder, html, text};

/// A run, read, measured and judged.
#[derive(Debug, Serialize)]
pub struct Analysis {
    /// The folder, as it was named.
    pub folder: String,
    /// What limited the run.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// The load; null without a load generator's file.
    pub clients: Option<Clients>,
    /// The server's figures over the window.
    pub measured: Measured,
    /// The server, second by second.
    pub server: ServerSeries,
    /// Resident memory of the server in MB, by time.
    pub rss_mb: Vec<(f64, f64)>,
    /// `host.json`.
    pub host: Option<Value>,
    /// What is missing, a sentence each.
    pub notes: Vec<String>,
}

/// The server's seconds, in columns.
#[derive(Debug, Default, Serialize)]
pub struct ServerSeries {
    /// Ends of the seconds.
    pub t_s: Vec<f64>,
    /// Connections.
    pub connections: Vec<f64>,
    /// Messages received a second.
    pub messages_per_s: Vec<f64>,
    /// Diffs handed out a second.
    pub diffs_per_s: Vec<f64>,
    /// Drops in each second, by cause.
    pub drops: BTreeMap<String, Vec<u64>>,
    /// Names of the regimes, in the order of `regimes`.
    pub regime_names: Vec<String>,
    /// By regime, its share of all workers' time in each second.
    pub regimes: Vec<Vec<f64>>,
}

impl Analysis {
    /// Reads, measures and judges the run in `folder`.
    ///
    /// # Errors
    /// See [`FolderError`].
    pub fn of(path: &Path) -> Result<Analysis, FolderError> {
        let results = folder::read(path)?;
        let measured = Measured::of(&results);
        let verdict = diagnose(&results, &measured);
        let Results { clients, server, monitor, host, mut notes, .. } = results;
        if !measured.window_known {
            notes.push("no load generator names a measured window: figures are of the whole run".to_owned());
        }
        Ok(Analysis {
            folder: path.display().to_string(),
            verdict,
            clients,
            measured,
            server: server.as_ref().map(ServerSeries::of).unwrap_or_default(),
            rss_mb: monitor.iter().flat_map(|monitor| monitor.column("rss_mb")).collect(),
            host,
            notes,
        })
    }

    /// The table for the terminal, at most 100 columns, with colours as ANSI codes.
    pub fn text(&self) -> String {
        text::text(self)
    }

    /// The page: one file that needs no other.
    pub fn html(&self) -> String {
        html::page(self)
    }

    /// `report.json`.
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("numbers, strings and maps by string are JSON")
    }

    /// `verdict.json`.
    pub fn verdict_json(&self) -> String {
        serde_json::to_string_pretty(&self.verdict).expect("strings are JSON")
    }
}

impl ServerSeries {
    fn of(server: &Server) -> ServerSeries {
        let seconds = &server.seconds;
        let mut drops: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for (i, second) in seconds.iter().enumerate() {
            for (cause, count) in &second.drops {
                drops.entry(cause.clone()).or_insert_with(|| vec![0; seconds.len()])[i] = *count;
            }
        }
        let share = |regime: usize, second: &folder::ServerSecond| {
            mean(second.workers.iter().map(|worker| worker.regimes[regime])).unwrap_or(0.0)
        };
        ServerSeries {
            t_s: seconds.iter().map(|second| second.t_s).collect(),
            connections: seconds.iter().map(|second| second.connections).collect(),
            messages_per_s: seconds.iter().map(|second| second.messages_per_s).collect(),
            diffs_per_s: seconds.iter().map(|second| second.diffs_per_s).collect(),
            drops,
            regime_names: server.regimes.clone(),
            regimes: (0..server.regimes.len())
                .map(|regime| seconds.iter().map(|second| share(regime, second)).collect())
                .collect(),
        }
    }
}
