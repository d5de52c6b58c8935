//! What a worker keeps of one connection.

use crate::net::Path;
use crate::quic::config::Connection;
use crate::quic::table::InitialId;
use crate::session::Session;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Received packets that may wait for one acknowledgement. quiche acknowledges whenever it sends; an ACK
/// costs more than the message it acknowledges. RFC 9000 (13.2.2) recommends 2 for streams that are limited
/// by their window; clients here send single packets. Larger values delay a client's loss detection.
const ACK_EVERY: u8 = 8;

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
#[derive(Clone, Copy, Debug)]
pub struct Paths {
    current: Path,
    other: Option<Path>,
}

impl Paths {
    /// A connection's first path.
    pub fn new(path: &Path) -> Self {
        Self { current: *path, other: None }
    }

    /// Notes that a packet came along `path`. `true` if it is not the path in use.
    pub fn note(&mut self, path: &Path) -> bool {
        if *path == self.current {
            return false;
        }
        if (path.local, path.peer) == (self.current.local, self.current.peer) {
            self.current = *path; // the same two ends by another way: a new next hop, or the kernel instead of XDP
            return false;
        }
        self.other = Some(*path);
        true
    }

    /// Notes that QUIC moved the connection to the path to `peer`.
    pub fn migrate(&mut self, peer: SocketAddr) {
        if let Some(other) = self.other
            && other.peer == peer
        {
            self.other = Some(self.current);
            self.current = other;
        }
    }

    /// The way to `peer`: QUIC only ever names peers that packets came from.
    pub fn to(&self, peer: SocketAddr) -> Path {
        match self.other {
            Some(other) if self.current.peer != peer && other.peer == peer => other,
            _ => self.current,
        }
    }

    /// The path in use.
    pub fn current(&self) -> &Path {
        &self.current
    }

    /// True if there is a second path, on which QUIC may have something to tell.
    pub fn has_other(&self) -> bool {
        self.other.is_some()
    }
}

/// When acknowledgements are due.
#[derive(Clone, Copy, Debug, Default)]
pub struct AckClock {
    unacknowledged: u8,
    due: Option<Instant>,
}

impl AckClock {
    /// Notes a received packet that needs no answer of its own. `true`: enough of them wait now, acknowledge.
    pub fn received(&mut self, now: Instant, delay: Duration) -> bool {
        self.unacknowledged += 1;
        self.due.get_or_insert(now + delay);
        self.unacknowledged >= ACK_EVERY
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

/// See the [module](self).
pub struct Conn {
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
    /// The client's first destination ID, while it is in the table.
    pub initial: Option<InitialId>,
    /// When it was accepted.
    pub since: Instant,
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
        let mut paths = Paths::new(&path(1));
        assert!(!paths.note(&path(1)));
        assert!(paths.note(&path(2)), "a new port is another path");
        assert_eq!((paths.to(path(1).peer), paths.to(path(2).peer)), (path(1), path(2)));
        paths.migrate(path(2).peer);
        assert_eq!((*paths.current(), paths.note(&path(2))), (path(2), false));
        assert_eq!(paths.to(path(1).peer), path(1), "the old one until another comes");
        assert!(paths.note(&path(3)));
        assert_eq!(paths.to(path(3).peer), path(3));
        assert_eq!(paths.to(path(9).peer), path(2), "unknown peers go the way in use");
    }

    #[test]
    fn every_eighth_packet_or_the_delay_is_acknowledged() {
        let (now, delay) = (Instant::now(), Duration::from_millis(60));
        let mut acks = AckClock::default();
        assert_eq!(acks.due(), None);
        for n in 1..ACK_EVERY {
            assert!(!acks.received(now + Duration::from_millis(n.into()), delay));
        }
        assert_eq!(acks.due(), Some(now + Duration::from_millis(1) + delay), "counted from the oldest");
        assert!(acks.received(now, delay));
        acks.sent();
        assert_eq!(acks.due(), None);
    }
}
