//! Reads a results folder, tolerantly: what is missing or cut off becomes a note, not an error.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;

pub use super::clients::{Clients, Curve};
pub use super::monitor::Monitor;
pub use super::server::{Server, ServerSecond};

/// All that a run left behind. Times are seconds since the run's first load generator started.
#[derive(Debug, Default)]
pub struct Results {
    /// The load generators' reports and timelines, merged; `None` without any.
    pub clients: Option<Clients>,
    /// `server.jsonl`.
    pub server: Option<Server>,
    /// `monitor.csv`.
    pub monitor: Option<Monitor>,
    /// `host.json`: what is needed to repeat the run.
    pub host: Option<Value>,
    /// `dmesg.txt`: what the server's kernel said during the run.
    pub dmesg: Option<String>,
    /// What is missing or was unreadable, a sentence each.
    pub notes: Vec<String>,
}

/// Why a folder cannot be reported on at all.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// It is not there, or not to be read.
    #[error("cannot read the folder {}: {error}", path.display())]
    Unreadable {
        /// The folder.
        path: PathBuf,
        /// The system's words.
        error: std::io::Error,
    },
    /// No file of it is of a run.
    #[error(
        "{} is no results folder: it has no loadgen-*.json, server.jsonl or monitor.csv. \
         To make one: sudo scripts/bench.sh --testbed --out DIR, or loadgen run paint --out DIR", .0.display()
    )]
    NoResults(PathBuf),
}

/// Reads the results of one run.
///
/// # Errors
/// When the folder cannot be read, or holds nothing of a run.
pub fn read(path: &Path) -> Result<Results, FolderError> {
    let unreadable = |error| FolderError::Unreadable { path: path.to_owned(), error };
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(unreadable)? {
        names.extend(entry.map_err(unreadable)?.file_name().into_string());
    }
    names.sort();
    let mut files = Files { path, notes: Vec::new() };
    let clients = Clients::read(&mut files, &names);
    let server_lines = files.json_lines("server.jsonl");
    let csv = files.text("monitor.csv");
    if clients.is_none() && server_lines.is_none() && csv.is_none() {
        return Err(FolderError::NoResults(path.to_owned()));
    }
    // Without a load generator's file the server's start is the beginning of time.
    let origin_ms = clients.as_ref().and_then(Clients::started_unix_ms);
    let server = server_lines.and_then(|lines| Server::parse(&lines, origin_ms));
    let origin_ms = origin_ms.or(server.as_ref().and_then(|server| server.origin_ms));
    let monitor = csv.and_then(|csv| match Monitor::parse(&csv, origin_ms) {
        Ok(monitor) => Some(monitor),
        Err(error) => {
            files.notes.push(format!("monitor.csv is not to be read: {error}"));
            None
        }
    });
    let host = files.json("host.json");
    let dmesg = files.text("dmesg.txt");
    Ok(Results { clients, server, monitor, host, dmesg, notes: files.notes })
}

/// A folder's files, and what was wrong with them.
pub(super) struct Files<'a> {
    path: &'a Path,
    pub(super) notes: Vec<String>,
}

impl Files<'_> {
    /// The text of a file; `None`, with a note, when there is none.
    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        match fs::read(self.path.join(name)) {
            // A crash may leave anything behind, even in the middle of a character.
            Ok(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
            Err(error) => {
                self.notes.push(match error.kind() {
                    ErrorKind::NotFound => format!("{name} is missing"),
                    _ => format!("{name} cannot be read: {error}"),
                });
                None
            }
        }
    }

    /// A file that is one JSON object.
    pub(super) fn json<T: DeserializeOwned>(&mut self, name: &str) -> Option<T> {
        let text = self.text(name)?;
        serde_json::from_str(&text)
            .map_err(|error| self.notes.push(format!("{name} is cut off or damaged: {error}")))
            .ok()
    }

    /// A file of one JSON object a line. Lines that are none are left out, with a note.
    pub(super) fn json_lines(&mut self, name: &str) -> Option<Vec<Value>> {
        let text = self.text(name)?;
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let mut objects = Vec::with_capacity(lines.len());
        let mut bad = 0;
        for (i, line) in lines.iter().enumerate() {
            match serde_json::from_str(line) {
                Ok(object) => objects.push(object),
                Err(_) if i + 1 == lines.len() => {
                    self.notes.push(format!("the last line of {name} is cut off"));
                }
                Err(_) => bad += 1,
            }
        }
        if bad > 0 {
            self.notes.push(format!("{bad} lines of {name} are damaged, and left out"));
        }
        Some(objects)
    }
}
