//! One client's life: wait, connect, paint on schedule, read what comes, end when told.
//!
//! A client is one task on its thread's runtime. All it waits for (due paints, frames, datagrams, tile
//! streams, signals) is in one `select!`, so its state needs no lock. What only watchers do is in
//! [`crate::watcher`]; a client without one has asked for no diffs, and its connection gets none of their
//! buffers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use canvas::codec::control::{ClientFrame, PaintAck};
use canvas::codec::datagram::ClientDatagram;
use canvas::codec::{Entry, Pixel, Pixels};
use canvas::codes::CloseCode;
use quinn::{Connection, Endpoint, SendDatagramError};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::endpoint::Role;
use crate::loss::Loss;
use crate::newcomer::come_and_go;
use crate::schedule::Schedule;
use crate::session::{Answer, CanvasShape, Session, close, hello};
use crate::shared::{Phase, Shared};
use crate::stats::{Due, ThreadStats};
use crate::watcher::{Wake, Watcher};

/// Paints of one client in a row. A client that fell behind catches up in such bursts, and lets others have
/// a turn between them; larger makes the others late too, smaller costs more turns.
const MAX_BURST: usize = 32;

/// How long after a NOTICE the close that it announces may take: the half second that servers leave for the
/// NOTICE to arrive, and room for a busy machine. A close is one packet, which nobody repeats; where it is
/// lost, the NOTICE has said all there is to say. Longer keeps such clients waiting; shorter takes a late
/// close for a lost one.
const CLOSE_AFTER_NOTICE: Duration = Duration::from_secs(2);

/// Bytes of a PAINT datagram of one pixel.
const PAINT_DATAGRAM: usize = 11;

/// Runs client `index` from its start to its end on the thread of `thread`'s number; what became of it is
/// in the statistics.
pub async fn live(shared: Arc<Shared>, thread: usize, endpoint: Endpoint, index: usize) {
    let settings = &shared.settings;
    let stats = &shared.stats.threads[thread];
    let mut rng = SmallRng::seed_from_u64(settings.seed.wrapping_add(index as u64));
    let due = Instant::now() + rng.random_range(Duration::ZERO..=settings.max_conn_jitter);
    if index >= settings.clients - settings.newcomers {
        return come_and_go(&shared, stats, &endpoint, index, due, rng).await;
    }
    let mut phase = shared.phase.clone();
    tokio::select! {
        () = sleep_until(due) => {}
        // Told to stop before it came up, here or below: neither a connection nor a failure.
        _ = phase.wait_for(|&phase| phase != Phase::Load) => return shared.decided(),
    }
    let opened = tokio::select! {
        opened = open(&shared, &endpoint, index) => opened,
        _ = phase.wait_for(|&phase| phase != Phase::Load) => return shared.decided(),
    };
    let session = match opened {
        Ok(session) => session,
        Err(loss) => {
            shared.stats.failed(loss.as_str());
            return shared.decided();
        }
    };
    if settings.newcomers == 0 {
        stats.handshake.record(session.established - due);
    }
    shared.stats.connected();
    stats.count.watchers.add(u64::from(index < settings.watchers));
    shared.decided();
    let mut client = Client::new(&shared, stats, index, session, rng);
    let end = client.run(&mut phase).await;
    // What nobody will acknowledge any more must not be waited for.
    stats.count.frames_settled.add(client.unacknowledged.len() as u64);
    let lost_watcher = index < settings.watchers && end.is_err();
    if let Some(watcher) = &client.watcher {
        watcher.finish(stats);
    }
    let connection = client.session.connection;
    shared.stats.disconnected();
    match end {
        Ok(()) => close(&connection, CloseCode::Ok),
        Err(loss) => {
            // If it is the connection that was lost, this does nothing; else, without a NOTICE that it would
            // be, the server broke the protocol.
            let announced = client.announced.is_some();
            close(&connection, if announced { CloseCode::Ok } else { CloseCode::ProtocolViolation });
            shared.stats.failed(loss.as_str());
            if lost_watcher {
                shared.note_fault(|| format!("watcher {index} lost its connection: {loss}"));
            }
        }
    }
}

/// Connects client `index`, in its role, up to the WELCOME.
///
/// # Errors
/// Whatever stood in the way.
pub async fn open(shared: &Shared, endpoint: &Endpoint, index: usize) -> Result<Session, Loss> {
    let settings = &shared.settings;
    let role = settings.role(index);
    let server = (shared.server, settings.target.server_name());
    let hello = hello(Watcher::hello_flags(role), &settings.token);
    let deadline = Instant::now() + settings.connect_timeout;
    let session = Session::open(endpoint, shared.configs.of(role), server, hello, deadline).await?;
    if session.shape != shared.shape {
        close(&session.connection, CloseCode::ProtocolViolation);
        return Err(Loss::protocol("WELCOME differs between connections"));
    }
    Ok(session)
}

struct Client<'a> {
    shared: &'a Shared,
    stats: &'a ThreadStats,
    index: usize,
    session: Session,
    rng: SmallRng,
    schedule: Schedule,
    next_seq: u32,
    /// PAINT frames of one pixel each, with when they were due, in the order sent, which is about that of
    /// their acknowledgements.
    unacknowledged: VecDeque<(u32, Pixel, Due)>,
    /// In a closed loop: a paint's answer has not come.
    waiting: bool,
    /// The cause that a NOTICE gave for the end of the connection, and when not to wait for that any longer.
    announced: Option<(Loss, Instant)>,
    /// Boxed: most clients have none, and it is large.
    watcher: Option<Box<Watcher>>,
}

/// What a client woke up for.
enum Event {
    Phase,
    Due,
    Control,
    Sent,
    Datagram(Bytes),
    Watcher(Wake),
}

impl<'a> Client<'a> {
    fn new(
        shared: &'a Shared,
        stats: &'a ThreadStats,
        index: usize,
        session: Session,
        mut rng: SmallRng,
    ) -> Self {
        let settings = &shared.settings;
        let now = Instant::now();
        let schedule = Schedule::start(now, settings.min_pixel_wait, settings.max_pixel_wait, &mut rng);
        let role = settings.role(index);
        let watcher = (role != Role::Painter)
            .then(|| Box::new(Watcher::new(index, role, shared.shape.geometry, now, shared.round.clone())));
        Self {
            shared,
            stats,
            index,
            session,
            rng,
            schedule,
            next_seq: 0,
            unacknowledged: VecDeque::new(),
            waiting: false,
            announced: None,
            watcher,
        }
    }
}

impl Client<'_> {
    /// Lives until told to close, or until the connection fails.
    async fn run(&mut self, phase: &mut watch::Receiver<Phase>) -> Result<(), Loss> {
        let due = sleep_until(self.schedule.due());
        tokio::pin!(due);
        let mut painting = self.index < self.shared.settings.painters;
        let mut told_to_settle = false;
        loop {
            let now_phase = *phase.borrow_and_update();
            if now_phase == Phase::Close {
                return Ok(());
            }
            if now_phase == Phase::Quiet && !told_to_settle {
                (painting, told_to_settle) = (false, true);
                if let Some(watcher) = &mut self.watcher {
                    watcher.settle(&mut self.session.outbox);
                }
            }
            if self.waiting && self.answered() {
                self.waiting = false;
                self.schedule.restart(Instant::now(), &mut self.rng);
                due.as_mut().reset(self.schedule.due());
            }
            let may_paint = painting && !self.waiting;
            let Session { connection, inbox, outbox, .. } = &mut self.session;
            let sending = outbox.pending();
            let event = tokio::select! {
                changed = phase.changed() => match changed {
                    Ok(()) => Event::Phase,
                    // The coordinator is gone: so is the run.
                    Err(_) => return Ok(()),
                },
                () = &mut due, if may_paint => Event::Due,
                received = inbox.receive() => { received?; Event::Control }
                sent = outbox.flush(), if sending => { sent?; Event::Sent }
                datagram = connection.read_datagram() => Event::Datagram(datagram?),
                wake = watch(&mut self.watcher, connection) => Event::Watcher(wake?),
                loss = overdue(&self.announced) => return Err(loss),
            };
            match event {
                Event::Phase | Event::Sent => {}
                Event::Due => {
                    self.paint_what_is_due()?;
                    due.as_mut().reset(self.schedule.due());
                }
                Event::Control => {
                    while let Some(answer) = self.session.inbox.next()? {
                        self.answer(answer)?;
                    }
                }
                Event::Datagram(payload) => self.datagram(&payload)?,
                Event::Watcher(wake) => {
                    if let Some(watcher) = &mut self.watcher {
                        watcher.handle(wake, self.shared, self.stats, &mut self.session.outbox);
                    }
                }
            }
        }
    }

    fn answer(&mut self, answer: Answer) -> Result<(), Loss> {
        match (answer, &mut self.watcher) {
            (Answer::PaintAck(ack), _) => self.acknowledged(ack),
            (Answer::Datagram(payload), _) => self.datagram(&payload),
            (Answer::Pong(number), Some(watcher)) => {
                watcher.pong(number, self.stats, &mut self.session.outbox)
            }
            (Answer::Notice(loss), _) => {
                self.announced.get_or_insert((loss, Instant::now() + CLOSE_AFTER_NOTICE));
                Ok(())
            }
            (Answer::Pong(_), None) => Err(Loss::protocol("PONG without PING")),
            (Answer::Stats(_), _) => Err(Loss::protocol("STATS unasked")),
            (Answer::Welcome(_), _) => Err(Loss::protocol("second WELCOME")),
        }
    }

    fn datagram(&mut self, payload: &[u8]) -> Result<(), Loss> {
        match &mut self.watcher {
            Some(watcher) => watcher.datagram(payload, self.stats, &mut self.session.outbox),
            None => Err(Loss::protocol("datagram to a client that asked for no diffs")),
        }
    }

    /// Closed loop: whether the answers to all paints have come, a watcher's diffs included.
    fn answered(&self) -> bool {
        self.unacknowledged.is_empty() && self.watcher.as_ref().is_none_or(|watcher| watcher.all_confirmed())
    }

    /// Paints all that is due by now, up to a burst; in a closed loop one pixel.
    fn paint_what_is_due(&mut self) -> Result<(), Loss> {
        let now = Instant::now();
        for _ in 0..MAX_BURST {
            let due = self.schedule.due();
            if due > now {
                break;
            }
            self.stats.was_late(due, now - due);
            if self.shared.settings.closed_loop {
                self.waiting = true;
                return self.paint(now);
            }
            self.schedule.advance(&mut self.rng);
            self.paint(due)?;
        }
        Ok(())
    }

    /// Paints a pixel, on account of what was due at `due`.
    fn paint(&mut self, due: Instant) -> Result<(), Loss> {
        let pixel = match &self.watcher {
            Some(watcher) => watcher.choose(&self.shared.shape, &mut self.rng),
            None => random_pixel(&self.shared.shape, &mut self.rng),
        };
        let wire = [pixel.to_wire()];
        let (seq, pixels) = (self.next_seq, Pixels::new(&wire));
        let stats = self.stats;
        let due = stats.due(due);
        if self.rng.random_bool(self.shared.settings.frame_share) {
            if self.session.outbox.full() {
                stats.add(due, |count| &count.pixels_unsent, 1);
                return Ok(());
            }
            if let Some(witness) = &self.shared.witness {
                witness.sent(pixel);
            }
            self.session.outbox.queue(&ClientFrame::Paint { seq, flags: 0, pixels });
            self.unacknowledged.push_back((seq, pixel, due));
            stats.count.frames_sent.add(1);
            stats.add(due, |count| &count.pixels_sent_frame, 1);
        } else {
            let mut payload = Vec::with_capacity(PAINT_DATAGRAM);
            ClientDatagram::Paint { seq, pixels }.encode(&mut payload);
            // With too little space quinn would drop the oldest datagram that waits, and not say so.
            if self.session.connection.datagram_send_buffer_space() < payload.len() {
                stats.add(due, |count| &count.pixels_unsent, 1);
                return Ok(());
            }
            if let Some(witness) = &self.shared.witness {
                witness.contended(pixel);
            }
            self.session.connection.send_datagram(payload.into()).map_err(|error| match error {
                SendDatagramError::ConnectionLost(error) => Loss::from(error),
                other => Loss::protocol(other),
            })?;
            stats.add(due, |count| &count.pixels_sent_datagram, 1);
        }
        self.next_seq = seq.wrapping_add(1);
        if let Some(watcher) = &mut self.watcher {
            watcher.painted(pixel, due, self.stats);
        }
        Ok(())
    }

    fn acknowledged(&mut self, ack: PaintAck) -> Result<(), Loss> {
        let place = self.unacknowledged.iter().position(|&(seq, ..)| seq == ack.seq);
        let Some((_, pixel, due)) = place.and_then(|place| self.unacknowledged.remove(place)) else {
            return Err(self.fault("PAINT_ACK of no outstanding PAINT", ack));
        };
        self.stats.count.frames_settled.add(1);
        match (ack.applied, ack.rejected) {
            (1, 0) => {
                self.stats.add(due, |count| &count.pixels_acked, 1);
                if let Some(witness) = &self.shared.witness {
                    witness.acknowledged(pixel);
                }
            }
            (0, 1) => {
                self.stats.add(due, |count| &count.pixels_rejected, 1);
                if let Some(watcher) = &mut self.watcher {
                    watcher.rejected(pixel, self.stats);
                }
            }
            _ => return Err(self.fault("PAINT_ACK that does not count one pixel of one", ack)),
        }
        Ok(())
    }

    /// A wrong acknowledgement ends the connection, and the hope to verify.
    fn fault(&self, what: &'static str, ack: PaintAck) -> Loss {
        let PaintAck { seq, applied, rejected, .. } = ack;
        self.shared.note_fault(|| {
            format!("client {}: {what}: seq {seq}, {applied} applied, {rejected} rejected", self.index)
        });
        Loss::protocol(what)
    }
}

/// Any pixel of the canvas in any colour.
pub fn random_pixel(shape: &CanvasShape, rng: &mut impl Rng) -> Pixel {
    Pixel {
        x: rng.random_range(0..shape.geometry.width()),
        y: rng.random_range(0..shape.geometry.height()),
        // There are at most 256 colours.
        colour: rng.random_range(0..shape.colours) as u8,
    }
}

/// Waits until an announced close is overdue, and returns its cause; forever if none is announced.
async fn overdue(announced: &Option<(Loss, Instant)>) -> Loss {
    match announced {
        Some((loss, deadline)) => {
            sleep_until(*deadline).await;
            loss.clone()
        }
        None => std::future::pending().await,
    }
}

/// Waits for what only a watcher waits for; forever if there is none.
async fn watch(watcher: &mut Option<Box<Watcher>>, connection: &Connection) -> Result<Wake, Loss> {
    match watcher {
        Some(watcher) => watcher.wait(connection).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of a client's task. There are 15,000 in a process, of which each is to cost 40 KB with all that
    /// QUIC and TLS keep: a buffer in a future would be held by all of them, all the time.
    const TASK: usize = 4 << 10;

    #[test]
    fn a_client_is_a_small_task() {
        assert!(future_size(live) <= TASK, "{} bytes", future_size(live));
    }

    fn future_size<A, B, C, D, F>(_: impl Fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }
}
