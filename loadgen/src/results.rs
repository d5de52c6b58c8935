//! Result files: `loadgen-<id>.json`, the report, and `timeline-<id>.jsonl`, a line a second.
//!
//! The timeline is written as the run goes, a whole line at a time, so that a run that is killed leaves what
//! there was. The report is written at the end, beside its place and then moved there, so that a file of
//! that name is always whole.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::report::Report;

/// Why results are not where they should be.
#[derive(Debug, thiserror::Error)]
pub enum ResultsError {
    /// The folder or a file could not be made, or not be written.
    #[error("cannot write {path}: {source}{}", hint(.source))]
    Write {
        /// The folder or file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file is not a report.
    #[error("{path} is no result of loadgen: {source}; give the loadgen-<id>.json files of --out")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// What to do about it, where that is known.
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull => "; make room, or name a folder on another disk",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; name a folder that may be written to"
        }
        _ => "",
    }
}

fn write_error(path: &Path, source: io::Error) -> ResultsError {
    ResultsError::Write { path: path.to_owned(), source }
}

/// The result files of a run in one folder.
#[derive(Debug)]
pub struct Results {
    folder: PathBuf,
    id: String,
    timeline: File,
    timeline_path: PathBuf,
}

impl Results {
    /// Makes the folder if it is not there, and an empty timeline in it; what a run of the same id left
    /// there is overwritten.
    ///
    /// # Errors
    /// The folder or the file cannot be made.
    pub fn create(folder: &Path, id: &str) -> Result<Self, ResultsError> {
        fs::create_dir_all(folder).map_err(|error| write_error(folder, error))?;
        let timeline_path = folder.join(format!("timeline-{id}.jsonl"));
        let timeline = File::create(&timeline_path).map_err(|error| write_error(&timeline_path, error))?;
        Ok(Self { folder: folder.to_owned(), id: id.to_owned(), timeline, timeline_path })
    }

    /// Adds a line to the timeline.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn timeline(&mut self, line: &str) -> Result<(), ResultsError> {
        // One write: nothing is buffered here that a killed process would lose.
        let written = self.timeline.write_all(format!("{line}\n").as_bytes());
        written.map_err(|error| write_error(&self.timeline_path, error))
    }

    /// Writes the report; returns its path.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn report(&self, report: &Report) -> Result<PathBuf, ResultsError> {
        let path = self.folder.join(format!("loadgen-{}.json", self.id));
        write_report(&path, report)?;
        Ok(path)
    }
}

/// Writes a report into a file of this name.
///
/// # Errors
/// It cannot be written; no such file is left then, or the one that was there before.
pub fn write_report(path: &Path, report: &Report) -> Result<(), ResultsError> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".unfinished");
    let unfinished = PathBuf::from(unfinished);
    let written = File::create(&unfinished)
        .and_then(|mut file| {
            file.write_all(format!("{}\n", report.json()).as_bytes())?;
            // A full disk may show only here.
            file.sync_all()
        })
        .and_then(|()| fs::rename(&unfinished, path));
    written.map_err(|error| {
        // If it cannot be removed either, the error to tell is the first.
        let _ = fs::remove_file(&unfinished);
        write_error(path, error)
    })
}

/// Reads a report.
///
/// # Errors
/// It cannot be read, or is none.
pub fn read_report(path: &Path) -> Result<Report, ResultsError> {
    let text =
        fs::read_to_string(path).map_err(|source| ResultsError::Read { path: path.to_owned(), source })?;
    serde_json::from_str(&text).map_err(|source| ResultsError::Format { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_can_be_read_and_a_timeline_is_there_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut results = Results::create(&folder.path().join("new/one"), "m-1").unwrap();
        results.timeline("{}").unwrap();
        let timeline = folder.path().join("new/one/timeline-m-1.jsonl");
        assert_eq!(fs::read_to_string(timeline).unwrap(), "{}\n");
        let report = Report { clients: 7, ..Report::default() };
        let path = results.report(&report).unwrap();
        assert_eq!(path, folder.path().join("new/one/loadgen-m-1.json"));
        assert_eq!(read_report(&path).unwrap().json(), report.json());
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 2, "nothing unfinished is left");
    }

    #[test]
    fn errors_name_the_file_and_the_remedy() {
        let full = write_error(Path::new("/r/x"), io::Error::from(io::ErrorKind::StorageFull)).to_string();
        assert!(full.contains("/r/x") && full.contains("make room"), "{full}");
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("text");
        fs::write(&file, "hello").unwrap();
        for error in [
            read_report(&file).unwrap_err(),
            read_report(&folder.path().join("none")).unwrap_err(),
            Results::create(&file, "id").unwrap_err(),
        ] {
            assert!(error.to_string().contains(folder.path().to_str().unwrap()), "{error}");
        }
    }
}
