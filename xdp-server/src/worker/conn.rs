//! What a worker keeps of one connection.

use crate::net::{MAX_TX_PAYLOAD, Path};
use crate::quic::config::Connection;
use crate::quic::hot::Hints;
use crate::quic::table::InitialId;
use crate::session::Session;
use std::net::{SocketAddr, SocketAddrV6};
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

/// Time after which a client that moved is probed again, if packets come from there and the last probe was not
/// answered. quiche does so when a probe is lost, but not when the answer is, which nobody repeats. Less than
/// the round trip costs a packet more; more keeps the client without diffs for longer.
const PROBE_AGAIN: Duration = Duration::from_millis(100);

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

/// The two network paths of a connection that matter: the one in use, and the one that a packet last came
/// from otherwise (a NAT that rebinds, a client that probes).
///
/// A path that quiche could not validate is one that it never uses again: the next packet from there ends the
/// connection. It gives up soon, when a lost probe has left nothing of the bytes that an unproven address may
/// be sent. The client has nowhere else to go, so such a path gets another name in QUIC, and with it another
/// attempt: see [`name`](Self::name).
#[derive(Clone, Copy, Debug)]
pub struct Paths {
    current: Way,
    other: Option<Way>,
    /// The last packet came by the other one; when that is to be probed again.
    moving: Option<Instant>,
}

/// A path, and how it is called in QUIC.
#[derive(Clone, Copy, Debug)]
struct Way {
    path: Path,
    /// Validations that failed.
    failures: u32,
}

impl Way {
    fn new(path: &Path) -> Self {
        Self { path: *path, failures: 0 }
    }

    /// The peer's address; after failures told apart from itself by the flow label, which has no meaning to
    /// quiche and is none of the addresses that packets come from.
    fn name(&self) -> SocketAddr {
        let peer = self.path.peer;
        if self.failures == 0 {
            return peer;
        }
        let (ip, scope) = match peer {
            SocketAddr::V4(peer) => (peer.ip().to_ipv6_mapped(), 0),
            SocketAddr::V6(peer) => (*peer.ip(), peer.scope_id()),
        };
        SocketAddrV6::new(ip, peer.port(), self.failures, scope).into()
    }
}

impl Paths {
    /// A connection's first path.
    pub fn new(path: &Path) -> Self {
        Self { current: Way::new(path), other: None, moving: None }
    }

    /// Notes that a packet came along `path`. `true` if it is not the path in use.
    pub fn note(&mut self, path: &Path, now: Instant) -> bool {
        let same = |way: &Way| (path.local, path.peer) == (way.path.local, way.path.peer);
        // The two ends may be the same by another way: a new next hop, or the kernel instead of XDP.
        if same(&self.current) {
            self.current.path = *path;
            self.moving = None;
            return false;
        }
        match &mut self.other {
            Some(other) if same(other) => other.path = *path,
            other => {
                *other = Some(Way::new(path));
                self.moving = None;
            }
        }
        self.moving.get_or_insert(now + PROBE_AGAIN);
        true
    }

    /// What to call the peer of `path`, noted before, in QUIC.
    pub fn name(&self, path: &Path) -> SocketAddr {
        let ways = [Some(self.current), self.other];
        ways.into_iter().flatten().find(|way| way.path.peer == path.peer).map_or(path.peer, |way| way.name())
    }

    /// Notes that QUIC moved the connection to the path to the peer of this name.
    pub fn migrate(&mut self, name: SocketAddr) {
        if let Some(other) = self.other
            && other.name() == name
        {
            self.other = Some(self.current);
            self.current = other;
            self.moving = None;
        }
    }

    /// Notes that QUIC gave up the path to the peer of this name.
    pub fn fail(&mut self, name: SocketAddr) {
        let ways = [Some(&mut self.current), self.other.as_mut()];
        if let Some(way) = ways.into_iter().flatten().find(|way| way.name() == name) {
            way.failures += 1;
        }
    }

    /// The way to the peer of this name: QUIC only ever names peers that packets came from.
    pub fn to(&self, name: SocketAddr) -> Path {
        match self.other {
            Some(other) if self.current.name() != name && other.name() == name => other.path,
            _ => self.current.path,
        }
    }

    /// The path in use.
    pub fn current(&self) -> &Path {
        &self.current.path
    }

    /// True while the client is at an address that it has not proven to be its own. What may be sent there is
    /// three times what came from there, and is needed for the proof: diffs and images have to wait.
    pub fn is_moving(&self) -> bool {
        self.moving.is_some()
    }

    /// True if the client has moved and the last probe should have been answered by now. To be followed by
    /// another probe.
    pub fn probe_is_due(&mut self, now: Instant) -> bool {
        let due = self.moving.is_some_and(|due| due <= now);
        if due {
            self.moving = Some(now + PROBE_AGAIN);
        }
        due
    }

    /// True if there is a second path, on which QUIC may have something to tell.
    pub fn has_other(&self) -> bool {
        self.other.is_some()
    }
}

/// When acknowledgements are due.
#[derive(Clone, Copy, Debug, Default)]
pub struct AckClock {
    packets: u8,
    bytes: u16,
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
        *self = Self::default();
    }

    /// When the oldest unacknowledged packet must be acknowledged.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }
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
    /// Serial number of its next connection ID.
    pub next_serial: u32,
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
            next_serial: 1,
            probing: false,
            retired_ids: false,
            initial,
            since: now,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Link;

    fn path(peer: u16) -> Path {
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Path { local: at(4433), peer: at(peer), link: Link::Kernel }
    }

    #[test]
    fn answers_find_their_way_through_a_rebinding() {
        let now = Instant::now();
        let mut paths = Paths::new(&path(1));
        assert!(!paths.note(&path(1), now));
        assert!(paths.note(&path(2), now), "a new port is another path");
        assert!(paths.is_moving() && !paths.probe_is_due(now));
        assert!(paths.probe_is_due(now + PROBE_AGAIN) && !paths.probe_is_due(now + PROBE_AGAIN));
        assert_eq!((paths.to(path(1).peer), paths.to(path(2).peer)), (path(1), path(2)));
        paths.migrate(path(2).peer);
        assert!(!paths.is_moving());
        assert_eq!((*paths.current(), paths.note(&path(2), now)), (path(2), false));
        assert_eq!(paths.to(path(1).peer), path(1), "the old one until another comes");
        assert!(paths.note(&path(3), now));
        assert_eq!(paths.to(path(3).peer), path(3));
        assert_eq!(paths.to(path(9).peer), path(2), "unknown peers go the way in use");
    }

    #[test]
    fn a_path_that_quic_gave_up_gets_another_name_and_attempt() {
        let now = Instant::now();
        let mut paths = Paths::new(&path(1));
        assert!(paths.note(&path(2), now));
        for _ in 0..2 {
            let name = paths.name(&path(2));
            paths.fail(name);
            assert_ne!(paths.name(&path(2)), name);
            assert_eq!(paths.to(paths.name(&path(2))), path(2), "answers go to the real address");
            assert_eq!(paths.name(&path(1)), path(1).peer);
            assert!(paths.note(&path(2), now), "the failures are not forgotten");
        }
        let name = paths.name(&path(2));
        paths.migrate(name);
        assert_eq!((*paths.current(), paths.name(&path(2)), paths.to(name)), (path(2), name, path(2)));
        assert!(!paths.note(&path(2), now));
    }

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
}
