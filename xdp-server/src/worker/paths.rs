//! Where the client of a connection is: its network paths, and what QUIC knows of them.
//!
//! Owns the names by which QUIC knows a client's addresses, and with them all that has to do with moving:
//! probing, following, and what goes where.

use crate::net::{MAX_TX_PAYLOAD, Path};
use crate::quic::config::{Connection, PATHS};
use quiche::{PathEvent, RecvInfo};
use std::net::{SocketAddr, SocketAddrV6};
use std::time::{Duration, Instant};

/// Time after which a client that moved is probed again, if the last probe was not answered. quiche does so when a
/// probe is lost, but not when the answer is, which nobody repeats. Less than the round trip costs a packet more;
/// more keeps the client without diffs for longer.
const PROBE_AGAIN: Duration = Duration::from_millis(100);

/// Packets to an address that is not proven are filled by quiche, up to what may be sent there: three times what
/// came from there (RFC 9000, section 8). The first one would use that up, and if it or its answer were lost the
/// client could not be asked again. So they are no larger than this, in bytes: enough for a probe, an
/// acknowledgement of a few ranges, and IDs of any length.
pub const PROBE_SIZE: usize = 64;

/// The two network paths of a connection that matter: the one in use, and the one that a packet last came
/// from otherwise (a NAT that rebinds, a client that probes).
///
/// A path that quiche gave up is one that it never uses again: the next packet from there ends the connection.
/// It gives up soon, when a lost probe has left nothing of the bytes that an unproven address may be sent; also
/// on the path in use, if a probe more than was needed got lost. The client has nowhere else to go. So paths
/// have names, by which QUIC knows them. A path that failed gets another name, and with it another attempt; the
/// one in use goes by the name of the path that quiche fell back to. No name that failed is ever used again.
///
/// What was under way on a path when the client left it is lost, and quiche finds that out from later packets
/// of the same path alone. So left paths are used once more, by packets that go where the client is now: see
/// [`others`](Self::others). Their answers would prove anybody's address to be the client's; so a name that was
/// left before it was proven counts as failed, and what is sent by any other unproven one goes to its address
/// alone. And left to itself quiche sends nothing at all while it wants to probe a path that it gave up, so that
/// it is always told which path to use.
///
/// QUIC's table of paths has [`PATHS`] places and forgets none. It ignores packets from one address more, so
/// that such a client would be deaf: see [`Arrival::Homeless`].
#[derive(Clone, Copy, Debug)]
pub struct Paths {
    current: Way,
    other: Option<Way>,
    /// QUIC uses a path that it has not validated.
    moving: Option<Moving>,
    /// No path is given a name of fewer [`failures`](failures): those that are neither proven nor in use came to
    /// nothing.
    failures: u32,
    /// There has been another path.
    has_moved: bool,
    /// Other paths may have something to send since [`others`](Self::others) were asked for.
    ask_others: bool,
}

/// A client on its way.
#[derive(Clone, Copy, Debug)]
struct Moving {
    /// What QUIC uses.
    to: Way,
    /// When that is to be probed again.
    probe: Instant,
}

/// A path, and how it is called in QUIC.
#[derive(Clone, Copy, Debug)]
struct Way {
    path: Path,
    /// What QUIC knows it by: the server's address,
    local: SocketAddr,
    /// and the name of the client's.
    name: SocketAddr,
}

impl Way {
    /// A way with a name of its own: the peer's address, after `failures` told apart from what failed by the
    /// flow label, which has no meaning to quiche and is none of the addresses that packets come from.
    fn new(path: &Path, failures: u32) -> Self {
        let name = match path.peer {
            peer if failures == 0 => peer,
            SocketAddr::V4(peer) => {
                SocketAddrV6::new(peer.ip().to_ipv6_mapped(), peer.port(), failures, 0).into()
            }
            SocketAddr::V6(peer) => {
                SocketAddrV6::new(*peer.ip(), peer.port(), failures, peer.scope_id()).into()
            }
        };
        Self { path: *path, local: path.local, name }
    }

    fn leads_to(&self, path: &Path) -> bool {
        (path.local, path.peer) == (self.path.local, self.path.peer)
    }

    /// What QUIC is to be told of a packet that came this way.
    fn arrival(&self) -> RecvInfo {
        RecvInfo { from: self.name, to: self.local }
    }
}

/// What a name is told apart by from those that failed before it was given.
fn failures(name: SocketAddr) -> u32 {
    match name {
        SocketAddr::V4(_) => 0,
        SocketAddr::V6(name) => name.flowinfo(),
    }
}

/// How a received packet is to be given to QUIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// By the path in use.
    Here(RecvInfo),
    /// By another path. [`Paths::moved`] is to be told if it was authentic.
    Elsewhere(RecvInfo),
    /// By a path for which there is no place: as if by the one in use. So it is read, but nothing can prove that
    /// answers reach who sent it. If it was authentic, the client is to be told to connect again:
    /// [`Paths::end_at`].
    Homeless(RecvInfo),
}

impl Paths {
    /// A connection's first path.
    pub fn new(path: &Path) -> Self {
        Self {
            current: Way::new(path, 0),
            other: None,
            moving: None,
            failures: 0,
            has_moved: false,
            ask_others: false,
        }
    }

    /// How to give QUIC a packet that came along `path`.
    pub fn arrive(&mut self, quic: &mut Connection, path: &Path) -> Arrival {
        if self.has_moved {
            self.follow(quic); // it may have given a path up since the last packet
        }
        // The two ends may be the same by another way: a new next hop, or the kernel instead of XDP.
        if self.current.leads_to(path) {
            self.current.path.link = path.link;
            return Arrival::Here(self.current.arrival());
        }
        let way = self.elsewhere(path);
        let known = quic.is_path_validated(way.local, way.name).is_ok();
        if known || quic.path_stats().count() < PATHS as usize {
            Arrival::Elsewhere(way.arrival())
        } else {
            Arrival::Homeless(self.current.arrival())
        }
    }

    /// The ways that are not in use, or not yet.
    fn ways(&self) -> impl Iterator<Item = Way> + use<> {
        [self.moving.map(|moving| moving.to), self.other].into_iter().flatten()
    }

    /// The way along `path`, which is not the one in use.
    fn elsewhere(&self, path: &Path) -> Way {
        if let Some(known) = self.ways().find(|way| way.leads_to(path)) {
            return Way { path: *path, ..known };
        }
        // From an address that is in use to another of the server's: not to be taken for that one.
        let is_taken = |name| self.current.name == name || self.ways().any(|way| way.name == name);
        let mut failures = self.failures;
        loop {
            match Way::new(path, failures) {
                way if is_taken(way.name) => failures += 1,
                way => return way,
            }
        }
    }

    /// Gives `name` up: no path is called so from now on.
    fn bury(&mut self, name: SocketAddr) {
        self.failures = self.failures.max(failures(name)) + 1;
    }

    /// Notes that an authentic packet came [`Elsewhere`](Arrival::Elsewhere), along `path`.
    pub fn moved(&mut self, quic: &mut Connection, path: &Path, now: Instant) {
        let way = self.elsewhere(path);
        if let Some(left) = self.other
            && left.name != way.name
            && quic.is_path_validated(left.local, left.name) != Ok(true)
        {
            self.bury(left.name); // its answer would not be waited for
        }
        self.other = Some(way);
        (self.has_moved, self.ask_others) = (true, true);
        self.settle(quic, now);
    }

    /// Finds out whether QUIC still, or now, uses a path that it has not validated, and has that probed again
    /// if the last probe should have been answered by now. To be called after packets while the client [is
    /// moving](Self::is_moving), and after timers if it [ever was](Self::has_moved).
    pub fn settle(&mut self, quic: &mut Connection, now: Instant) {
        self.follow(quic);
        let in_use = quic.path_stats().find(|path| path.active).map(|path| path.peer_addr);
        let to = in_use.filter(|name| *name != self.current.name);
        let to = to.and_then(|name| self.ways().find(|way| way.name == name));
        self.moving = to.map(|to| match self.moving {
            Some(moving) if moving.to.name == to.name && moving.probe > now => Moving { to, ..moving },
            before => {
                if before.is_some_and(|moving| moving.to.name == to.name) {
                    let _ = quic.probe_path(to.local, to.name);
                }
                Moving { to, probe: now + PROBE_AGAIN }
            }
        });
    }

    /// Has the end of a connection whose client is at the end of `path`, where it has not proven to be, go there:
    /// by the path that QUIC uses, so that the good-bye is all that is sent.
    pub fn end_at(&mut self, path: &Path) {
        self.current.path = *path;
        (self.other, self.moving) = (None, None);
    }

    /// Lets QUIC probe and follow a client that moved.
    fn follow(&mut self, quic: &mut Connection) {
        while let Some(event) = quic.path_event_next() {
            match event {
                // An error means that the client has no spare ID for it, yet: its packets are answered all
                // the same.
                PathEvent::New(local, name) => drop(quic.probe_path(local, name)),
                PathEvent::PeerMigrated(local, name) => {
                    if let Some((local, left)) = self.migrate(local, name) {
                        // An error means that it is closing.
                        let _ = quic.send_ack_eliciting_on_path(local, left);
                    }
                }
                PathEvent::FailedValidation(_, name) => self.fail(name),
                _ => {}
            }
        }
    }

    /// Notes that QUIC uses the path of this name: where the client went, or, when another failed, any that was
    /// validated once. Returns the path that it used before.
    fn migrate(&mut self, local: SocketAddr, name: SocketAddr) -> Option<(SocketAddr, SocketAddr)> {
        let left = (self.current.local, self.current.name);
        match self.ways().find(|way| way.name == name) {
            Some(way) => self.current = way,
            None => (self.current.local, self.current.name) = (local, name),
        }
        self.other = self.other.filter(|other| other.name != name);
        self.ask_others |= name != left.1;
        (name != left.1).then_some(left)
    }

    /// Notes that QUIC gave up the path of this name. What was sent by it can be asked about from now on, since
    /// its name is never used again. If it is the one in use, [`migrate`](Self::migrate) is told next what QUIC
    /// uses instead.
    fn fail(&mut self, name: SocketAddr) {
        self.bury(name);
        self.moving = self.moving.filter(|moving| moving.to.name != name);
        if let Some(failed) = self.other.take_if(|other| other.name == name) {
            self.other = Some(self.elsewhere(&failed.path));
        }
    }

    /// The path that QUIC is to send by, the server's address first; `None`: there has been only one.
    pub fn in_use(&self) -> Option<(SocketAddr, SocketAddr)> {
        let Way { local, name, .. } = self.moving.map_or(self.current, |moving| moving.to);
        self.has_moved.then_some((local, name))
    }

    /// True if packets by the path in use must be no larger than [`PROBE_SIZE`], and one at a time, or nothing
    /// would be left to ask again with.
    pub fn is_cramped(&self, quic: &Connection) -> bool {
        let Some(Moving { to, .. }) = self.moving else { return false };
        let used = quic.path_stats().find(|path| (path.local_addr, path.peer_addr) == (to.local, to.name));
        // quiche does not export the type. From its fourth state on the address is proven, and what is asked is
        // whether full packets get there.
        used.is_some_and(|path| {
            let left = (3 * path.recv_bytes).saturating_sub(path.sent_bytes);
            (path.validation_state as u8) < 3 && left < MAX_TX_PAYLOAD as u64
        })
    }

    /// Paths that QUIC may have something to send by, besides the one in use: answers to a client that looks
    /// for a better path, and questions about what was under way on one that it left. `timer`: one of QUIC's
    /// fired.
    pub fn others(&mut self, quic: &Connection, timer: bool) -> Vec<(SocketAddr, SocketAddr)> {
        if std::mem::take(&mut self.ask_others) || timer && self.has_moved {
            let others = quic.path_stats().filter(|path| !path.active);
            others.map(|path| (path.local_addr, path.peer_addr)).collect()
        } else {
            Vec::new()
        }
    }

    /// Where packets of the path of this name go: those of a left one to where the client is.
    pub fn to(&self, name: SocketAddr) -> Path {
        self.ways().find(|way| way.name == name).unwrap_or(self.current).path
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

    /// When a client that is moving is to be probed again.
    pub fn probe_due(&self) -> Option<Instant> {
        self.moving.map(|moving| moving.probe)
    }

    /// True if the client was ever heard from another address.
    pub fn has_moved(&self) -> bool {
        self.has_moved
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
        let mut paths = Paths::new(&path(1));
        paths.other = Some(paths.elsewhere(&path(2)));
        assert_eq!((paths.to(path(1).peer), paths.to(path(2).peer)), (path(1), path(2)));
        paths.migrate(path(2).local, path(2).peer);
        assert_eq!(*paths.current(), path(2));
        assert_eq!(paths.to(path(1).peer), path(2), "where it is now");
        paths.other = Some(paths.elsewhere(&path(3)));
        assert_eq!(paths.to(path(3).peer), path(3));
        assert_eq!(paths.to(path(9).peer), path(2), "unknown peers go the way in use");
    }

    #[test]
    fn a_path_that_quic_gave_up_gets_another_name_and_attempt() {
        let mut paths = Paths::new(&path(1));
        let mut names = vec![paths.elsewhere(&path(2)).name];
        for _ in 0..2 {
            paths.other = Some(paths.elsewhere(&path(2)));
            paths.fail(names[names.len() - 1]);
            let name = paths.elsewhere(&path(2)).name;
            assert!(!names.contains(&name), "{name}");
            assert_eq!(paths.to(name), path(2), "answers go to the real address");
            names.push(name);
        }
        assert_eq!(paths.current.name, path(1).peer, "the one in use keeps its name");
        // Somewhere else, and back: none of the names that failed.
        paths.other = Some(paths.elsewhere(&path(3)));
        assert!(!names[..2].contains(&paths.elsewhere(&path(2)).name));
        paths.other = Some(paths.elsewhere(&path(2)));
        assert_eq!(paths.migrate(path(2).local, names[2]), Some((path(1).local, path(1).peer)));
        assert_eq!((*paths.current(), paths.to(names[2])), (path(2), path(2)));
    }

    #[test]
    fn a_path_in_use_that_quic_gave_up_goes_by_the_name_of_the_one_it_fell_back_to() {
        let mut paths = Paths::new(&path(1));
        for peer in [2, 3] {
            paths.other = Some(paths.elsewhere(&path(peer)));
            paths.migrate(path(peer).local, path(peer).peer);
        }
        paths.fail(path(3).peer);
        assert_eq!(paths.migrate(path(1).local, path(1).peer), Some((path(3).local, path(3).peer)));
        assert_eq!((*paths.current(), paths.current.name), (path(3), path(1).peer));
        assert_eq!(paths.to(path(1).peer), path(3), "that is where the client is");
        // The client is back where that name comes from: it has to prove it.
        assert_ne!(paths.elsewhere(&path(1)).name, path(1).peer);
    }

    #[test]
    fn another_address_of_the_servers_is_another_path() {
        let (home, mut other) = (path(1), path(1));
        other.local.set_port(443);
        let mut paths = Paths::new(&home);
        let mut names = vec![paths.current.name];
        for _ in 0..3 {
            let way = paths.elsewhere(&other);
            assert!(!names.contains(&way.name), "{}", way.name);
            names.push(way.name);
            paths.other = Some(way);
            paths.fail(way.name);
        }
        let way = paths.elsewhere(&other);
        paths.migrate(way.local, way.name);
        assert_eq!((*paths.current(), paths.current.arrival().to), (other, other.local));
        assert_ne!(paths.elsewhere(&home).name, way.name, "and back");
        // QUIC gives it up: the client is still there, and is the one from home to QUIC.
        paths.fail(way.name);
        paths.migrate(home.local, home.peer);
        assert_eq!((*paths.current(), paths.current.arrival().to), (other, home.local));
    }

    #[test]
    fn a_path_that_failed_is_not_called_like_the_one_in_use() {
        let (home, mut other) = (path(1), path(1));
        other.local.set_port(443);
        let mut paths = Paths::new(&home);
        let way = paths.elsewhere(&other);
        paths.other = Some(way);
        paths.migrate(way.local, way.name);
        let back = paths.elsewhere(&home);
        paths.other = Some(back);
        paths.fail(back.name);
        let again = paths.other.unwrap().name;
        assert!(again != way.name && again != back.name, "{again}");
        assert_eq!((paths.to(again), paths.to(way.name)), (home, other));
    }
}
