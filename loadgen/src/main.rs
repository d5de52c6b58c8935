//! The `loadgen` program: flags in, a report out, an exit code. All the rest is in the library.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use loadgen::cli::{Cli, Command};
use loadgen::report::{EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, Report};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

fn main() -> ExitCode {
    match Cli::parse_words(std::env::args_os()).command {
        Command::Run(args) => {
            let settings = match args.settings() {
                Ok(settings) => settings,
                Err(error) => {
                    eprintln!("loadgen: {error}\nFor all flags, try 'loadgen run --help'.");
                    return ExitCode::from(EXIT_USAGE);
                }
            };
            let json = settings.json;
            match on_a_runtime(run(settings)) {
                Ok(report) => say(&report, json),
                Err(code) => code,
            }
        }
        Command::Report(args) => args.run(),
        Command::Join(args) => match loadgen::join(&args) {
            Ok(report) => say(&report, args.json),
            Err(failure) => {
                eprintln!("loadgen: {failure}");
                ExitCode::from(failure.exit_code())
            }
        },
        Command::Worker => on_a_runtime(loadgen::work()).map_or_else(|code| code, ExitCode::from),
    }
}

fn on_a_runtime<T>(work: impl Future<Output = T>) -> Result<T, ExitCode> {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => Ok(runtime.block_on(work)),
        Err(error) => {
            eprintln!("loadgen: cannot start: {error}; are there too many open files? see `ulimit -n`");
            Err(ExitCode::from(EXIT_FAILED))
        }
    }
}

async fn run(settings: loadgen::cli::Settings) -> Report {
    let (asked, stop) = oneshot::channel();
    tokio::spawn(signals(asked));
    let stop = async {
        // Without signals there is nothing to stop at.
        if stop.await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    loadgen::run(settings, stop).await
}

/// Prints a report; its exit code is the program's.
fn say(report: &Report, json: bool) -> ExitCode {
    let colour = std::io::stdout().is_terminal();
    let text = if json { format!("{}\n", report.json()) } else { report.table(colour) };
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
    std::process::exit(EXIT_INTERRUPTED.into());
}
