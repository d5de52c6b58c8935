//! One connection of `peer-quiche`.

use std::collections::VecDeque;
use std::time::Instant;

use canvas::codes::CloseCode;

use super::PACKET;
use crate::session::{Answers, Board, Packed, Session};
use crate::udp::{MAX_SEGMENTS, TxBatch};

/// The control stream: the client's first bidirectional one.
const CONTROL_STREAM: u64 = 0;

/// The server's first unidirectional stream.
const FIRST_TILE_STREAM: u64 = 3;

/// See the [module](self).
pub(super) struct Conn {
    pub(super) quic: quiche::Connection,
    /// The connection ID that the client chose for its first packets.
    pub(super) first_id: Vec<u8>,
    /// Waits for its turn to be looked at.
    pub(super) touched: bool,
    /// When the heap of timers has it; `None`: it has not.
    pub(super) timer: Option<Instant>,
    session: Session,
    established: bool,
    control_out: Vec<u8>,
    streams: VecDeque<(u64, Vec<u8>, usize)>,
    next_stream: u64,
}

impl Conn {
    pub(super) fn new(quic: quiche::Connection, first_id: Vec<u8>, board: &Board) -> Self {
        Self {
            quic,
            first_id,
            touched: false,
            timer: None,
            session: Session::new(board),
            established: false,
            control_out: Vec::new(),
            streams: VecDeque::new(),
            next_stream: FIRST_TILE_STREAM,
        }
    }

    /// Takes the client's datagrams.
    pub(super) fn take_datagrams(&mut self, board: &mut Board, scratch: &mut [u8]) {
        while let Ok(length) = self.quic.dgram_recv(scratch) {
            self.session.on_datagram(&scratch[..length], board);
        }
    }

    /// Takes what the client sent on its control stream, and answers.
    pub(super) fn work(&mut self, board: &mut Board, scratch: &mut [u8]) {
        if !self.established {
            if !self.quic.is_established() {
                return;
            }
            self.established = true;
            board.counts.handshakes += 1;
        }
        if self.quic.stream_readable(CONTROL_STREAM) {
            let mut answers = Answers::default();
            while let Ok((length, _)) = self.quic.stream_recv(CONTROL_STREAM, scratch) {
                if let Err(code) = self.session.on_control(&scratch[..length], board, &mut answers) {
                    self.close(code);
                    break;
                }
            }
            self.control_out.append(&mut answers.control);
            for stream in answers.streams {
                self.streams.push_back((self.next_stream, stream, 0));
                self.next_stream += 4;
            }
        }
        self.push_streams();
    }

    /// Hands to quiche what it has room for.
    fn push_streams(&mut self) {
        if !self.control_out.is_empty()
            && let Ok(taken) = self.quic.stream_send(CONTROL_STREAM, &self.control_out, false)
        {
            self.control_out.drain(..taken);
        }
        while let Some((id, bytes, sent)) = self.streams.front_mut() {
            match self.quic.stream_send(*id, &bytes[*sent..], true) {
                Ok(taken) => *sent += taken,
                Err(quiche::Error::Done | quiche::Error::StreamLimit) => return,
                // The client does not want it.
                Err(_) => *sent = bytes.len(),
            }
            if *sent < bytes.len() {
                return;
            }
            self.streams.pop_front();
        }
    }

    fn close(&mut self, code: CloseCode) {
        // It fails when it is closed already.
        let _ = self.quic.close(true, code.code().into(), code.name().as_bytes());
    }

    pub(super) fn is_subscriber(&self) -> bool {
        self.session.is_subscriber()
    }

    pub(super) fn view(&self) -> canvas::TileRect {
        self.session.view()
    }

    /// Queues a broadcast. What the connection could not send since the last one is stale, and dropped.
    pub(super) fn broadcast(&mut self, packed: &Packed, board: &mut Board) {
        board.counts.diffs_refused += self.quic.dgram_send_queue_len() as u64;
        self.quic.dgram_purge_outgoing(|_| true);
        for payload in &packed.versions {
            // As with diffs: without room it is lost, as datagrams are.
            let _ = self.quic.dgram_send(payload);
        }
        for payload in &packed.diffs {
            match self.quic.dgram_send(payload) {
                Ok(()) => board.counts.diffs += 1,
                Err(_) => board.counts.diffs_refused += 1,
            }
        }
    }

    /// Puts what quiche wants to send into `batch`: trains of packets of one length to one address.
    pub(super) fn send(&mut self, batch: &mut TxBatch, mut flush: impl FnMut(&mut TxBatch)) {
        loop {
            if batch.is_full(MAX_SEGMENTS * PACKET) {
                flush(batch);
            }
            let room = batch.room();
            let (mut length, mut segment, mut packets, mut to) = (0, 0, 0, None);
            let mut stranger = None;
            while packets < MAX_SEGMENTS
                && let Ok((written, info)) = self.quic.send(&mut room[length..length + PACKET])
            {
                if to.is_none() {
                    (segment, to) = (written, Some(info.to));
                }
                // Longer than the train's packets, or for another address: a message of its own.
                if written > segment || to != Some(info.to) {
                    stranger = Some((written, info.to));
                    break;
                }
                packets += 1;
                length += written;
                if written < segment {
                    break;
                }
            }
            let Some(to) = to else { return };
            batch.push(length, segment, Some(to));
            if let Some((length, to)) = stranger {
                batch.push(length, length, Some(to));
            }
        }
    }
}
