//! The queues between threads, and nothing else that threads share but counters and the canvas's tiles.
//!
//! ```text
//! worker i --Entry--> master        paints and ends of PAINT frames, in the worker's order   (single producer/consumer)
//! master --Arc<Tick>--> worker i    one encoded tick, the same for all                       (single producer/consumer)
//! master --Ack--> worker i          one for each end of a PAINT frame, in that order         (single producer/consumer)
//! worker j --Stray--> worker i      a packet that came in on the wrong queue                 (many producers)
//! main --Phase--> all               run, drain, stop
//! ```
//!
//! No queue blocks: a full one is the sender's to count or to wait out, as each field says. A thread that
//! sleeps when idle does so on its [`Waker`], which whoever gives it work must call afterwards.

mod waker;

pub use waker::Waker;

use crate::net::{MAX_RX_PAYLOAD, Path};
use crate::stats::{MasterCell, MasterStats, WorkerCell, WorkerStats};
use canvas::Tick;
use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;
use rtrb::{Consumer, Producer, RingBuffer};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;

/// Ticks that may wait for a worker. At 50 ms this is 0.4 s: a worker further behind is in trouble that
/// history does not mend; its clients repair from the newest state.
const TICK_QUEUE: usize = 8;

/// Strays that may wait for their owner. They are rare (NAT rebinding, RSS changes), but a change of RSS
/// makes every packet one; 2048 are 3 MB when all are in use, and none when none is.
const STRAY_QUEUE: usize = 2048;

/// One entry of a worker's paint queue: 6 bytes, so that 262,144 of them are 1.5 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Column; 0 in a frame end.
    pub x: u16,
    /// Row; 0 in a frame end.
    pub y: u16,
    /// Palette index; 0 in a frame end.
    pub colour: u8,
    /// What it is.
    pub kind: EntryKind,
}

/// What an [`Entry`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EntryKind {
    /// A pixel of a PAINT datagram: nobody waits for it.
    Datagram,
    /// A pixel of the PAINT frame whose end follows.
    Framed,
    /// All pixels of a PAINT frame have been queued: the master answers with an [`Ack`].
    FrameEnd,
}

impl Entry {
    /// The end of a PAINT frame.
    pub const FRAME_END: Self = Self { x: 0, y: 0, colour: 0, kind: EntryKind::FrameEnd };
}

/// The master's answer to a [`EntryKind::FrameEnd`]: what became of the framed pixels before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ack {
    /// Pixels applied.
    pub applied: u16,
    /// Pixels that the canvas refused.
    pub rejected: u16,
    /// Reason of the first refusal, as in the protocol; 0 if there was none.
    pub reason: u8,
    /// Position of the last applied pixel in the canvas's total order; of the last pixel of all if none was
    /// applied.
    pub commit: u64,
}

/// A packet on its way from the worker that received it to the one that owns its connection.
pub struct Stray {
    /// Where it came from; the owner answers through its own queue.
    pub path: Path,
    len: u16,
    bytes: [u8; MAX_RX_PAYLOAD],
}

impl Stray {
    /// A copy of `packet`, which came along `path`. `None` if it is longer than any packet may be.
    pub fn new(path: &Path, packet: &[u8]) -> Option<Box<Self>> {
        let len = packet.len();
        let mut stray = Box::new(Self { path: *path, len: len as u16, bytes: [0; MAX_RX_PAYLOAD] });
        stray.bytes.get_mut(..len)?.copy_from_slice(packet);
        Some(stray)
    }

    /// The packet.
    pub fn packet(&mut self) -> &mut [u8] {
        &mut self.bytes[..usize::from(self.len)]
    }
}

/// What the process is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// Serving.
    Run = 0,
    /// Saying good-bye to every client; taking no new ones.
    Drain = 1,
    /// Leaving now.
    Stop = 2,
}

/// What every thread sees.
pub struct Shared {
    phase: CachePadded<AtomicU8>,
    /// When the server started: uptime counts from here.
    pub started: Instant,
    /// One cell of counters for each worker.
    pub workers: Box<[WorkerCell]>,
    /// The master's counters.
    pub master: MasterCell,
    /// One waker for each worker.
    pub worker_wakers: Box<[Waker]>,
    /// The master's waker. Its own thread's, or unused where the master is a stage of worker 0.
    pub master_waker: Waker,
    strays: Box<[ArrayQueue<Box<Stray>>]>,
}

impl Shared {
    /// The present phase.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Run,
            1 => Phase::Drain,
            _ => Phase::Stop,
        }
    }

    /// Moves on to `phase`, unless a later one was reached already, and wakes everybody.
    pub fn advance(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, Ordering::Relaxed);
        self.worker_wakers.iter().for_each(Waker::wake);
        self.master_waker.wake();
    }

    /// Sum of what all workers last published.
    pub fn totals(&self) -> WorkerStats {
        let mut sum = WorkerStats::default();
        self.workers.iter().for_each(|cell| sum.add(&cell.snapshot()));
        sum
    }

    /// What the master last published.
    pub fn master_stats(&self) -> MasterStats {
        self.master.snapshot()
    }

    /// Hands a stray to worker `owner`. `false` if its inbox is full: the packet is lost, as on any network.
    pub fn send_stray(&self, owner: usize, stray: Box<Stray>) -> bool {
        let sent = self.strays[owner].push(stray).is_ok();
        self.worker_wakers[owner].wake();
        sent
    }

    /// Takes the oldest stray for worker `owner`.
    pub fn take_stray(&self, owner: usize) -> Option<Box<Stray>> {
        self.strays[owner].pop()
    }

    /// True if no stray waits for worker `owner`.
    pub fn no_strays(&self, owner: usize) -> bool {
        self.strays[owner].is_empty()
    }

    /// Number of workers.
    pub fn worker_count(&self) -> usize {
        self.workers.len()
    }
}

/// A worker's ends of its queues.
pub struct WorkerLink {
    /// The worker's index.
    pub index: usize,
    /// What all threads share.
    pub shared: Arc<Shared>,
    /// To the master. Full: the pixel is rejected as overload.
    pub paints: Producer<Entry>,
    /// From the master.
    pub ticks: Consumer<Arc<Tick>>,
    /// From the master.
    pub acks: Consumer<Ack>,
}

/// The master's ends of one worker's queues.
pub struct MasterPort {
    /// From the worker.
    pub paints: Consumer<Entry>,
    /// To the worker. Full: that worker misses the tick.
    pub ticks: Producer<Arc<Tick>>,
    /// To the worker. Full: the master takes no more paints of that worker until there is room, so none is
    /// lost.
    pub acks: Producer<Ack>,
}

/// Makes all queues of a server with `workers` workers; `paint_queue` is the capacity of each paint queue in
/// entries.
///
/// # Errors
/// The kernel has no eventfd left to give (too many open files).
pub fn connect(workers: usize, paint_queue: usize) -> io::Result<(Vec<WorkerLink>, Vec<MasterPort>)> {
    let wakers = (0..workers).map(|_| Waker::new()).collect::<io::Result<Box<[_]>>>()?;
    let shared = Arc::new(Shared {
        phase: CachePadded::new(AtomicU8::new(Phase::Run as u8)),
        started: Instant::now(),
        workers: (0..workers).map(|_| WorkerCell::default()).collect(),
        master: MasterCell::default(),
        worker_wakers: wakers,
        master_waker: Waker::new()?,
        strays: (0..workers).map(|_| ArrayQueue::new(STRAY_QUEUE)).collect(),
    });
    Ok((0..workers)
        .map(|index| {
            let (to_master, from_worker) = RingBuffer::new(paint_queue);
            let (tick_in, tick_out) = RingBuffer::new(TICK_QUEUE);
            // As many as frames can end in a full paint queue would be too many; the master waits instead.
            let (ack_in, ack_out) = RingBuffer::new(paint_queue.min(4096));
            let worker = WorkerLink {
                index,
                shared: shared.clone(),
                paints: to_master,
                ticks: tick_out,
                acks: ack_out,
            };
            (worker, MasterPort { paints: from_worker, ticks: tick_in, acks: ack_in })
        })
        .unzip())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Link;

    #[test]
    fn an_entry_is_six_bytes() {
        assert_eq!(size_of::<Entry>(), 6);
    }

    #[test]
    fn strays_keep_their_bytes_and_a_full_inbox_refuses() {
        let (links, _ports) = connect(2, 16).unwrap();
        let shared = &links[0].shared;
        let addr = "127.0.0.1:1".parse().unwrap();
        let path = Path { local: addr, peer: addr, link: Link::Kernel };
        assert!(Stray::new(&path, &[0; MAX_RX_PAYLOAD + 1]).is_none());
        for n in 0..STRAY_QUEUE {
            assert!(shared.send_stray(1, Stray::new(&path, &(n as u16).to_le_bytes()).unwrap()));
        }
        assert!(!shared.send_stray(1, Stray::new(&path, &[1]).unwrap()));
        assert!(shared.no_strays(0) && !shared.no_strays(1));
        let mut first = shared.take_stray(1).unwrap();
        assert_eq!((first.path, &*first.packet()), (path, &[0, 0][..]));
    }

    #[test]
    fn phases_only_advance() {
        let (links, _ports) = connect(1, 16).unwrap();
        let shared = &links[0].shared;
        assert_eq!(shared.phase(), Phase::Run);
        shared.advance(Phase::Stop);
        shared.advance(Phase::Drain);
        assert_eq!(shared.phase(), Phase::Stop);
    }
}
