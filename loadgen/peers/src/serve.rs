//! What both peer servers are told on the command line, and what they say: the same JSON lines as xdp-server.
//!
//! Standard output has one object a line, `start`, then `second` each second, then `summary`, with the fields
//! of xdp-server's that make sense here, so that one script reads all of them. Standard error is for people.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Parser, value_parser};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use nix::unistd::Pid;
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};

use crate::session::{Board, Counts};
use crate::udp::set_buffers;

/// Bytes of receive and of send buffer asked of the kernel: xdp-server's default. Smaller loses bursts,
/// larger only delays what an overloaded server loses.
const SOCKET_BUFFER: usize = 64 << 20;

/// Settings of a peer server. It runs on one thread.
#[derive(Clone, Debug, Parser)]
#[command(version, max_term_width = 100)]
pub struct Options {
    /// Address and UDP port to serve
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:4433")]
    pub listen: SocketAddr,

    /// CPU to run on [default: the kernel chooses]
    #[arg(long, value_name = "N")]
    pub cpu: Option<usize>,

    /// Width of the canvas in pixels
    #[arg(long, value_name = "PIXELS", default_value_t = 1000, value_parser = value_parser!(u16).range(1..))]
    pub width: u16,

    /// Height of the canvas in pixels
    #[arg(long, value_name = "PIXELS", default_value_t = 1000, value_parser = value_parser!(u16).range(1..))]
    pub height: u16,

    /// Milliseconds from one broadcast of changes to the next, 5 to 1000
    #[arg(long, value_name = "MS", default_value_t = 50, value_parser = value_parser!(u64).range(5..=1000))]
    pub tick_ms: u64,

    /// Bytes of the socket's receive and send buffer, each
    #[arg(long, value_name = "BYTES", default_value_t = SOCKET_BUFFER)]
    pub socket_buffer: usize,

    /// Seconds after which to end [default: run until SIGTERM or Ctrl-C]
    #[arg(long, value_name = "SECONDS")]
    pub duration: Option<u64>,
}

impl Options {
    /// Time from one broadcast to the next.
    pub fn tick(&self) -> Duration {
        Duration::from_millis(self.tick_ms)
    }

    /// The canvas.
    ///
    /// # Errors
    /// There is no memory.
    pub fn board(&self) -> Result<Board> {
        Board::new(self.width, self.height, self.tick())
    }

    /// The socket to serve on.
    ///
    /// # Errors
    /// The address is not this host's, or taken.
    pub fn socket(&self) -> Result<Socket> {
        let socket = Socket::new(Domain::for_address(self.listen), Type::DGRAM, Some(Protocol::UDP))?;
        set_buffers(&socket, self.socket_buffer)?;
        socket.set_nonblocking(true)?;
        socket.bind(&self.listen.into()).with_context(|| format!("cannot serve on {}", self.listen))?;
        Ok(socket)
    }

    /// Moves this thread to the CPU that was asked for.
    ///
    /// # Errors
    /// There is no such CPU, or it is not allowed.
    pub fn pin(&self) -> Result<()> {
        self.cpu.map_or(Ok(()), pin)
    }
}

/// Moves this thread to `cpu`.
///
/// # Errors
/// There is no such CPU, or it is not allowed.
pub fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
        .with_context(|| format!("cannot run on CPU {cpu}"))
}

/// A flag that SIGTERM and Ctrl-C set.
///
/// # Errors
/// The signals cannot be caught.
pub fn stop_flag() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        // A second one ends the program at once.
        signal_hook::flag::register_conditional_shutdown(signal, 130, stop.clone())?;
        signal_hook::flag::register(signal, stop.clone())?;
    }
    Ok(stop)
}

/// A self-signed certificate and its key, P-256 as xdp-server's own.
///
/// # Errors
/// There is no randomness.
pub fn certificate() -> Result<rcgen::CertifiedKey<rcgen::KeyPair>> {
    Ok(rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?)
}

/// Says what happens, once a second.
pub struct Reporter {
    started: Instant,
    ends: Option<Instant>,
    stop: Arc<AtomicBool>,
    last: Instant,
    before: Counts,
    cpu_before: Duration,
}

impl Reporter {
    /// Reports the start: the server of this name serves.
    ///
    /// # Errors
    /// The signals cannot be caught.
    pub fn start(server: &str, options: &Options) -> Result<Self> {
        let now = Instant::now();
        eprintln!("{server}: serving canvas/1 on {} (UDP)", options.listen);
        say(&json!({ "event": "start", "backend": server, "listen": options.listen.to_string() }));
        Ok(Self {
            started: now,
            ends: options.duration.map(|seconds| now + Duration::from_secs(seconds)),
            stop: stop_flag()?,
            last: now,
            before: Counts::default(),
            cpu_before: cpu_time(),
        })
    }

    /// True when the server is to end.
    pub fn is_over(&self, now: Instant) -> bool {
        self.stop.load(Ordering::Relaxed) || self.ends.is_some_and(|ends| now >= ends)
    }

    /// Reports the last second, if it is over. Call it every tick.
    pub fn second(&mut self, board: &Board, now: Instant) {
        let interval = now.duration_since(self.last);
        if interval < Duration::from_secs(1) {
            return;
        }
        let (counts, before, cpu) = (board.counts, self.before, cpu_time());
        let seconds = interval.as_secs_f64();
        let rate = |now: u64, before: u64| ((now - before) as f64 / seconds).round();
        say(&json!({
            "event": "second",
            "interval_s": seconds,
            "connections": counts.connections,
            "messages_per_s": rate(counts.messages, before.messages),
            "diffs_per_s": rate(counts.diffs, before.diffs),
            "handshakes_per_s": rate(counts.handshakes, before.handshakes),
            "cpu": (cpu - self.cpu_before).as_secs_f64() / seconds,
        }));
        (self.last, self.before, self.cpu_before) = (now, counts, cpu);
    }

    /// Reports the end.
    pub fn summary(&self, board: &Board) {
        let counts = board.counts;
        say(&json!({
            "event": "summary",
            "elapsed_s": self.started.elapsed().as_secs_f64(),
            "handshakes": counts.handshakes,
            "connections": counts.connections,
            "messages": counts.messages,
            "pixels_applied": board.applied(),
            "pixels_rejected": counts.rejected,
            "diffs_sent": counts.diffs,
            "diffs_refused": counts.diffs_refused,
            "cpu_s": cpu_time().as_secs_f64(),
        }));
    }
}

fn say(line: &serde_json::Value) {
    // Whoever read this has gone: the server is not at fault, and its end is near.
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// User and system time of this process.
pub fn cpu_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF);
    usage.map_or(Duration::ZERO, |usage| {
        Duration::from_micros((usage.user_time() + usage.system_time()).num_microseconds() as u64)
    })
}
