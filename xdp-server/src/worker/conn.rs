//! What a worker keeps of one connection.

use super::announced::Hearing;
use super::paths::Paths;
use crate::net::{MAX_TX_PAYLOAD, Path};
use crate::quic::config::Connection;
use crate::quic::hot::Hints;
use crate::quic::table::InitialId;
use crate::session::Session;
use std::time::{Duration, Instant};

/// Received packets that may wait for one acknowledgement. quiche acknowledges whenever it sends, and an ACK
/// costs about three times the small message that it acknowledges. Larger values delay a client's loss
/// detection, and make it keep more of what it sent; at 32 an ACK's share of a message's cost is a tenth.
const ACK_PACKETS: u8 = 32;

/// Received bytes that may wait for one acknowledgement: no more than one full packet. The smallest congestion
/// window is two packets (RFC 9002, section 7.2), so that a client always has room for one more while this
/// many wait. Larger, and a client that lost packets stalls until the delay is over; smaller, and streams of
/// full packets get more than the ACK for each second one that RFC 9000 (section 13.2.2) recommends.
const ACK_BYTES: u16 = MAX_TX_PAYLOAD as u16;

/// Bytes of a packet with nothing but an ACK, less the client's connection ID, from which the ACK lists gaps. Without
/// gaps such packets take 24 to 29 bytes (first byte, packet number of 1 or 2, ACK frame of 6 to 10, tag of 16), and
/// each gap at least 2 more: that is 3 to 6 gaps. With the third, quiche's list of them becomes a tree.
const LONG_ACK: usize = 35;

/// Long ACKs for each that the client is asked to confirm. One is enough but where packets are still being lost:
/// quiche asks again by its probe timer.
const CONFIRM_EVERY: u8 = 4;

/// Timers of QUIC's that fire later than this are not about packets under way: a probe timeout with a round trip of
/// a second takes 3 s (RFC 9002, section 6.2.1). With an idle timeout of less, packets are asked for that are not
/// there; larger values do that for more clients.
const LOSS_TIMERS: Duration = Duration::from_secs(3);

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// The handshake is not complete.
    Handshake,
    /// Complete; messages flow.
    Open,
    /// The table is full: this connection exists to be told so, once its handshake is complete.
    Refused,
    /// Closed by either side; waits for QUIC's draining period.
    Closing,
}

/// When acknowledgements are due.
#[derive(Clone, Copy, Debug, Default)]
pub struct AckClock {
    packets: u8,
    bytes: u16,
    /// Long ACKs in a row, from 1 to `CONFIRM_EVERY` and again from 1.
    long: u8,
    due: Option<Instant>,
}

/// What a received packet means for acknowledging.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owed {
    /// Enough packets wait: acknowledge.
    Now,
    /// It is the first that waits, until then at most.
    By(Instant),
    /// It waits with others.
    Later,
}

impl AckClock {
    /// Notes a received packet of `bytes` bytes that needs no answer of its own.
    pub fn received(&mut self, bytes: usize, now: Instant, delay: Duration) -> Owed {
        self.packets = self.packets.saturating_add(1);
        self.bytes = self.bytes.saturating_add(bytes as u16);
        if self.packets >= ACK_PACKETS || self.bytes > ACK_BYTES {
            return Owed::Now;
        }
        if self.due.is_some() {
            return Owed::Later;
        }
        let due = now + delay;
        self.due = Some(due);
        Owed::By(due)
    }

    /// Notes that QUIC had the opportunity to send, and so acknowledged.
    pub fn sent(&mut self) {
        *self = Self { long: self.long, ..Self::default() };
    }

    /// Notes a packet of `bytes` bytes, less the client's connection ID, in which QUIC only acknowledged.
    pub fn acknowledged(&mut self, bytes: usize) {
        self.long = if bytes >= LONG_ACK { self.long % CONFIRM_EVERY + 1 } else { 0 };
    }

    /// True if an ACK is owed, and the client should be asked to confirm it. Packets that never came are gaps in
    /// every ACK, until the client has confirmed one that lists them. By itself quiche asks for that with every 24th
    /// packet that only acknowledges, and keeps a copy of the list with each of them. Without this, a worker with
    /// 10,000 clients took 146 k messages/s after an overload, and with it 168 k (medians of nine, of 200 k offered).
    pub fn needs_confirmation(&self) -> bool {
        self.long == 1 && self.due.is_some()
    }

    /// When the oldest unacknowledged packet must be acknowledged.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }
}

/// Stream data that QUIC may have to send. A packet of quiche's holds that of one stream only, and none beside
/// datagrams, and nothing says how much is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamData {
    /// There may be some.
    Waiting,
    /// There is none until QUIC will have lost more packets than this.
    UnderWay(usize),
    /// There is none, and none that could be lost. A state of its own, since QUIC's count of losses is in a cache
    /// line that nothing else needs.
    Settled,
}

/// See the [module](self). Its layout is what `ahead` counts on: lines of quiche's connection are cache lines.
#[repr(C, align(64))]
pub struct Conn {
    /// Where to find what `quic` points to.
    pub hints: Hints,
    /// QUIC's state.
    pub quic: Connection,
    /// The protocol's state.
    pub session: Session,
    /// Ways to the client.
    pub paths: Paths,
    /// Where it is in its life.
    pub life: Life,
    /// Acknowledgements owed.
    pub acks: AckClock,
    /// It is in the queue of connections that have something to send.
    pub queued: bool,
    /// Its place in the list of subscribers, if it is there.
    pub subscriber: Option<u32>,
    /// Whether it hears what is announced to subscribers.
    pub hearing: Hearing,
    /// Serial number of its next connection ID.
    pub next_serial: u32,
    /// What QUIC may have to send besides what fits one packet.
    pub streams: StreamData,
    /// A timer of QUIC's fired: it may have probes to send, several small packets in a row.
    pub probing: bool,
    /// The client has retired connection IDs: later packets may still carry one.
    pub retired_ids: bool,
    /// The client's first destination ID, while it is in the table.
    pub initial: Option<InitialId>,
    /// When it was accepted.
    pub since: Instant,
    /// Packets received since the handshake that needed no answer of their own.
    pub received: u32,
}

impl Conn {
    /// A connection that was accepted along `path`; `initial` is the client's first destination ID, if it is in
    /// the table.
    pub fn new(
        quic: Connection,
        session: Session,
        path: &Path,
        life: Life,
        initial: Option<InitialId>,
        now: Instant,
    ) -> Self {
        Self {
            hints: Hints::default(),
            quic,
            received: 0,
            session,
            paths: Paths::new(path),
            life,
            acks: AckClock::default(),
            queued: false,
            subscriber: None,
            hearing: Hearing::default(),
            next_serial: 1,
            streams: StreamData::Waiting,
            probing: false,
            retired_ids: false,
            initial,
            since: now,
        }
    }

    /// True if QUIC has no stream data to send.
    pub fn is_drained(&mut self, now: Instant) -> bool {
        match self.streams {
            StreamData::Waiting => false,
            StreamData::Settled => true,
            StreamData::UnderWay(lost) => {
                let none_lost = self.quic.stats().lost == lost;
                // Only the idle timer runs: everything was acknowledged.
                if none_lost && self.quic.timeout_instant().is_none_or(|due| due > now + LOSS_TIMERS) {
                    self.streams = StreamData::Settled;
                }
                none_lost
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_bytes_and_the_delay_make_an_acknowledgement_due() {
        let (now, delay) = (Instant::now(), Duration::from_millis(60));
        let mut acks = AckClock::default();
        assert_eq!(acks.due(), None);
        assert_eq!(acks.received(30, now, delay), Owed::By(now + delay));
        for n in 2..ACK_PACKETS {
            assert_eq!(acks.received(30, now + Duration::from_millis(n.into()), delay), Owed::Later);
        }
        assert_eq!(acks.due(), Some(now + delay), "counted from the oldest");
        assert_eq!(acks.received(30, now, delay), Owed::Now);
        acks.sent();
        assert_eq!(acks.due(), None);
        assert_eq!(acks.received(1200, now, delay), Owed::By(now + delay), "full packets: each second one");
        assert_eq!(acks.received(1200, now, delay), Owed::Now);
    }

    #[test]
    fn of_long_acknowledgements_the_first_and_each_fourth_after_it_are_to_be_confirmed() {
        let mut acks = AckClock::default();
        let mut acknowledge = |bytes| {
            acks.received(30, Instant::now(), Duration::ZERO);
            let asked = acks.needs_confirmation();
            acks.sent();
            assert!(!acks.needs_confirmation(), "nothing is owed");
            acks.acknowledged(bytes);
            asked
        };
        let lengths = [30, LONG_ACK - 1, LONG_ACK, 100, 100, 100, 100, 100, 30, 100, 30];
        let asked = lengths.map(&mut acknowledge);
        let expected = [3, 7, 10]; // the one after a first long one, after a fifth, and again after a short one
        assert_eq!(asked, std::array::from_fn(|n| expected.contains(&n)));
    }
}
