//! Connecting and leaving, over and over: full handshakes, or resumed ones.
//!
//! A number of clients is always on its way; each one that gets its WELCOME closes and starts anew. To
//! resume, one client first connects in full and waits for a session ticket, which all others then present.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::cores::{Cores, Spent};
use super::fleet::{Event, Fleet, Role};

/// Clients on their way at once: enough to keep a server busy while we compute.
const IN_FLIGHT: usize = 64;

/// Time in which a session ticket must come.
const TICKET: Duration = Duration::from_secs(5);

/// What was done.
#[derive(Clone, Copy, Debug)]
pub struct Shaken {
    /// Handshakes that ended with a WELCOME.
    pub handshakes: u64,
    /// Of those: resumed.
    pub resumed: u64,
    /// Seconds that it took.
    pub elapsed: f64,
    /// How the cores spent it.
    pub spent: Spent,
}

impl Shaken {
    /// For machines.
    pub fn json(&self) -> Value {
        let mut report = json!({
            "handshakes": self.handshakes,
            "resumed": self.resumed,
            "handshakes_per_s": (self.handshakes as f64 / self.elapsed).round(),
            "elapsed_s": self.elapsed,
        });
        self.spent.add_to(&mut report);
        report
    }
}

/// Shakes hands for `window`. `progress` hears, about once a second, how often so far.
///
/// # Errors
/// A handshake failed, no ticket came, or the run was interrupted.
pub fn shake(
    fleet: &mut Fleet,
    window: Duration,
    resume: bool,
    cores: Cores,
    mut progress: impl FnMut(u64),
) -> Result<Shaken> {
    let ticket = if resume { Some(ticket(fleet)?) } else { None };
    let first = fleet.clients.len();
    for index in first..first + IN_FLIGHT {
        fleet.start(index, Role::Painter, ticket.as_deref())?;
    }
    let watch = cores.watch()?;
    let start = Instant::now();
    let mut next_report = start + Duration::from_secs(1);
    let mut shaken = Shaken { handshakes: 0, resumed: 0, elapsed: 0.0, spent: Spent::default() };
    let mut done = Vec::new();
    while start.elapsed() < window {
        fleet.pump(start + window, |index, event| {
            if matches!(event, Event::Welcome) {
                done.push(index);
            }
        })?;
        for index in done.drain(..) {
            shaken.handshakes += 1;
            shaken.resumed += u64::from(fleet.clients[index].quic.is_resumed());
            fleet.close(index);
            fleet.start(index, Role::Painter, ticket.as_deref())?;
        }
        if Instant::now() >= next_report {
            next_report += Duration::from_secs(1);
            progress(shaken.handshakes);
        }
    }
    shaken.spent = watch.until_now()?;
    shaken.elapsed = start.elapsed().as_secs_f64();
    Ok(shaken)
}

/// A session ticket of the server's.
fn ticket(fleet: &mut Fleet) -> Result<Vec<u8>> {
    fleet.connect(1, |_| Role::Painter, |_| {})?;
    let deadline = Instant::now() + TICKET;
    while Instant::now() < deadline {
        if let Some(session) = fleet.clients[0].quic.session() {
            return Ok(session.to_vec());
        }
        fleet.pump(deadline, |_, _| {})?;
    }
    bail!("{} sends no session ticket: nothing to resume", fleet.target())
}
