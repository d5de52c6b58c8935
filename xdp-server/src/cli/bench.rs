//! The command line of `xdp-server bench`. It has options of its own and none of the server's: what it
//! measures is in memory, on defaults, so that figures of two machines can be compared.

use super::{CliError, Command, MAX_CONNECTIONS_PER_WORKER};
use crate::bench::{Case, Settings};
use clap::Parser;
use std::ffi::OsString;

/// The word that selects it, as the first argument.
pub(super) const NAME: &str = "bench";

/// What is measured when no numbers are given: more connections take minutes and gigabytes.
const USUAL: [u32; 3] = [100, 1000, 10_000];

/// What `--full` adds: about as many as one worker may have.
const FULL: u32 = 60_000;

const AFTER_HELP: &str = "\
Runs unprivileged and opens no socket. Times are CPU time of one thread.

Examples:
  What does this machine do?
      xdp-server bench
  With 60,000 connections too; takes some minutes and 10 GB
      xdp-server bench --full
  Instructions of a message, counted by valgrind
      valgrind --tool=callgrind --collect-atstart=no --toggle-collect='*measured_worker*' \\
          xdp-server bench --only message --connections 1000 --rounds 1";

/// Measure in memory what a message, a broadcast packet, a handshake and a connection cost on this machine,
/// beside what QUIC alone costs
#[derive(Parser, Debug)]
#[command(
    name = "bench",
    bin_name = "xdp-server bench",
    after_help = AFTER_HELP,
    args_override_self = true,
    max_term_width = 100
)]
struct Args {
    /// Numbers of connections to measure with, separated by commas, each 1 to 65536 [default: 100,1000,10000]
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_CONNECTIONS_PER_WORKER))
    )]
    connections: Option<Vec<u32>>,

    /// Rounds of which the median is taken, 1 to 1000
    #[arg(
        long,
        value_name = "N",
        default_value_t = 9,
        value_parser = clap::value_parser!(u32).range(1..=1000)
    )]
    rounds: u32,

    /// Messages a second that the worker is told to come, 1000 to 100000000: how many of them wait for one
    /// acknowledgement depends on it
    #[arg(
        long,
        value_name = "MSG/S",
        default_value_t = 500_000,
        value_parser = clap::value_parser!(u32).range(1000..=100_000_000)
    )]
    rate: u32,

    /// Measure with 60000 connections, too
    #[arg(long)]
    full: bool,

    /// Measure this alone
    #[arg(long, value_name = "CASE", value_enum)]
    only: Option<Case>,

    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
}

/// What the arguments after [`NAME`] ask for.
///
/// # Errors
/// clap's, `--help` among them.
pub(super) fn parse(args: &[OsString]) -> Result<Command, CliError> {
    let args = Args::try_parse_from(args)?;
    let mut connections = args.connections.unwrap_or_else(|| USUAL.into());
    if args.full {
        connections.push(FULL);
    }
    Ok(Command::Bench(Settings {
        connections,
        rounds: args.rounds,
        rate: args.rate,
        round: None,
        only: args.only,
        json: args.json,
    }))
}
