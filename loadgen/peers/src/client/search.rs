//! What a server takes at which rate: the highest without loss, the most at any, and in overload.
//!
//! First upwards: rates that grow by a factor, up to the sender's own limit, and at last as fast as can be.
//! A server on a socket can do less in overload than below it, as the kernel receives packets only to drop
//! them; so the most messages a second at any rate is a figure of its own. Then halfway between the best rate
//! without loss and the least with. Each step sends for a while at an even rate, and compares what was sent
//! with what the server applied. A rate that fails gets a second chance: on a virtual machine a core may be
//! taken away for longer than any ring can hold.
//!
//! Between two steps the clients hear what the servers have to say, as clients do, and answer it. While packets
//! leave they are deaf (see [`blast`](super::blast)); for longer than a second or two that would not do:
//! quiche asks for an answer with each 24th packet that only acknowledges, and repeats what is not answered.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::blast::{Auditor, Outcome, Sender};
use super::fleet::Fleet;
use super::prepare::Preparer;

/// Factor between two rates on the way up. The most messages a second are found to within this, less what a
/// server does below the rate that it is sent; with 1.5, a server's figure was the rate that it was sent.
const GROWTH: f64 = 1.25;

/// Halvings after that: the rate without loss is then known to within 1.25^(1/8), 3%.
const HALVINGS: usize = 3;

/// Time in which clients hear and answer servers before each step. With what a measurement takes besides, it is
/// about as long as a server that got no answer for one step waits until it asks again.
const REST: Duration = Duration::from_millis(500);

/// How to search.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Packets a second to begin with.
    pub first: f64,
    /// Packets a second to end with.
    pub most: f64,
    /// Time to send at each rate.
    pub step: Duration,
    /// Share of packets, 0 to 1, that may be lost.
    pub loss: f64,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// The highest rate without loss, if there was one.
    pub lossless: Option<Outcome>,
    /// The most messages a second at any rate.
    pub most: Option<Outcome>,
    /// As fast as can be.
    pub overload: Option<Outcome>,
    /// Everything that was tried.
    pub attempts: Vec<Outcome>,
}

impl Found {
    /// For machines.
    pub fn json(&self) -> Value {
        let one = |outcome: &Option<Outcome>| outcome.as_ref().map(Outcome::json);
        json!({
            "lossless": one(&self.lossless),
            "most": one(&self.most),
            "overload": one(&self.overload),
            "attempts": self.attempts.iter().map(Outcome::json).collect::<Vec<_>>(),
        })
    }

    fn note(&mut self, outcome: Outcome) {
        if self.most.is_none_or(|most| outcome.applied_per_s() > most.applied_per_s()) {
            self.most = Some(outcome);
        }
        self.attempts.push(outcome);
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
    /// Searches. `progress` hears of each attempt.
    ///
    /// # Errors
    /// Something other than loss.
    pub fn run(&mut self, plan: Plan, mut progress: impl FnMut(&Outcome)) -> Result<Found> {
        let mut found = Found::default();
        let (mut rate, mut failed) = (plan.first, None);
        while rate <= plan.most {
            let chances = if failed.is_none() { 2 } else { 1 };
            if !self.passes(rate, chances, plan, &mut found, &mut progress)? {
                failed.get_or_insert(rate);
            }
            rate *= GROWTH;
        }
        let overload = self.attempt(None, plan)?;
        progress(&overload);
        found.overload = Some(overload);
        found.note(overload);
        if let Some(mut failed) = failed {
            for _ in 0..HALVINGS {
                // Below the first rate there may be anything, down to nothing.
                let best = found.lossless.map_or(failed / 2.0, |best| best.sent.rate());
                let between = (best * failed).sqrt();
                if !self.passes(between, 2, plan, &mut found, &mut progress)? {
                    failed = between;
                }
            }
        }
        Ok(found)
    }

    /// Tries a rate up to so many times, until nothing is lost.
    fn passes(
        &mut self,
        rate: f64,
        chances: usize,
        plan: Plan,
        found: &mut Found,
        progress: &mut impl FnMut(&Outcome),
    ) -> Result<bool> {
        for _ in 0..chances {
            let outcome = self.attempt(Some(rate), plan)?;
            progress(&outcome);
            found.note(outcome);
            if outcome.loss() <= plan.loss && outcome.kept_up() {
                if found.lossless.is_none_or(|best| outcome.sent.rate() > best.sent.rate()) {
                    found.lossless = Some(outcome);
                }
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// One blast, at `rate` or as fast as can be.
    fn attempt(&mut self, rate: Option<f64>, plan: Plan) -> Result<Outcome> {
        self.fleet.wait(REST)?;
        let count = (rate.unwrap_or(plan.most * GROWTH) * plan.step.as_secs_f64()).ceil() as usize;
        let prepared = self.preparer.prepare(self.fleet, count.max(1), |_| {})?;
        self.sender.measure(self.fleet, &prepared, rate, plan.step, self.auditor)
    }
}
