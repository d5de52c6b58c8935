//! A client that is faster than the server: see [`peers::client`].

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use clap::{ArgGroup, Parser, value_parser};
use peers::client::blast::{Auditor, Outcome, Sender};
use peers::client::cores::Cores;
use peers::client::fleet::{Fleet, Role, Settings};
use peers::client::prepare::{Preparer, Via};
use peers::client::search::{self, Search};
use peers::client::{handshakes, watch};
use peers::serve::{pin, stop_flag};
use serde_json::Value;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const AFTER_HELP: &str = "\
Without --search, --watch or --handshakes it sends for --seconds, at --rate or as fast as it can.

Exit status:
  0    it ran; whether the server kept up is in the figures
  1    the server could not be reached, lost a client, or this host lacks something
  2    a wrong option
  130  interrupted";

/// Saturates a canvas/1 server: prepares encrypted packets ahead, and sends them faster than it takes them
#[derive(Parser)]
#[command(name = "saturate", version, after_help = AFTER_HELP, max_term_width = 100)]
#[command(group = ArgGroup::new("mode").args(["search", "watch", "handshakes"]))]
struct Options {
    /// The server
    #[arg(long, value_name = "ADDR:PORT")]
    target: SocketAddr,

    /// Clients that paint, in random order
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = value_parser!(u32).range(1..))]
    connections: u32,

    /// UDP sockets, and so source ports, that they share
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = value_parser!(u16).range(1..=4096))]
    sockets: u16,

    /// Time to send, to watch or to shake hands for; with --search, at each rate
    #[arg(long, value_name = "SECONDS", default_value = "3", value_parser = seconds)]
    seconds: Duration,

    /// Packets to send a second [default: as many as can be]; with --search, the first rate [default: 50000]
    #[arg(long, value_name = "PACKETS/S", value_parser = value_parser!(u32).range(1..))]
    rate: Option<u32>,

    /// Packets to prepare for each second of sending as fast as can be [default: 1200000]; with --search, the
    /// highest rate short of that. Each takes 128 bytes, and some 300 in quiche
    #[arg(
        long,
        value_name = "PACKETS/S",
        value_parser = value_parser!(u32).range(1..),
        default_value_t = 1_200_000,
        hide_default_value = true
    )]
    most: u32,

    /// How packets leave
    #[arg(long, value_enum, default_value_t = Via::Packet)]
    via: Via,

    /// Find the highest rate that the server takes without loss, and the most messages a second at any rate
    #[arg(long)]
    search: bool,

    /// Per cent of the packets that may be lost at that rate
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0, requires = "search")]
    loss: f64,

    /// Have N clients watch the whole canvas while one paints; tells what each tick brought
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    watch: Option<u32>,

    /// Pixels a second that the one paints
    #[arg(long, value_name = "PIXELS/S", default_value_t = 1000.0, requires = "watch")]
    pixels: f64,

    /// Connect and leave, over and over
    #[arg(long)]
    handshakes: bool,

    /// Resume an earlier session each time
    #[arg(long, requires = "handshakes")]
    resume: bool,

    /// CPU to run on [default: the kernel chooses]
    #[arg(long, value_name = "N")]
    cpu: Option<usize>,

    /// CPU of the server, where it is on this machine: tells how that CPU spent the time
    #[arg(long, value_name = "N")]
    server_cpu: Option<usize>,

    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

impl Options {
    fn cores(&self) -> Cores {
        Cores { server: self.server_cpu, client: self.cpu }
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "a number of seconds".to_owned())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if (0.05..=3600.0).contains(&seconds) => Ok(duration),
        _ => Err("0.05 to 3600 seconds".to_owned()),
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let stop = match stop_flag() {
        Ok(stop) => stop,
        Err(error) => return fail(&error),
    };
    match run(&options, &stop) {
        Ok(report) => {
            let text = if options.json { report.to_string() } else { table(&report) };
            // Whoever read this has gone: there is nobody to tell.
            let _ = writeln!(std::io::stdout(), "{text}");
            ExitCode::SUCCESS
        }
        Err(_) if stop.load(Ordering::Relaxed) => {
            eprintln!("saturate: interrupted");
            ExitCode::from(130)
        }
        Err(error) => fail(&error),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("saturate: {error:#}");
    ExitCode::from(1)
}

fn run(options: &Options, stop: &Arc<AtomicBool>) -> Result<Value> {
    options.cpu.map_or(Ok(()), pin)?;
    let settings = Settings {
        target: options.target,
        sockets: options.sockets.into(),
        // Everything that may be prepared for one client, in packets; acknowledgements are not waited for.
        window: 1 << 24,
    };
    if let Some(watchers) = options.watch {
        return watch_canvas(options, settings, watchers as usize, stop);
    }
    if options.handshakes {
        return shake_hands(options, settings, stop);
    }
    let mut auditor = Auditor::connect(settings, stop.clone())?;
    let mut fleet = Fleet::new(settings, stop.clone())?;
    let count = options.connections as usize;
    let mut counter = Progress::new("connected", count);
    fleet.connect(count, |_| Role::Painter, |ready| counter.at(ready))?;
    // What servers send after a handshake: tickets, spare connection IDs.
    auditor.wait(Duration::from_millis(300))?;
    fleet.drain()?;
    let mut preparer = Preparer::new(&fleet, options.via)?;
    let mut sender = Sender::new(&preparer, options.cores(), stop.clone())?;
    if options.search {
        let plan = search::Plan {
            first: options.rate.unwrap_or(50_000).into(),
            most: options.most.into(),
            step: options.seconds,
            loss: options.loss / 100.0,
        };
        let mut search =
            Search { fleet: &mut fleet, preparer: &mut preparer, sender: &mut sender, auditor: &mut auditor };
        let found = search.run(plan, say)?;
        return Ok(found.json());
    }
    let packets = (f64::from(options.rate.unwrap_or(options.most)) * options.seconds.as_secs_f64()) as usize;
    let mut counter = Progress::new("packets prepared", packets);
    let prepared = preparer.prepare(&mut fleet, packets.max(1), |ready| counter.at(ready))?;
    let rate = options.rate.map(f64::from);
    let outcome = sender.measure(&fleet, &prepared, rate, options.seconds, &mut auditor)?;
    Ok(outcome.json())
}

/// Tells how an attempt went.
fn say(outcome: &Outcome) {
    let (sent, applied, loss) = (outcome.sent.rate(), outcome.applied_per_s(), outcome.loss() * 100.0);
    eprintln!("saturate: {sent:.0} packets/s sent, {applied:.0} messages/s applied, {loss:.3}% lost");
}

fn watch_canvas(
    options: &Options,
    settings: Settings,
    watchers: usize,
    stop: &Arc<AtomicBool>,
) -> Result<Value> {
    let mut fleet = Fleet::new(Settings { window: 1000, ..settings }, stop.clone())?;
    let plan =
        watch::Plan { watchers, pixels: options.pixels, window: options.seconds, cores: options.cores() };
    let mut counter = Progress::new("connected", watchers + 1);
    let watched = watch::watch(
        &mut fleet,
        plan,
        |ready| counter.at(ready),
        |datagrams| {
            eprintln!("saturate: {datagrams} diffs");
        },
    )?;
    Ok(watched.json())
}

fn shake_hands(options: &Options, settings: Settings, stop: &Arc<AtomicBool>) -> Result<Value> {
    let mut fleet = Fleet::new(Settings { window: 10, ..settings }, stop.clone())?;
    let shaken =
        handshakes::shake(&mut fleet, options.seconds, options.resume, options.cores(), |handshakes| {
            eprintln!("saturate: {handshakes} handshakes");
        })?;
    Ok(shaken.json())
}

/// The report as a table of two columns.
fn table(report: &Value) -> String {
    let fields = report.as_object().into_iter().flatten();
    fields
        .map(|(name, value)| format!("{:<22}{value}", name.replace('_', " ")))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Says how far something is, once a second at most.
struct Progress {
    what: &'static str,
    of: usize,
    next: std::time::Instant,
}

impl Progress {
    fn new(what: &'static str, of: usize) -> Self {
        Self { what, of, next: std::time::Instant::now() + Duration::from_secs(1) }
    }

    fn at(&mut self, count: usize) {
        if std::time::Instant::now() >= self.next || count == self.of {
            self.next = std::time::Instant::now() + Duration::from_secs(1);
            eprintln!("saturate: {count} of {} {}", self.of, self.what);
        }
    }
}
