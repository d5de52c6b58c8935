//! `loadgen join`: the result files of several processes or machines as one.

use std::path::PathBuf;

use crate::cli::JoinArgs;
use crate::report::{EXIT_FAILED, EXIT_UNWRITTEN, MergeError, Origin, Report};
use crate::results::{ResultsError, read_report, write_report};

/// Why results could not be joined.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// A file cannot be read, or is no result.
    #[error(transparent)]
    Read(ResultsError),
    /// They are not of one run.
    #[error(transparent)]
    Merge(#[from] MergeError),
    /// A file is named twice: its figures would count twice.
    #[error("{} is named twice", .0.display())]
    Twice(PathBuf),
    /// The joined result cannot be written.
    #[error(transparent)]
    Write(ResultsError),
}

impl JoinError {
    /// The program's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Write(_) => EXIT_UNWRITTEN,
            _ => EXIT_FAILED,
        }
    }
}

/// Joins the files that `args` name, and writes the result if asked to.
///
/// # Errors
/// See [`JoinError`].
pub fn join(args: &JoinArgs) -> Result<Report, JoinError> {
    let mut reports = Vec::with_capacity(args.files.len());
    for (index, file) in args.files.iter().enumerate() {
        if args.files[..index].contains(file) {
            return Err(JoinError::Twice(file.clone()));
        }
        reports.push(read_report(file).map_err(JoinError::Read)?);
    }
    let joined = Report::merge(&args.id, &reports, Origin::Machines)?;
    if let Some(out) = &args.out {
        write_report(out, &joined).map_err(JoinError::Write)?;
    }
    Ok(joined)
}
