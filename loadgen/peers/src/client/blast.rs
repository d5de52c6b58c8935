//! Sending prepared packets, as fast as can be or at a rate; and what the server made of them.
//!
//! While packets leave, answers are dropped by a filter on each socket, at the price of a lookup: reading
//! them would cost more than sending. What the server made of the packets it says itself: a connection of its
//! own, that paints nothing, asks for STATS before and after ([`Auditor`]).

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use canvas::codec::control::{ClientFrame, ServerStats};
use serde_json::{Value, json};
use socket2::Socket;

use super::cores::{Cores, Spent};
use super::fleet::{Event, Fleet, Role, Settings};
use super::prepare::{Prepared, Preparer};
use crate::packet::PacketSocket;
use crate::udp::{BATCH, send_all, zeroed_headers, zeroed_iovecs};

/// Packets sent at once at a given rate. veth's ring has 256 places: a burst is to take a part of it only.
const PACED_BURST: usize = 16;

/// Time between two looks at the server's count after a blast.
const LOOK: Duration = Duration::from_millis(10);

/// Time without a change after which the server has settled: some ticks, which xdp-server counts by.
const SETTLED: Duration = Duration::from_millis(200);

/// Seconds that a server which keeps up may go on for after the last packet: a wake-up and a batch or two.
const BACKLOG: f64 = 0.05;

/// Time that the server may take to settle: it may have a socket buffer full of packets to work off.
const SETTLE_LIMIT: Duration = Duration::from_secs(30);

/// What was sent.
#[derive(Clone, Copy, Debug)]
pub struct Blasted {
    /// Packets handed to the kernel.
    pub sent: u64,
    /// Packets that the kernel refused at once, for want of room at the other end.
    pub refused: u64,
    /// Seconds since 1970 at the start.
    pub started: f64,
    /// Seconds from the first packet to the last.
    pub elapsed: f64,
}

impl Blasted {
    /// Packets a second.
    pub fn rate(&self) -> f64 {
        self.sent as f64 / self.elapsed.max(1e-9)
    }
}

/// What was sent, and what the server made of it.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// What was sent.
    pub sent: Blasted,
    /// Pixels that the server applied, which is one for each packet.
    pub applied: u64,
    /// Pixels that it rejected.
    pub rejected: u64,
    /// Seconds from the first packet until the server had worked off the last: a socket's buffer may hold
    /// many when the sending ends.
    pub busy: f64,
    /// How the cores spent the time.
    pub spent: Spent,
}

impl Outcome {
    /// Messages a second that the server dealt with.
    pub fn applied_per_s(&self) -> f64 {
        self.applied as f64 / self.busy.max(1e-9)
    }

    /// Share of the packets, 0 to 1, that the server did not apply.
    pub fn loss(&self) -> f64 {
        1.0 - self.applied as f64 / self.sent.sent.max(1) as f64
    }

    /// True unless the server had a backlog at the end: a rate that only its buffers can take is too high.
    pub fn kept_up(&self) -> bool {
        self.busy - self.sent.elapsed <= BACKLOG
    }

    /// For machines.
    pub fn json(&self) -> Value {
        let mut report = json!({
            "messages_per_s": self.applied_per_s().round(),
            "packets_per_s": self.sent.rate().round(),
            "packets_sent": self.sent.sent,
            "packets_refused": self.sent.refused,
            "applied": self.applied,
            "rejected": self.rejected,
            "loss": self.loss(),
            "started_unix": self.sent.started,
            "elapsed_s": self.sent.elapsed,
            "busy_s": self.busy,
        });
        self.spent.add_to(&mut report);
        report
    }
}

/// Sends prepared packets.
pub struct Sender {
    /// `None`: through the fleet's UDP sockets.
    frames: Option<PacketSocket>,
    headers: Box<[libc::mmsghdr]>,
    iovecs: Box<[libc::iovec]>,
    cores: Cores,
    stop: Arc<AtomicBool>,
}

impl Sender {
    /// A sender of what `preparer` makes.
    ///
    /// # Errors
    /// Frames cannot be sent.
    pub fn new(preparer: &Preparer, cores: Cores, stop: Arc<AtomicBool>) -> Result<Self> {
        let frames = preparer.link().map(PacketSocket::new).transpose()?;
        Ok(Self { frames, headers: zeroed_headers(), iovecs: zeroed_iovecs(), cores, stop })
    }

    /// Sends `prepared` as [`Sender::blast`] does, for `window` or until all is sent, and asks `auditor` what
    /// the server made of it.
    ///
    /// # Errors
    /// The server could not be asked, or as [`Sender::blast`].
    pub fn measure(
        &mut self,
        fleet: &Fleet,
        prepared: &Prepared,
        rate: Option<f64>,
        window: Duration,
        auditor: &mut Auditor,
    ) -> Result<Outcome> {
        let (before, _) = auditor.settled()?;
        let spent = self.cores.watch()?;
        let start = Instant::now();
        // A paced blast that falls behind sends all of it, later.
        let sent = self.blast(fleet, prepared, rate, if rate.is_some() { window * 2 } else { window })?;
        // Before the server has come to rest: a backlog is worked off as the packets were.
        let spent = spent.until_now()?;
        let (after, last_change) = auditor.settled()?;
        // The server's count is up to a tick old.
        let busy =
            (last_change.saturating_duration_since(start)).saturating_sub(auditor.tick()).as_secs_f64();
        Ok(Outcome {
            sent,
            applied: after.applied - before.applied,
            rejected: after.rejected - before.rejected,
            busy: busy.max(sent.elapsed),
            spent,
        })
    }

    /// Sends `prepared`, at `rate` packets a second or as fast as can be, until none is left or `window` is
    /// over.
    ///
    /// # Errors
    /// The sockets cannot be told to drop answers, or the run was interrupted.
    pub fn blast(
        &mut self,
        fleet: &Fleet,
        prepared: &Prepared,
        rate: Option<f64>,
        window: Duration,
    ) -> Result<Blasted> {
        let (sockets, _) = fleet.sockets();
        sockets.iter().try_for_each(drop_all).context("cannot drop answers (SO_ATTACH_FILTER)")?;
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let start = Instant::now();
        let (mut next, mut refused) = (0, 0);
        let mut elapsed = Duration::ZERO;
        while next < prepared.len() && elapsed < window && !self.stop.load(Ordering::Relaxed) {
            elapsed = start.elapsed();
            let due = match rate {
                None => prepared.len(),
                Some(rate) => prepared.len().min((elapsed.as_secs_f64() * rate) as usize + 1),
            };
            let most = if rate.is_some() { PACED_BURST } else { BATCH };
            let count = most.min(due.saturating_sub(next));
            if count == 0 {
                std::hint::spin_loop();
                continue;
            }
            let (sent, lost) = self.send(sockets, prepared, next, count);
            next += sent;
            refused += lost;
        }
        let elapsed = start.elapsed().as_secs_f64();
        sockets.iter().try_for_each(hear_again).context("cannot hear answers again (SO_DETACH_FILTER)")?;
        if self.stop.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        Ok(Blasted { sent: next as u64, refused: refused as u64, started, elapsed })
    }

    /// Sends up to `count` packets from `first` on, in one system call. Returns how many, and how many of
    /// them the kernel refused.
    fn send(
        &mut self,
        sockets: &[Socket],
        prepared: &Prepared,
        first: usize,
        count: usize,
    ) -> (usize, usize) {
        let from = prepared.socket(first);
        let mut taken = 0;
        while taken < count && (self.frames.is_some() || prepared.socket(first + taken) == from) {
            let packet = prepared.packet(first + taken);
            // The kernel only reads what it sends.
            self.iovecs[taken] =
                libc::iovec { iov_base: packet.as_ptr().cast_mut().cast(), iov_len: packet.len() };
            let header = &mut self.headers[taken].msg_hdr;
            header.msg_iov = &mut self.iovecs[taken];
            header.msg_iovlen = 1;
            taken += 1;
        }
        let headers = &mut self.headers[..taken];
        // SAFETY: no names, no control data; the buffers are packets of `prepared`, which outlives the call.
        let refused = unsafe {
            match &self.frames {
                Some(socket) => send_all(socket, headers),
                None => send_all(&sockets[from], headers),
            }
        };
        (taken, refused)
    }
}

/// Makes the kernel drop whatever comes in on `socket`.
fn drop_all(socket: &Socket) -> io::Result<()> {
    // One instruction: return 0, that is, keep no byte of the packet.
    let mut program = [libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: 0 }];
    let filter = libc::sock_fprog { len: 1, filter: program.as_mut_ptr() };
    set_option(socket, libc::SO_ATTACH_FILTER, &filter)
}

/// Undoes [`drop_all`].
fn hear_again(socket: &Socket) -> io::Result<()> {
    set_option(socket, libc::SO_DETACH_FILTER, &0 as &libc::c_int)
}

fn set_option<T>(socket: &Socket, option: libc::c_int, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: a value of this length, and for the filter a program that outlives the call, which copies it.
    let status = unsafe {
        let value = std::ptr::from_ref(value).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, value, length)
    };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A connection that paints nothing and asks for the server's own count.
pub struct Auditor(Fleet);

impl Auditor {
    /// Connects to the server that `settings` name.
    ///
    /// # Errors
    /// It does not answer.
    pub fn connect(settings: Settings, stop: Arc<AtomicBool>) -> Result<Self> {
        // QUIC's initial window: this one is a client like any other.
        let mut fleet = Fleet::new(Settings { sockets: 1, window: 10, ..settings }, stop)?;
        fleet.connect(1, |_| Role::Painter, |_| {})?;
        Ok(Self(fleet))
    }

    /// The server's figures now.
    ///
    /// # Errors
    /// It does not answer within ten seconds.
    pub fn stats(&mut self) -> Result<ServerStats> {
        self.0.say(0, &ClientFrame::Stats)?;
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut stats = None;
        while stats.is_none() {
            if Instant::now() > deadline {
                bail!("the server does not answer STATS");
            }
            self.0.pump(deadline, |_, event| {
                if let Event::Stats(answer) = event {
                    stats = Some(answer);
                }
            })?;
        }
        stats.context("the server does not answer STATS")
    }

    /// Lets `time` pass.
    ///
    /// # Errors
    /// The connection was lost.
    pub fn wait(&mut self, time: Duration) -> Result<()> {
        self.0.wait(time)
    }

    /// The server's figures when they change no more, and when they last changed (if they did).
    ///
    /// # Errors
    /// They go on changing.
    pub fn settled(&mut self) -> Result<(ServerStats, Instant)> {
        let start = Instant::now();
        let (mut last, mut changed) = (self.stats()?, Instant::now());
        while changed.elapsed() < SETTLED {
            self.wait(LOOK)?;
            let now = self.stats()?;
            if (now.applied, now.rejected) != (last.applied, last.rejected) {
                (last, changed) = (now, Instant::now());
            }
            if start.elapsed() > SETTLE_LIMIT {
                bail!("somebody else is painting: the server's count does not come to rest");
            }
        }
        Ok((last, changed))
    }

    /// Time between two of the server's ticks.
    pub fn tick(&self) -> Duration {
        self.0.tick
    }
}
