//! The canvas's one writer.
//!
//! The master drains the workers' paint queues, each in its order and all in turn: the order in which it
//! applies pixels *is* the canvas's total order. Once a tick it encodes what changed, publishes the tiles for
//! readers and hands the encoded tick, by reference, to every worker. It talks to nobody else and knows no
//! connection.
//!
//! It runs on a core of its own ([`Master::run`]) or, where cores are few, as a stage of worker 0's turn
//! ([`Master::turn`]): the same code.

use crate::link::{Ack, EntryKind, MasterPort, Phase, Shared};
use crate::stats::MasterStats;
use canvas::Canvas;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// See the [module](self).
pub struct Master {
    canvas: Canvas,
    ports: Vec<MasterPort>,
    /// For each worker: the sum over the PAINT frame being drained.
    frames: Vec<Ack>,
    /// Acknowledgements of one drain, sent once its pixels have been counted where STATS reads them.
    acks: Vec<Ack>,
    shared: Arc<Shared>,
    /// Most entries that are taken from one queue before the next one's turn.
    drain: usize,
    tick: Duration,
    next_tick: Instant,
    stats: MasterStats,
}

impl Master {
    /// The master of `canvas`, with one port for each worker.
    pub fn new(
        canvas: Canvas,
        ports: Vec<MasterPort>,
        shared: Arc<Shared>,
        drain: usize,
        tick: Duration,
    ) -> Self {
        let next_tick = Instant::now() + tick;
        let frames = vec![Ack::default(); ports.len()];
        let stats = MasterStats::default();
        Self { canvas, ports, frames, acks: Vec::new(), shared, drain, tick, next_tick, stats }
    }

    /// When the next tick is due.
    pub fn next_tick(&self) -> Instant {
        self.next_tick
    }

    /// The canvas as the master has it.
    pub fn canvas(&self) -> &Canvas {
        &self.canvas
    }

    /// Drains every queue up to the limit and, if it is time, publishes a tick. `false`: there was nothing to
    /// do.
    pub fn turn(&mut self, now: Instant) -> bool {
        let mut busy = false;
        for worker in 0..self.ports.len() {
            busy |= self.drain_worker(worker);
        }
        if now >= self.next_tick {
            self.publish_tick();
            // A late tick is not made up for: two diffs at once serve nobody.
            self.next_tick = (self.next_tick + self.tick).max(now);
            busy = true;
        }
        busy
    }

    /// Applies what worker `worker` queued. `false`: nothing, or the worker has no room for the answers.
    fn drain_worker(&mut self, worker: usize) -> bool {
        let port = &mut self.ports[worker];
        let waiting = port.paints.slots().min(self.drain);
        if waiting == 0 {
            return false;
        }
        let room = port.acks.slots();
        let mut taken = 0;
        // The chunk cannot fail: only this thread takes entries out.
        let Ok(chunk) = port.paints.read_chunk(waiting) else { return false };
        let (first, second) = chunk.as_slices();
        let frame = &mut self.frames[worker];
        for entry in first.iter().chain(second) {
            match entry.kind {
                EntryKind::Datagram => {
                    // The worker checked bounds and colour; the canvas checks again, and nobody waits for the
                    // verdict.
                    let _ = self.canvas.paint(entry.x, entry.y, entry.colour);
                }
                EntryKind::Framed => match self.canvas.paint(entry.x, entry.y, entry.colour) {
                    Ok(()) => {
                        frame.applied += 1;
                        frame.commit = self.canvas.commit();
                    }
                    Err(reason) => {
                        if frame.rejected == 0 {
                            frame.reason = reason.code();
                        }
                        frame.rejected += 1;
                    }
                },
                EntryKind::FrameEnd if self.acks.len() == room => break,
                EntryKind::FrameEnd => {
                    let mut ack = std::mem::take(frame);
                    if ack.applied == 0 {
                        ack.commit = self.canvas.commit();
                    }
                    self.acks.push(ack);
                }
            }
            taken += 1;
        }
        chunk.commit(taken);
        self.stats.pixels_applied = self.canvas.commit();
        if !self.acks.is_empty() {
            // A client that asks for STATS after its acknowledgement must not see an older commit.
            self.shared.master.publish(&self.stats);
            for ack in self.acks.drain(..) {
                // There is room: it was counted above, and only this thread fills it.
                let _ = self.ports[worker].acks.push(ack);
            }
            self.shared.worker_wakers[worker].wake();
        }
        taken > 0
    }

    fn publish_tick(&mut self) {
        let tick = Arc::new(self.canvas.tick());
        self.stats.ticks += 1;
        self.stats.pixels_applied = self.canvas.commit();
        if !tick.is_empty() {
            self.stats.ticks_with_changes += u64::from(tick.pixels() > 0);
            self.stats.pixels_changed += tick.pixels() as u64;
            for (port, waker) in self.ports.iter_mut().zip(&self.shared.worker_wakers) {
                if port.ticks.push(tick.clone()).is_err() {
                    self.stats.ticks_refused += 1;
                }
                waker.wake();
            }
        }
        self.shared.master.publish(&self.stats);
    }

    /// Applies and publishes whatever was accepted until now: the last act.
    pub fn finish(&mut self) {
        while (0..self.ports.len()).fold(false, |any, worker| self.drain_worker(worker) | any) {}
        self.publish_tick();
    }

    /// Runs until the phase is [`Phase::Stop`]. `sleepy`: the core is shared, so sleep when there is nothing
    /// to do.
    pub fn run(mut self, sleepy: bool) {
        let mut last = Instant::now();
        let mut busy = false;
        while self.shared.phase() != Phase::Stop {
            let now = Instant::now();
            let elapsed = now.saturating_duration_since(last).as_nanos() as u64;
            *(if busy { &mut self.stats.working_ns } else { &mut self.stats.waiting_ns }) += elapsed;
            last = now;
            busy = self.turn(now);
            if !busy {
                if sleepy {
                    self.sleep(now);
                } else {
                    std::hint::spin_loop();
                }
            }
        }
        self.finish();
    }

    /// Sleeps until the next tick, or until a worker has something that does not wait for it: the end of a
    /// PAINT frame, a queue that fills up.
    fn sleep(&self, now: Instant) {
        let waker = &self.shared.master_waker;
        waker.before_sleep();
        if self.ports.iter().all(|port| port.paints.is_empty()) && self.shared.phase() != Phase::Stop {
            let nap = TimeSpec::from_duration(self.next_tick.saturating_duration_since(now));
            let mut fds = [PollFd::new(waker.fd(), PollFlags::POLLIN)];
            // Interrupted or not: the caller looks at everything again.
            let _ = ppoll(&mut fds, Some(nap), None);
        }
        waker.after_sleep();
    }
}
