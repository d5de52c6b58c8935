//! The highest rate that a server takes without loss.
//!
//! From a low rate upwards by a factor until packets are lost, then halfway between the best that passed and
//! the least that failed. Each step sends for a while at an even rate, and compares what was sent with what
//! the server applied. A rate that fails gets a second chance: on a virtual machine a core may be taken away
//! for longer than any ring can hold.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::blast::{Auditor, Sender};
use super::fleet::Fleet;
use super::prepare::Preparer;

/// Factor between two rates while nothing is lost.
const GROWTH: f64 = 1.5;

/// Halvings after that: the rate is then known to within 1.5^(1/16), 3%.
const HALVINGS: usize = 4;

/// Attempts at each rate.
const ATTEMPTS: usize = 2;

/// How to search.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Packets a second to begin with.
    pub first: f64,
    /// Packets a second beyond which nobody looks: the sender's own limit.
    pub most: f64,
    /// Time to send at each rate.
    pub step: Duration,
    /// Share of packets, 0 to 1, that may be lost.
    pub loss: f64,
}

/// What was found.
#[derive(Clone, Copy, Debug, Default)]
pub struct Found {
    /// Packets a second, measured: the highest rate that passed; 0 if none did.
    pub rate: f64,
    /// Share of packets lost at it.
    pub loss: f64,
    /// Rates tried.
    pub steps: usize,
    /// True if the sender, not the server, was the limit.
    pub sender_limited: bool,
}

impl Found {
    /// For machines.
    pub fn json(&self) -> Value {
        json!({
            "lossless_per_s": self.rate.round(),
            "loss_at_it": self.loss,
            "steps": self.steps,
            "sender_limited": self.sender_limited,
        })
    }
}

/// What takes part in a search.
pub struct Search<'a> {
    /// The clients.
    pub fleet: &'a mut Fleet,
    /// Makes their packets.
    pub preparer: &'a mut Preparer,
    /// Sends them.
    pub sender: &'a mut Sender,
    /// Asks the server.
    pub auditor: &'a mut Auditor,
}

impl Search<'_> {
    /// Searches. `progress` hears of each attempt: the rate asked for, the rate measured, the share lost.
    ///
    /// # Errors
    /// Something other than loss.
    pub fn run(&mut self, plan: Plan, mut progress: impl FnMut(f64, f64, f64)) -> Result<Found> {
        let mut found = Found::default();
        let (mut rate, mut failed) = (plan.first, None);
        let mut halvings = 0;
        while halvings < HALVINGS {
            found.steps += 1;
            let passed = self.passes(rate, plan, &mut progress)?;
            match passed {
                Some((measured, loss)) => {
                    (found.rate, found.loss) = (measured, loss);
                    if rate >= plan.most || measured < 0.95 * rate {
                        found.sender_limited = true;
                        break;
                    }
                }
                None => failed = Some(rate),
            }
            rate = match failed {
                None => (rate * GROWTH).min(plan.most),
                Some(failed) => {
                    halvings += 1;
                    // Below the first rate there may be anything, down to nothing.
                    let best = if found.rate > 0.0 { found.rate } else { failed / GROWTH / GROWTH };
                    (best * failed).sqrt()
                }
            };
        }
        Ok(found)
    }

    /// Tries one rate. Returns the rate measured and the share lost, if that was little enough.
    fn passes(
        &mut self,
        rate: f64,
        plan: Plan,
        progress: &mut impl FnMut(f64, f64, f64),
    ) -> Result<Option<(f64, f64)>> {
        for _ in 0..ATTEMPTS {
            let count = (rate * plan.step.as_secs_f64()).ceil() as usize;
            let prepared = self.preparer.prepare(self.fleet, count.max(1), |_| {})?;
            let before = self.auditor.settled()?.applied;
            let sent = self.sender.blast(self.fleet, &prepared, Some(rate), plan.step * 2)?;
            let applied = self.auditor.settled()?.applied - before;
            let loss = 1.0 - applied as f64 / sent.sent as f64;
            progress(rate, sent.rate(), loss);
            if loss <= plan.loss {
                return Ok(Some((sent.rate(), loss)));
            }
        }
        Ok(None)
    }
}
