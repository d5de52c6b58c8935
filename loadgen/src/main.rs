//! The `loadgen` program: flags in, a report out, an exit code. All the rest is in the library.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use loadgen::analysis::cli::ReportArgs;
use loadgen::cli::Cli;
use loadgen::report::{EXIT_FAILED, EXIT_USAGE};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// Exit code after a second Ctrl-C: 128 + SIGINT, as shells have it.
const EXIT_INTERRUPTED: i32 = 130;

/// `loadgen report`, beside the plain flags of a run.
#[derive(Parser)]
#[command(name = "loadgen", bin_name = "loadgen", version, max_term_width = 100)]
enum Subcommand {
    Report(ReportArgs),
}

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|word| word == "report") {
        let Subcommand::Report(report) = Subcommand::parse();
        return report.run();
    }
    let settings = match Cli::parse().settings() {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("loadgen: {error}\nFor all flags, try 'loadgen --help'.");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let json = settings.json;
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("loadgen: cannot start: {error}; are there too many open files? see `ulimit -n`");
            return ExitCode::from(EXIT_FAILED);
        }
    };
    let report = runtime.block_on(async {
        let (asked, stop) = oneshot::channel();
        tokio::spawn(signals(asked));
        let stop = async {
            // Without signals there is nothing to stop at.
            if stop.await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        loadgen::run(settings, stop).await
    });
    let text = if json { format!("{}\n", report.json()) } else { report.table() };
    // A reader that went away takes the report's place, not the exit code's.
    let _ = std::io::stdout().write_all(text.as_bytes());
    if let Some(error) = report.error.as_ref().or(report.verify_error.as_ref()) {
        eprintln!("loadgen: {error}");
    }
    ExitCode::from(report.exit_code())
}

/// Passes the first Ctrl-C or SIGTERM on; the second ends the process at once.
async fn signals(asked: oneshot::Sender<()>) {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        eprintln!("loadgen: cannot catch signals: Ctrl-C will end the run without a report");
        return;
    };
    let mut either = async || {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    either().await;
    // Whether or not the run still listens: the next one is final.
    let _ = asked.send(());
    either().await;
    std::process::exit(EXIT_INTERRUPTED);
}
