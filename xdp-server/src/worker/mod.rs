//! A worker: the loop in which packets, QUIC and sessions meet.
//!
//! ```text
//!            +--------------------------- one turn, each stage bounded ----------------------------+
//! rings -->  | serve  receive  strays  timers  acks  tick  fan-out  transmit  newcomers  flush     | --> rings
//!            +-------------------------------------------------------------------------------------+
//! ```
//!
//! One thread owns everything here: its packet I/O, its connections, its timers. An idle turn reads the
//! clock once, a busy one once more for each stage that found work (`regime`).
//! Receiving never waits for sending: a connection that has something to send is put in a queue (`ready`),
//! which the transmit stage works off as far as there are transmit buffers. A turn that finds nothing to do
//! counts as waiting; when the core is shared, the worker then sleeps until something comes.
//!
//! - `ahead`: memory that the next packets need
//! - `conn`: what is kept of one connection
//! - `receive`: from a packet to its connection; accepting, refusing, resetting
//! - `newcomers`: new connections, a few each turn
//! - `fanout`: one tick to all subscribers
//! - `announced`: what those missed who were out of reach
//! - `heap`: memory of connections that are gone
//! - `paths`: clients that move
//! - `regime`: where the time goes
//! - `spin`: how long to look for work before sleeping
//! - `transmit`: from connections to packets; timers; closing

mod ahead;
mod announced;
pub mod conn;
mod fanout;
mod heap;
mod newcomers;
mod paths;
mod receive;
mod regime;
mod spin;
mod transmit;

use crate::link::{Phase, WorkerLink};
use crate::master::Master;
use crate::net::{PacketIo, Path, Sink};
use crate::quic::cid::CidCodec;
use crate::quic::config::WorkerQuic;
use crate::quic::reset::Resetter;
use crate::quic::table::ConnectionTable;
use crate::quic::wheel::TimerWheel;
use crate::session::{Context, SessionSettings};
use ahead::Ahead;
use canvas::codes::CloseCode;
use canvas::palette::Palette;
use canvas::tiles::TileReader;
use conn::Conn;
use fanout::Fanout;
use heap::Heap;
use newcomers::Newcomers;
use regime::{Meter, Regime};
use spin::Spin;
use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

/// Packets received in one turn. One ring's worth of what veth and most NICs hand over at a time; larger
/// delays sending.
pub(crate) const RECEIVE_BUDGET: usize = 64;

/// Subscribers that are handed a tick in one turn, and connections that get to send. At about 2 us each a
/// stage stays well under the 1 ms timers.
const SEND_BUDGET: usize = 64;

/// Strays taken over in one turn.
const STRAY_BUDGET: usize = 64;

/// Timers that may fire in one turn.
const TIMER_BUDGET: usize = 64;

/// Slots beyond the cap, for connections that exist only to be told SERVER_FULL. More of them spend
/// handshakes on clients that are turned away; when all are taken, Initials are dropped.
pub const REFUSAL_SLOTS: u32 = 64;

/// Time between two rounds of housekeeping: counters are this old at most while the worker is busy.
const HOUSEKEEPING: Duration = Duration::from_millis(1);

/// Time between two looks at whether the packet I/O still has its interface; one system call each.
const HEALTH_CHECK: Duration = Duration::from_secs(1);

/// Longest sleep: bounds the age of counters and of the phase when nobody wakes us.
const LONGEST_SLEEP: Duration = Duration::from_millis(100);

/// A drain ends after this long, whatever is left: the promise is five seconds, the rest is for leaving.
const DRAIN_LIMIT: Duration = Duration::from_millis(4500);

/// Time between the NOTICE and the CONNECTION_CLOSE of a drain: once a connection is closed QUIC repeats
/// nothing, so a lost NOTICE gets this long to be repeated.
const DRAIN_NOTICE: Duration = Duration::from_millis(500);

/// What a worker is made of, besides its packet I/O.
pub struct WorkerParts {
    /// Its queues.
    pub link: WorkerLink,
    /// The canvas.
    pub tiles: TileReader,
    /// Its colours.
    pub palette: Palette,
    /// QUIC's settings.
    pub quic: WorkerQuic,
    /// The protocol's settings.
    pub session: SessionSettings,
    /// Most connections.
    pub max_connections: u32,
    /// The connection-ID key.
    pub connection_id_key: [u8; 16],
    /// The stateless reset key.
    pub reset_key: [u8; 32],
    /// Pages for the connection table.
    pub pages: hugepages::Pages,
    /// NUMA node for the connection table.
    pub numa_node: Option<u32>,
}

/// A worker. See the [module](self).
pub struct Worker<I> {
    io: I,
    core: Core,
    busy: bool,
    idle_since: Option<Instant>,
    spin: Spin,
    next_housekeeping: Instant,
    next_health_check: Instant,
    heap: Heap,
    /// Why the packet I/O cannot go on.
    failure: Option<io::Error>,
}

/// What is left of a worker.
pub struct Ended<I> {
    /// Its packet I/O, still open: to be closed when the program that feeds it has been detached.
    pub io: I,
    /// Why it could not go on, if that is what ended it.
    pub result: io::Result<()>,
}

/// What a worker's thread does besides: the master, where cores are few.
trait Stage {
    /// Does a bounded amount of work; `false`: there was none.
    fn turn(&mut self, now: Instant) -> bool;
    /// When there is work by the clock; `None`: never.
    fn next_due(&self) -> Option<Instant>;
}

/// Nothing besides.
struct Alone;

impl Stage for Alone {
    fn turn(&mut self, _now: Instant) -> bool {
        false
    }

    fn next_due(&self) -> Option<Instant> {
        None
    }
}

impl Stage for Master {
    fn turn(&mut self, now: Instant) -> bool {
        Master::turn(self, now)
    }

    fn next_due(&self) -> Option<Instant> {
        Some(self.next_tick())
    }
}

/// A packet that belongs to no connection: Version Negotiation, a stateless reset.
struct Stateless {
    path: Path,
    payload: Vec<u8>,
}

/// Everything but the packet I/O, so that both can be borrowed at once.
struct Core {
    index: usize,
    ctx: Context,
    codec: CidCodec,
    resetter: Resetter,
    config: quiche::Config,
    ack_delay: Duration,
    max_connections: u32,
    table: ConnectionTable<Conn>,
    wheel: TimerWheel,
    /// Slots that have something to send.
    ready: VecDeque<u32>,
    stateless: VecDeque<Stateless>,
    newcomers: Newcomers,
    fanout: Fanout,
    ahead: Ahead,
    /// Scratch for expired timers.
    due: Vec<u32>,
    drain: Option<Drain>,
    /// The master is woken when the paint queue has less room than this.
    paint_room: usize,
    /// The last connection to transmit found no free buffer.
    blocked: bool,
    meter: Meter,
}

/// The memory of one worker's connection table when `max_connections` are in it: regions, and bytes in each.
pub fn connection_memory(max_connections: u32, pages: hugepages::Pages) -> (usize, usize) {
    ConnectionTable::<Conn>::memory_needed(max_connections + REFUSAL_SLOTS, pages)
}

/// How far a drain has got.
#[derive(Clone, Copy)]
struct Drain {
    began: Instant,
    closed: bool,
}

impl<I: PacketIo> Worker<I> {
    /// A worker on `io`.
    ///
    /// # Errors
    /// There is no memory for the connection table, or no randomness: says which.
    pub fn new(io: I, parts: WorkerParts) -> Result<Self, String> {
        let now = Instant::now();
        let mut epoch = [0; 4];
        getrandom::fill(&mut epoch).map_err(|e| format!("no randomness from the kernel: {e}"))?;
        let slots = parts.max_connections + REFUSAL_SLOTS;
        let paint_room = parts.link.paints.buffer().capacity() / 2;
        // Ticks; the number of a tick has 32 bits.
        let silence = parts.quic.idle_timeout.as_millis() / u128::from(parts.session.tick_ms.max(1));
        let core = Core {
            index: parts.link.index,
            codec: CidCodec::new(&parts.connection_id_key),
            resetter: Resetter::new(&parts.reset_key, now),
            config: parts.quic.config,
            ack_delay: parts.quic.ack_delay,
            max_connections: parts.max_connections,
            table: ConnectionTable::new(slots, parts.pages, parts.numa_node, u32::from_ne_bytes(epoch))
                .map_err(|e| e.to_string())?,
            wheel: TimerWheel::new(slots as usize, now),
            ready: VecDeque::with_capacity(slots as usize),
            stateless: VecDeque::new(),
            newcomers: Newcomers::default(),
            fanout: Fanout::new(silence as u32),
            ahead: Ahead::new(parts.quic.plans),
            due: Vec::with_capacity(TIMER_BUDGET),
            drain: None,
            paint_room,
            blocked: false,
            meter: Meter::new(now),
            ctx: Context::new(parts.tiles, parts.palette, parts.link, parts.session),
        };
        let (busy, idle_since) = (false, None);
        let (next_housekeeping, next_health_check) = (now, now + HEALTH_CHECK);
        let (spin, heap) = (Spin::default(), Heap::default());
        Ok(Self {
            io,
            core,
            busy,
            idle_since,
            spin,
            next_housekeeping,
            next_health_check,
            heap,
            failure: None,
        })
    }

    /// The packet I/O, for tests that look at it.
    pub fn io(&mut self) -> &mut I {
        &mut self.io
    }

    /// Connections in the table.
    pub fn connections(&self) -> u32 {
        self.core.table.len()
    }

    /// One turn. `extra` is worked in as a further stage: the master, where it shares this thread; it returns
    /// whether it found something to do. Returns whether anything in the turn did.
    pub fn turn(&mut self, now: Instant, extra: &mut impl FnMut(Instant) -> bool) -> bool {
        let core = &mut self.core;
        // What came after the last charge: nothing, or the end of a busy turn.
        core.charge(if self.busy { Regime::Other } else { Regime::Waiting }, now);
        core.ctx.stats.turns += 1;
        self.io.serve(now);
        let received = self.io.receive(RECEIVE_BUDGET, &mut Received { core, now });
        core.ctx.stats.rx_batches += u64::from(received > 0);
        core.ctx.stats.rx_batches_full += u64::from(received == RECEIVE_BUDGET);
        let got = (received > 0) | core.take_strays(now);
        let mut busy = core.did(Regime::Receiving, got);
        if core.ctx.link.paints.slots() < core.paint_room {
            core.ctx.link.shared.master_waker.wake();
        }
        let other = core.expire_timers(now) | core.follow_phase(now) | extra(now) | core.take_acks();
        busy |= core.did(Regime::Other, other);
        let fanned_out = core.fan_out(now);
        busy |= core.did(Regime::FanningOut, fanned_out);
        let transmitted = core.transmit(&mut self.io, now);
        self.io.flush(now);
        busy |= core.did(if core.blocked { Regime::Blocked } else { Regime::Sending }, transmitted);
        let accepted = core.accept_newcomers(now);
        busy |= core.did(Regime::Handshaking, accepted);
        core.ctx.stats.busy_turns += u64::from(busy);
        if now >= self.next_housekeeping {
            self.next_housekeeping = now + HOUSEKEEPING;
            self.publish();
        }
        self.busy = busy;
        busy
    }

    /// What memory the connection table got.
    pub fn memory(&self) -> hugepages::Report {
        self.core.table.report()
    }

    /// Runs until the drain is done, or the phase is [`Phase::Stop`]. `sleepy`: the core is shared, so sleep
    /// when there is nothing to do.
    pub fn run(self, sleepy: bool) -> Ended<I> {
        self.run_with(sleepy, &mut Alone)
    }

    /// Likewise, with the master as a stage of each turn; since the other workers need it, only
    /// [`Phase::Stop`] ends this.
    pub fn run_with_master(self, sleepy: bool, master: &mut Master) -> Ended<I> {
        self.run_with(sleepy, master)
    }

    fn run_with(mut self, sleepy: bool, stage: &mut impl Stage) -> Ended<I> {
        let shared = self.core.ctx.link.shared.clone();
        loop {
            let now = Instant::now();
            match shared.phase() {
                Phase::Stop => break,
                _ if self.failure.is_some() => break,
                Phase::Drain if self.drained(now) => {
                    self.core.ctx.stats.drained = 1;
                    if stage.next_due().is_none() {
                        break;
                    }
                }
                _ => {}
            }
            if now >= self.next_health_check {
                self.next_health_check = now + HEALTH_CHECK;
                self.wait(Duration::ZERO);
                self.heap.tidy(self.core.ctx.stats.connections_closed);
            }
            if self.turn(now, &mut |now| stage.turn(now)) {
                if let Some(since) = self.idle_since.take() {
                    self.spin.found(now.duration_since(since));
                }
            } else if !sleepy {
                std::hint::spin_loop();
            } else if self.spin.is_over(now.duration_since(*self.idle_since.get_or_insert(now))) {
                self.sleep(now, stage.next_due());
            }
        }
        self.io.flush(Instant::now());
        self.publish();
        self.io.finish();
        Ended { io: self.io, result: self.failure.map_or(Ok(()), Err) }
    }

    /// True when every client has been told good-bye, or the time for it is up.
    fn drained(&self, now: Instant) -> bool {
        self.core.drain.is_some_and(|drain| {
            let told = drain.closed && self.core.ready.is_empty();
            told || now.duration_since(drain.began) >= DRAIN_LIMIT
        })
    }

    fn sleep(&mut self, now: Instant, stage_due: Option<Instant>) {
        self.publish();
        let link = &self.core.ctx.link;
        let shared = link.shared.clone();
        let waker = &shared.worker_wakers[link.index];
        waker.before_sleep();
        let quiet = link.ticks.is_empty()
            && link.acks.is_empty()
            && shared.no_strays(link.index)
            && (shared.phase() == Phase::Run || self.core.drain.is_some());
        if quiet {
            let due = [self.core.wheel.next_deadline(LONGEST_SLEEP), stage_due];
            let until = due.into_iter().flatten().min().unwrap_or(now + LONGEST_SLEEP);
            let timeout = until.saturating_duration_since(now).min(LONGEST_SLEEP);
            self.wait(timeout);
        }
        waker.after_sleep();
    }

    /// Sleeps for `timeout` at most, and finds out whether the packet I/O can go on.
    fn wait(&mut self, timeout: Duration) {
        let link = &self.core.ctx.link;
        self.failure = self.io.wait(timeout, link.shared.worker_wakers[link.index].fd()).err();
    }

    /// Makes the counters visible.
    fn publish(&mut self) {
        let io = self.io.counters();
        let core = &mut self.core;
        let stats = &mut core.ctx.stats;
        stats.rx_packets = io.rx_packets;
        stats.rx_bytes = io.rx_bytes;
        stats.rx_kernel_packets = io.rx_kernel_packets;
        stats.tx_packets = io.tx_packets;
        stats.tx_bytes = io.tx_bytes;
        stats.tx_blocked = io.tx_blocked;
        stats.tx_errors = io.tx_errors;
        stats.tx_trains_refused = io.tx_trains_refused;
        stats.sq_full = io.sq_full;
        stats.rx_truncated = io.rx_truncated;
        stats.rx_not_ours = io.rx_not_ours;
        stats.rx_too_long = io.rx_too_long;
        stats.rx_kernel_drops = io.rx_kernel_drops;
        stats.fill_ring_empty = io.fill_ring_empty;
        stats.invalid_descriptors = io.invalid_descriptors;
        stats.subscribers = core.fanout.len() as u64;
        core.ctx.link.shared.workers[core.index].publish(&core.ctx.stats);
    }
}

/// What the packet I/O hands received payloads to.
struct Received<'a> {
    core: &'a mut Core,
    now: Instant,
}

impl Sink for Received<'_> {
    fn announce(&mut self, payload: &[u8]) {
        self.core.expect(payload);
    }

    fn take(&mut self, path: &Path, payload: &mut [u8]) {
        self.core.on_packet(path, payload, self.now, false);
    }
}

impl Core {
    /// Charges the time since the last charge to `regime`.
    fn charge(&mut self, regime: Regime, now: Instant) {
        self.meter.charge(regime, now, &mut self.ctx.stats);
    }

    /// Charges a stage to `regime` if it `worked`, which it returns.
    fn did(&mut self, regime: Regime, worked: bool) -> bool {
        if worked {
            self.charge(regime, Instant::now());
        }
        worked
    }

    /// Takes packets of our connections that other workers received.
    fn take_strays(&mut self, now: Instant) -> bool {
        let mut taken = 0;
        while taken < STRAY_BUDGET
            && let Some(mut stray) = self.ctx.link.shared.take_stray(self.index)
        {
            let path = stray.path;
            self.on_packet(&path, stray.packet(), now, true);
            self.ctx.stats.strays_in += 1;
            taken += 1;
        }
        taken > 0
    }

    /// Passes on the master's answers to PAINT frames.
    fn take_acks(&mut self) -> bool {
        let mut any = false;
        while let Some((pending, ack)) = self.ctx.next_ack() {
            any = true;
            if let Some(conn) = self.table.find(pending.slot, pending.generation) {
                conn.session.paint_ack(&pending, &ack);
                self.make_ready(pending.slot);
            }
        }
        any
    }

    /// Begins and advances the drain.
    fn follow_phase(&mut self, now: Instant) -> bool {
        if self.ctx.link.shared.phase() == Phase::Run {
            return false;
        }
        match &mut self.drain {
            None => {
                self.drain = Some(Drain { began: now, closed: false });
                for slot in self.slots() {
                    if let Some(conn) = self.table.get_mut(slot) {
                        conn.session.notice(CloseCode::Draining, "the server is shutting down");
                        self.make_ready(slot);
                    }
                }
                true
            }
            Some(drain) if !drain.closed && now.duration_since(drain.began) >= DRAIN_NOTICE => {
                drain.closed = true;
                for slot in self.slots() {
                    let reason = "the server is shutting down";
                    self.close(slot, crate::session::Close { code: CloseCode::Draining, reason });
                }
                true
            }
            Some(_) => false,
        }
    }

    fn slots(&self) -> Vec<u32> {
        self.table.occupied().collect()
    }

    /// Queues `slot` for the transmit stage.
    fn make_ready(&mut self, slot: u32) {
        if let Some(conn) = self.table.get_mut(slot)
            && !conn.queued
        {
            conn.queued = true;
            self.ready.push_back(slot);
        }
    }
}
