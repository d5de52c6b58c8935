//! Sending one tick to every subscriber, a few at a time.
//!
//! A tick is encoded for each distinct *view* once, in buffers that all clients with that view share.
//! Subscribers are served in the order of a dense list, a bounded number each turn, so that a broadcast to
//! 10,000 clients is spread over the tick and never holds up what they send.

use super::announced::Announced;
use super::conn::Life;
use super::{Core, SEND_BUDGET};
use crate::session::Broadcast;
use canvas::Tick;
use canvas::geometry::TileRect;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

/// The subscribers of a worker, and how far the present tick has got with them.
pub struct Fanout {
    /// Slots of the subscribers.
    subscribers: Vec<u32>,
    /// Subscribers before this place have had the present tick.
    served: usize,
    tick: Option<Arc<Tick>>,
    /// The present tick, as encoded for each view so far.
    views: HashMap<TileRect, Rc<Broadcast>>,
    /// What this tick and those before it announced.
    announced: Announced,
}

impl Fanout {
    /// Without subscribers. What was announced is remembered for `keep` ticks.
    pub fn new(keep: u32) -> Self {
        Self {
            subscribers: Vec::new(),
            served: 0,
            tick: None,
            views: HashMap::new(),
            announced: Announced::new(keep),
        }
    }

    /// Number of subscribers.
    pub fn len(&self) -> usize {
        self.subscribers.len()
    }

    /// True while a tick is being sent.
    pub fn is_active(&self) -> bool {
        self.tick.is_some()
    }

    /// Begins to send `tick`. The one before must be finished.
    pub fn start(&mut self, tick: Arc<Tick>) {
        debug_assert!(self.tick.is_none());
        self.served = 0;
        self.views.clear();
        self.announced.note(tick.number(), tick.versions());
        self.tick = Some(tick);
    }

    /// The slot whose turn it is; `None` when the tick is finished.
    pub fn next_subscriber(&mut self) -> Option<u32> {
        self.tick.as_ref()?;
        let next = self.subscribers.get(self.served).copied();
        match next {
            Some(_) => self.served += 1,
            None => self.tick = None,
        }
        next
    }

    /// The slot whose turn comes `steps` after that of the last [`next_subscriber`](Self::next_subscriber).
    pub fn after(&self, steps: usize) -> Option<u32> {
        self.subscribers.get(self.served + steps - 1).copied()
    }

    /// The present tick as encoded for `view`. Call for a slot from
    /// [`next_subscriber`](Self::next_subscriber).
    pub fn broadcast(&mut self, view: TileRect) -> Rc<Broadcast> {
        let Some(tick) = &self.tick else { return Rc::default() };
        self.views.entry(view).or_insert_with(|| Rc::new(encode(tick, &view))).clone()
    }

    /// VERSIONS payloads with what was announced to `view` since tick `since`.
    pub fn announced(&mut self, since: u32, view: TileRect) -> Rc<[Rc<[u8]>]> {
        self.announced.since(since, view)
    }

    /// Adds a subscriber; returns its place. It gets the next tick, and perhaps the present one.
    pub fn add(&mut self, slot: u32) -> u32 {
        self.subscribers.push(slot);
        (self.subscribers.len() - 1) as u32
    }

    /// Removes the subscriber at `place`, and returns those that have moved: (slot, its new place).
    ///
    /// A subscriber that was not served yet stays so, and likewise one that was: a hole among the served is
    /// filled with the last served, and the hole that this leaves with the last of all.
    pub fn remove(&mut self, place: u32) -> impl Iterator<Item = (u32, u32)> + use<> {
        let mut hole = place as usize;
        let mut moved = [None, None];
        if self.tick.is_some() && hole < self.served {
            self.served -= 1;
            if hole != self.served {
                self.subscribers[hole] = self.subscribers[self.served];
                moved[0] = Some((self.subscribers[hole], hole as u32));
            }
            hole = self.served;
        }
        self.subscribers.swap_remove(hole);
        if let Some(slot) = self.subscribers.get(hole) {
            moved[1] = Some((*slot, hole as u32));
        }
        moved.into_iter().flatten()
    }
}

impl Core {
    /// Hands the present tick to a few more subscribers.
    pub fn fan_out(&mut self, now: Instant) -> bool {
        // What is queued goes out first: fanning out further would only make it older.
        if self.ready.len() >= 2 * SEND_BUDGET {
            return false;
        }
        if !self.fanout.is_active() {
            let Ok(tick) = self.ctx.link.ticks.pop() else { return false };
            self.fanout.start(tick);
        }
        for _ in 0..SEND_BUDGET {
            let Some(slot) = self.fanout.next_subscriber() else { break };
            self.ahead.send(|steps| self.fanout.after(steps), &mut self.table);
            let Some(conn) = self.table.get_mut(slot) else { continue };
            let what = self.fanout.broadcast(conn.session.view());
            if !what.versions.is_empty() {
                conn.hearing.announce(what.tick);
            }
            if conn.paths.is_moving() {
                continue; // what it misses, VERSIONS tell it, and REPAIR brings
            }
            if what.diffs.is_empty() && what.versions.is_empty() {
                continue;
            }
            conn.session.broadcast(&mut conn.quic, &mut self.ctx, &what, now);
            self.make_ready(slot);
        }
        true
    }

    /// Keeps the list of subscribers in step with what the session of `slot` wants.
    pub fn update_subscription(&mut self, slot: u32) {
        let Some(conn) = self.table.get_mut(slot) else { return };
        let wanted = conn.life == Life::Open && conn.session.is_subscriber();
        match conn.subscriber {
            None if wanted => conn.subscriber = Some(self.fanout.add(slot)),
            Some(place) if !wanted => {
                conn.subscriber = None;
                for (slot, place) in self.fanout.remove(place) {
                    if let Some(moved) = self.table.get_mut(slot) {
                        moved.subscriber = Some(place);
                    }
                }
            }
            _ => {}
        }
    }
}

fn encode(tick: &Tick, view: &TileRect) -> Broadcast {
    let mut broadcast = Broadcast { tick: tick.number(), ..Broadcast::default() };
    tick.pack_diffs(view, |payload| broadcast.diffs.push(payload.into()));
    tick.pack_versions(view, |payload| broadcast.versions.push(payload.into()));
    broadcast
}
