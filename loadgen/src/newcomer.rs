//! A client that comes and goes: connects, says HELLO, waits for the WELCOME, closes, and does it again.
//!
//! Newcomers share `--rate` among them on an open loop. One that is still connecting when its next handshake
//! is due falls behind, and that handshake's time counts from when it was due: so a server that is too slow
//! shows in the times and not in a lower rate alone.

use std::time::Duration;

use canvas::codes::CloseCode;
use quinn::Endpoint;
use rand::rngs::SmallRng;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::client::open;
use crate::schedule::Schedule;
use crate::session::close;
use crate::shared::{Phase, Shared};
use crate::stats::ThreadStats;

/// Comes and goes until told to stop; the first time at `first`.
pub async fn come_and_go(
    shared: &Shared,
    stats: &ThreadStats,
    endpoint: &Endpoint,
    index: usize,
    first: Instant,
    mut rng: SmallRng,
) {
    let settings = &shared.settings;
    let mut phase: watch::Receiver<Phase> = shared.phase.clone();
    let interval = Duration::from_secs_f64(settings.newcomers as f64 / settings.rate);
    // Made when the first handshake has ended: the ramp is its own load.
    let mut schedule: Option<Schedule> = None;
    let (mut due, mut free_since, mut is_up) = (first, first, None);
    loop {
        tokio::select! {
            () = sleep_until(due) => {}
            _ = phase.wait_for(|&phase| phase != Phase::Load) => break,
        }
        let begun = Instant::now();
        stats.was_late(due, begun - due.max(free_since));
        let counts_from = if settings.closed_loop { begun } else { due };
        let opened = tokio::select! {
            opened = open(shared, endpoint, index) => opened,
            _ = phase.wait_for(|&phase| phase != Phase::Load) => break,
        };
        // Whether it is up means whether its last handshake succeeded: so a server that greets nobody any
        // more is told from one whose newcomers are between two visits.
        match (&opened, is_up) {
            (Ok(_), None) => shared.stats.connected(),
            (Ok(_), Some(false)) => shared.stats.recovered(),
            (Err(_), Some(true)) => shared.stats.disconnected(),
            (Ok(_), Some(true)) | (Err(_), None | Some(false)) => {}
        }
        is_up = match &opened {
            Ok(_) => Some(true),
            Err(_) => is_up.map(|_| false),
        };
        match opened {
            Ok(session) => {
                stats.greeted(counts_from, session.established - counts_from);
                close(&session.connection, CloseCode::Ok);
            }
            Err(loss) => shared.stats.failed(loss.as_str()),
        }
        free_since = Instant::now();
        due = match &mut schedule {
            Some(schedule) => {
                if settings.closed_loop {
                    schedule.restart(free_since, &mut rng);
                } else {
                    schedule.advance(&mut rng);
                }
                schedule.due()
            }
            None => {
                shared.decided();
                let (shortest, longest) = (interval.mul_f64(0.5), interval.mul_f64(1.5));
                schedule.insert(Schedule::start(free_since, shortest, longest, &mut rng)).due()
            }
        };
    }
    if schedule.is_none() {
        shared.decided();
    }
    if is_up == Some(true) {
        shared.stats.disconnected();
    }
}
