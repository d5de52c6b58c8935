//! New connections, a few each turn.
//!
//! To accept a connection costs as much as a hundred messages of one that is there: a key exchange, a
//! signature. So the Initials of strangers are set aside when they are received, as copies, and accepted at
//! the end of a turn, when everybody else has been served: a crowd that connects, or somebody who floods with
//! Initials, takes a bounded part of each turn. What cannot wait any more is dropped: clients repeat it.

use super::Core;
use crate::link::Stray;
use crate::net::Path;
use crate::quic::header::{self, Header};
use crate::quic::table::InitialId;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Initials taken up in one turn. At some 150 us each they delay those who are connected by 0.6 ms, far less
/// than a tick; more delay them more, fewer make a crowd pay for more turns of a few microseconds.
const PER_TURN: usize = 4;

/// Initials that may wait, at 1.5 KB each: as many as a UMEM has frames to receive. Fewer drop what a crowd
/// brings at once, and clients that have to repeat come in after 1, 3 and 7 seconds (256 were tried: of 1,500
/// clients that connected at once half gave up); more let a flood take more memory.
const WAITING: usize = 4096;

/// An Initial that waited for longer is dropped: half of what a handshake may take here, and many clients
/// give up after 10 to 15 s. Longer, and a worker that cannot keep up makes nothing but connections whose
/// clients have gone. Shorter drops those of clients that still wait: with 1 s, 3% of 5,000 that came within
/// 5 s failed.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// The Initials that wait, oldest first, and when they came. A stray's copy is what is needed here, too:
/// packet and path.
#[derive(Default)]
pub struct Newcomers(VecDeque<(Instant, Box<Stray>)>);

impl Core {
    /// Sets a stranger's Initial aside.
    pub fn set_aside(&mut self, path: &Path, packet: &[u8], now: Instant) {
        let waiting = &mut self.newcomers.0;
        match Stray::new(path, packet) {
            Some(copy) if waiting.len() < WAITING => waiting.push_back((now, copy)),
            _ => self.ctx.stats.drop_newcomers += 1,
        }
    }

    /// Accepts a few of those that wait.
    pub fn accept_newcomers(&mut self, now: Instant) -> bool {
        let mut taken = 0;
        while taken < PER_TURN
            && let Some((since, mut initial)) = self.newcomers.0.pop_front()
        {
            if now.duration_since(since) > LONGEST_WAIT {
                self.ctx.stats.drop_newcomers += 1;
                continue;
            }
            taken += 1;
            let path = initial.path;
            let packet = initial.packet();
            let Some(Header::Initial { dcid }) = header::parse(packet) else { continue };
            let Some(id) = InitialId::new(dcid) else { continue };
            match self.table.find_initial(&id) {
                // The second packet of a long ClientHello, or a repetition.
                Some(slot) => self.deliver(slot, &path, packet, now),
                None => self.accept(id, &path, packet, now),
            }
        }
        taken > 0
    }
}
