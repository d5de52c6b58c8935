//! Rings in memory, for tests that play the kernel; and an ordinary socket in memory beside them.
//!
//! The model is stricter than the kernel: it panics when it is given a frame that it has already, which the
//! real one would corrupt packets over.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use super::rings::{Descriptor, Layout, RingStatistics, Rings, Wake};
use super::socket::{FRAME_SIZE, HEADROOM};
use crate::net::{IoCounters, PacketIo, Path, Sent, Sink};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModelDescriptor {
    pub address: usize,
    pub length: usize,
}

impl Descriptor for ModelDescriptor {
    fn address(&self) -> usize {
        self.address
    }

    fn length(&self) -> usize {
        self.length
    }
}

/// Everything that the kernel has of one queue.
#[derive(Debug)]
pub struct ModelRings {
    memory: Vec<u8>,
    frames: u32,
    pub fill: VecDeque<u32>,
    /// Taken from the fill ring by the NIC.
    pub receiving: VecDeque<u32>,
    pub receive: VecDeque<ModelDescriptor>,
    pub transmit: VecDeque<(u32, usize)>,
    /// Taken from the transmit ring by the NIC.
    pub transmitting: VecDeque<u32>,
    pub complete: VecDeque<ModelDescriptor>,
    /// Every frame that the NIC has sent.
    pub wire: Vec<Vec<u8>>,
    /// Accept frames that the kernel has already: for tests in which it returns frames that it keeps.
    pub trusting: bool,
    /// Find no room in the fill ring, in the transmit ring.
    pub full: (bool, bool),
    /// Ask for wake-ups, of the fill ring, of the transmit ring.
    pub need_wakeup: (bool, bool),
    /// Wake-ups that came: receive, transmit.
    pub woken: (u32, u32),
}

impl ModelRings {
    pub fn new(frames: u32) -> Self {
        Self {
            memory: vec![0; (frames * FRAME_SIZE) as usize],
            frames,
            fill: VecDeque::new(),
            receiving: VecDeque::new(),
            receive: VecDeque::new(),
            transmit: VecDeque::new(),
            transmitting: VecDeque::new(),
            complete: VecDeque::new(),
            wire: Vec::new(),
            trusting: false,
            full: (false, false),
            need_wakeup: (false, true),
            woken: (0, 0),
        }
    }

    fn start(frame: u32) -> usize {
        (frame * FRAME_SIZE + HEADROOM) as usize
    }

    fn frame_of(address: usize) -> u32 {
        address as u32 / FRAME_SIZE
    }

    /// All frames that the kernel has, wherever.
    fn held(&self) -> impl Iterator<Item = u32> + '_ {
        let descriptors = self.receive.iter().chain(&self.complete).map(|d| Self::frame_of(d.address));
        let frames = self.fill.iter().chain(&self.receiving).chain(&self.transmitting).copied();
        frames.chain(self.transmit.iter().map(|&(frame, _)| frame)).chain(descriptors)
    }

    fn accept(&self, frame: u32) {
        assert!(frame < self.frames, "frame {frame} of {}", self.frames);
        assert!(
            self.trusting || !self.held().any(|held| held == frame),
            "frame {frame} was given to the kernel twice"
        );
    }

    /// The NIC takes up to `count` frames off the fill ring.
    pub fn nic_takes_fill(&mut self, count: usize) {
        let count = count.min(self.fill.len());
        self.receiving.extend(self.fill.drain(..count));
    }

    /// A packet arrives. `false`: dropped, for want of a frame to put it into.
    pub fn nic_receives(&mut self, packet: &[u8]) -> bool {
        self.nic_takes_fill(usize::from(self.receiving.is_empty()));
        let Some(frame) = self.receiving.pop_front() else { return false };
        let address = Self::start(frame);
        self.memory[address..address + packet.len()].copy_from_slice(packet);
        self.receive.push_back(ModelDescriptor { address, length: packet.len() });
        true
    }

    /// The NIC sends up to `count` packets.
    pub fn nic_sends(&mut self, count: usize) {
        for _ in 0..count {
            let Some((frame, length)) = self.transmit.pop_front() else { return };
            let start = Self::start(frame);
            self.wire.push(self.memory[start..start + length].to_vec());
            // Whatever the worker still reads or writes there is wrong from now on, and shows.
            self.memory[start..start + length].fill(0xdd);
            self.transmitting.push_back(frame);
        }
    }

    /// The NIC is done with up to `count` packets; the last it took come first, as NICs may.
    pub fn nic_completes(&mut self, count: usize) {
        for _ in 0..count {
            let Some(frame) = self.transmitting.pop_back() else { return };
            self.complete.push_back(ModelDescriptor { address: Self::start(frame), length: 0 });
        }
    }
}

impl Rings for ModelRings {
    type Descriptor = ModelDescriptor;

    fn layout(&self) -> Layout {
        Layout { frames: self.frames, frame_size: FRAME_SIZE as usize }
    }

    unsafe fn fill(&mut self, frames: &[u32]) -> bool {
        if self.full.0 {
            return false;
        }
        for &frame in frames {
            self.accept(frame);
            self.fill.push_back(frame);
        }
        true
    }

    fn receive(&mut self, out: &mut [ModelDescriptor]) -> usize {
        let count = out.len().min(self.receive.len());
        out.iter_mut().zip(self.receive.drain(..count)).for_each(|(to, from)| *to = from);
        count
    }

    unsafe fn transmit(&mut self, packets: &[(u32, usize)]) -> bool {
        if self.full.1 {
            return false;
        }
        for &(frame, length) in packets {
            self.accept(frame);
            assert!(length <= (FRAME_SIZE - HEADROOM) as usize);
            self.transmit.push_back((frame, length));
        }
        true
    }

    fn complete(&mut self, out: &mut [ModelDescriptor]) -> usize {
        let count = out.len().min(self.complete.len());
        out.iter_mut().zip(self.complete.drain(..count)).for_each(|(to, from)| *to = from);
        count
    }

    fn backlog(&mut self) -> (u32, u32) {
        (self.receive.len() as u32, self.complete.len() as u32)
    }

    unsafe fn packet(&mut self, descriptor: &ModelDescriptor) -> &mut [u8] {
        &mut self.memory[descriptor.address..descriptor.address + descriptor.length]
    }

    unsafe fn room(&mut self, frame: u32) -> &mut [u8] {
        &mut self.memory[Self::start(frame)..((frame + 1) * FRAME_SIZE) as usize]
    }

    fn fill_needs_wakeup(&self) -> bool {
        self.need_wakeup.0
    }

    fn transmit_needs_wakeup(&self) -> bool {
        self.need_wakeup.1
    }

    fn wake_receive(&mut self) {
        self.woken.0 += 1;
    }

    fn wake_transmit(&mut self) -> Wake {
        self.woken.1 += 1;
        self.nic_sends(32);
        if self.transmit.is_empty() { Wake::Done } else { Wake::Again }
    }

    fn is_gone(&self) -> bool {
        false
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn statistics(&self) -> io::Result<RingStatistics> {
        Ok(RingStatistics { dropped: 1, fill_ring_empty: 2, invalid: 4 })
    }
}

/// An ordinary socket in memory.
#[derive(Debug, Default)]
pub struct ModelSocket {
    pub inbox: VecDeque<(Path, Vec<u8>)>,
    pub outbox: Vec<(Path, Vec<u8>)>,
    /// Has no room to send.
    pub full: bool,
    pub served: u32,
}

impl PacketIo for ModelSocket {
    fn receive(&mut self, budget: usize, sink: &mut impl Sink) -> usize {
        let count = budget.min(self.inbox.len());
        self.inbox.drain(..count).for_each(|(path, mut payload)| sink.take(&path, &mut payload));
        count
    }

    fn send(&mut self, fill: &mut impl FnMut(&mut [u8]) -> Option<(usize, Path)>) -> Sent {
        if self.full {
            return Sent { packets: 0, blocked: true };
        }
        let mut sent = Sent::default();
        let mut room = [0; crate::net::MAX_TX_PAYLOAD];
        while let Some((length, path)) = fill(&mut room) {
            self.outbox.push((path, room[..length].to_vec()));
            sent.packets += 1;
        }
        sent
    }

    fn flush(&mut self, _now: Instant) {}

    fn serve(&mut self, _now: Instant) {
        self.served += 1;
    }

    fn wait(&mut self, _timeout: Duration, _wake: BorrowedFd<'_>) -> io::Result<()> {
        Ok(())
    }

    fn counters(&mut self) -> IoCounters {
        IoCounters { rx_packets: 10, tx_packets: self.outbox.len() as u64, ..IoCounters::default() }
    }
}
