//! `loadgen report DIR`: the subcommand.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::report::Analysis;
use crate::report::{EXIT_FAILED, EXIT_OK};

/// The end of `loadgen report --help`.
const AFTER_HELP: &str = "\
Writes DIR/report.html, one page that needs no other file; DIR/verdict.json, the findings; \
DIR/report.json, all figures and series, which scripts/visualize_load.py draws as PNG. Files of the run \
that are missing or cut off are named, and the rest is used. Several loadgen-*.json in DIR are one run, \
and are merged.

Exit codes:
  0  a report was made, whatever the verdict
  1  DIR is no results folder, or the report cannot be written
  2  wrong usage";

/// Names the bottleneck of a run from its results folder, and draws it.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct ReportArgs {
    /// Results folder: loadgen-*.json, timeline-*.jsonl, server.jsonl, monitor.csv, ...
    dir: PathBuf,

    /// Where to write the page [default: DIR/report.html]
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,

    /// Print report.json, one object on one line, instead of the table
    #[arg(long)]
    json: bool,
}

impl ReportArgs {
    /// Does it; what goes wrong is said on standard error.
    pub fn run(&self) -> ExitCode {
        let analysis = match Analysis::of(&self.dir) {
            Ok(analysis) => analysis,
            Err(error) => {
                eprintln!("loadgen report: {error}");
                return ExitCode::from(EXIT_FAILED);
            }
        };
        let html = self.html.clone().unwrap_or_else(|| self.dir.join("report.html"));
        let files = [
            (html.clone(), analysis.html()),
            (self.dir.join("verdict.json"), analysis.verdict_json() + "\n"),
            (self.dir.join("report.json"), analysis.json() + "\n"),
        ];
        let mut status = EXIT_OK;
        for (path, content) in &files {
            if let Err(error) = write_whole(path, content) {
                eprintln!("loadgen report: cannot write {}: {error}", path.display());
                status = EXIT_FAILED;
            }
        }
        // A reader that went away takes the table's place, not the exit code's.
        let mut out = anstream::stdout();
        let _ =
            if self.json { writeln!(out, "{}", analysis.json()) } else { write!(out, "{}", analysis.text()) };
        if status == EXIT_OK {
            eprintln!("wrote {}, and verdict.json and report.json in {}", html.display(), self.dir.display());
        }
        ExitCode::from(status)
    }
}

/// Writes a file beside its place and moves it there: a full disk leaves the old one, not half of the new.
fn write_whole(path: &Path, content: &str) -> std::io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".part");
    fs::write(&beside, content).and_then(|()| fs::rename(&beside, path)).inspect_err(|_| {
        // Whether or not it was made: the error is what counts.
        let _ = fs::remove_file(&beside);
    })
}
