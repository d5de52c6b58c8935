//! The command line: commands and flags, their checks, and the settings that the rest of the program runs
//! by.
//!
//! `loadgen --target ...` without a command is `loadgen run paint --target ...`, and `loadgen --join ...` is
//! `loadgen join ...`; that is decided by looking at the first word, before clap sees any.

mod args;
mod settings;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::analysis::cli::ReportArgs;
pub use args::RunArgs;
pub use settings::{Settings, UsageError};

/// The end of `--help`.
const AFTER_HELP: &str = "\
Flags without a command are those of `run paint`: loadgen --target https://10.0.0.10:4433 --clients 15000

Exit codes:
  0    the run went as asked
  1    the run failed: too many connections did (--max-failed), or --verify found a fault
  2    wrong usage
  3    target unreachable: nobody connected
  4    all connections were lost in the middle: the server died, was stopped, or is cut off
  5    the server refused the token
  6    the results could not be written
  130  ended by a second Ctrl-C";

/// Loads a canvas/1 server with clients that paint, and proves that every pixel arrived.
#[derive(Debug, Parser)]
#[command(name = "loadgen", version, max_term_width = 100, after_help = AFTER_HELP)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Load a server
    Run(Box<RunArgs>),
    /// Merge the results of several processes or machines into one
    Join(JoinArgs),
    /// Name the bottleneck of a run from its results folder, and draw it
    Report(ReportArgs),
    /// Carry a share of another process's load; that process writes the settings on our standard input
    #[command(hide = true)]
    Worker,
}

/// The flags of `loadgen join`.
#[derive(Debug, clap::Args)]
pub struct JoinArgs {
    /// Results to merge: loadgen-<id>.json files of --out
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,

    /// Write the merged result into this file
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,

    /// Name of the merged result
    #[arg(long, value_name = "NAME", default_value = "joined")]
    pub id: String,

    /// Print one JSON object, the last line on stdout, instead of the summary table
    #[arg(long)]
    pub json: bool,
}

impl Cli {
    /// Parses a command line, the program's name first; ends the program if it is wrong, or asks for help.
    pub fn parse_words(words: impl IntoIterator<Item = OsString>) -> Self {
        Self::parse_from(with_command(words))
    }
}

/// The command line with its command, where that is left out.
fn with_command(words: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut words: Vec<OsString> = words.into_iter().collect();
    let first = words.get(1).map(|word| word.to_string_lossy().into_owned());
    match first.as_deref() {
        Some("--help" | "-h" | "--version" | "-V") => {}
        Some("--join") => words[1] = "join".into(),
        Some(flag) if flag.starts_with('-') => words.insert(1, "run".into()),
        Some(_) => {}
        // Says what is missing to run.
        None => words.push("run".into()),
    }
    words
}
