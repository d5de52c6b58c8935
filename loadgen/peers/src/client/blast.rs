//! Sending prepared packets, as fast as can be or at a rate; and what the server made of them.
//!
//! While packets leave, answers are dropped by a filter on each socket, at the price of a lookup: reading
//! them would cost more than sending. What the server made of the packets it says itself: a connection of its
//! own, that paints nothing, asks for STATS before and after ([`Auditor`]).

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use canvas::codec::control::{ClientFrame, ServerStats};
use serde_json::{Value, json};
use socket2::Socket;

use super::fleet::{Event, Fleet, Role, Settings};
use super::prepare::{Prepared, Preparer};
use crate::packet::PacketSocket;
use crate::udp::{BATCH, send_all, zeroed_headers, zeroed_iovecs};

/// Packets sent at once at a given rate. veth's ring has 256 places: a burst is to take a part of it only.
const PACED_BURST: usize = 16;

/// Time between two looks at the server's count after a blast: longer than a tick, which xdp-server counts by.
const SETTLE: Duration = Duration::from_millis(150);

/// Looks until the server has settled; it may have a socket buffer full of packets to work off.
const SETTLE_LOOKS: usize = 200;

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

    /// For machines.
    pub fn json(&self) -> Value {
        json!({
            "packets_sent": self.sent,
            "packets_refused": self.refused,
            "packets_per_s": self.rate().round(),
            "started_unix": self.started,
            "elapsed_s": self.elapsed,
        })
    }
}

/// Sends prepared packets.
pub struct Sender {
    /// `None`: through the fleet's UDP sockets.
    frames: Option<PacketSocket>,
    headers: Box<[libc::mmsghdr]>,
    iovecs: Box<[libc::iovec]>,
    stop: Arc<AtomicBool>,
}

impl Sender {
    /// A sender of what `preparer` makes.
    ///
    /// # Errors
    /// Frames cannot be sent.
    pub fn new(preparer: &Preparer, stop: Arc<AtomicBool>) -> Result<Self> {
        let frames = preparer.link().map(PacketSocket::new).transpose()?;
        Ok(Self { frames, headers: zeroed_headers(), iovecs: zeroed_iovecs(), stop })
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
    fn send(&mut self, sockets: &[Socket], prepared: &Prepared, first: usize, count: usize) -> (usize, usize) {
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
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.0.pump(until, |_, _| {})?;
        }
        Ok(())
    }

    /// The server's figures when they change no more.
    ///
    /// # Errors
    /// They go on changing.
    pub fn settled(&mut self) -> Result<ServerStats> {
        let mut last = self.stats()?;
        for _ in 0..SETTLE_LOOKS {
            self.wait(SETTLE)?;
            let now = self.stats()?;
            if (now.applied, now.rejected) == (last.applied, last.rejected) {
                return Ok(now);
            }
            last = now;
        }
        bail!("somebody else is painting: the server's count does not come to rest")
    }
}
