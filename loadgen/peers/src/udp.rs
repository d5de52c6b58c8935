//! UDP in batches: `recvmmsg` with GRO, `sendmmsg` with GSO.
//!
//! Used by both ends. Each batch owns its buffers, its names and its control data; the headers that point the
//! kernel at them are written anew for each call, so that no pointer outlives the call that it was made for.
//! One thread uses a batch.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;
use std::{mem, ptr};

use socket2::{SockAddr, Socket};

/// Messages in one system call. Fewer make the call, about 0.2 us, a larger part of each packet; more gain
/// nothing and crowd the caches.
pub const BATCH: usize = 64;

/// Bytes of one receive buffer: what GRO merges at most. Smaller cuts merged packets off.
const RX_BUFFER: usize = 1 << 16;

/// Bytes from one receive buffer to the next: not a power of two, else the packets of a batch would all fall
/// into the same few sets of the caches, and push each other out.
const RX_STRIDE: usize = RX_BUFFER + 65 * 64;

/// Bytes of payload that a [`TxBatch`] gathers: [`BATCH`] trains of 16 KB. When it is full it is sent.
const TX_BYTES: usize = 1 << 20;

/// Packets that one GSO send may have: UDP_MAX_SEGMENTS of kernels before 6.8; more is EINVAL there.
pub const MAX_SEGMENTS: usize = 64;

/// Bytes of the control data of a message: one `int` (GRO) or one `u16` (GSO), with its header.
const CONTROL: usize = 24;

/// Control data, aligned as `cmsghdr` must be.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

/// Bytes of the longest name of an IP socket: a `sockaddr_in6`.
const NAME: usize = mem::size_of::<libc::sockaddr_in6>();

/// A `sockaddr_in` or `sockaddr_in6`, as the kernel writes it.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Name([u8; NAME]);

impl Name {
    /// The address; `None` if it is of another family.
    fn address(&self) -> Option<SocketAddr> {
        let [f0, f1, p0, p1, rest @ ..] = &self.0;
        let port = u16::from_be_bytes([*p0, *p1]);
        match i32::from(u16::from_ne_bytes([*f0, *f1])) {
            libc::AF_INET => Some((Ipv4Addr::from(*rest.first_chunk()?), port).into()),
            libc::AF_INET6 => {
                let (flow, rest) = rest.split_first_chunk()?;
                let (ip, scope) = rest.split_first_chunk::<16>()?;
                let (flow, scope) = (u32::from_be_bytes(*flow), u32::from_ne_bytes(*scope.first_chunk()?));
                Some(SocketAddrV6::new((*ip).into(), port, flow, scope).into())
            }
            _ => None,
        }
    }
}

/// A batch of received messages.
pub struct RxBatch {
    bytes: Box<[u8]>,
    names: Box<[Name]>,
    controls: Box<[Control]>,
    headers: Box<[libc::mmsghdr]>,
    iovecs: Box<[libc::iovec]>,
}

impl Default for RxBatch {
    fn default() -> Self {
        Self {
            bytes: vec![0; BATCH * RX_STRIDE].into(),
            names: [Name([0; NAME]); BATCH].into(),
            controls: [Control([0; CONTROL]); BATCH].into(),
            headers: zeroed_headers(),
            iovecs: zeroed_iovecs(),
        }
    }
}

impl RxBatch {
    /// Receives what is there, without blocking. Returns the number of messages, 0 if there is none.
    ///
    /// # Errors
    /// The socket's.
    pub fn receive(&mut self, socket: &impl AsFd) -> io::Result<usize> {
        for index in 0..BATCH {
            self.iovecs[index] = libc::iovec {
                iov_base: self.bytes[index * RX_STRIDE..].as_mut_ptr().cast(),
                iov_len: RX_BUFFER,
            };
            let header = &mut self.headers[index].msg_hdr;
            header.msg_name = self.names[index].0.as_mut_ptr().cast();
            header.msg_namelen = NAME as _;
            header.msg_iov = &mut self.iovecs[index];
            header.msg_iovlen = 1;
            header.msg_control = self.controls[index].0.as_mut_ptr().cast();
            header.msg_controllen = CONTROL as _;
        }
        let fd = socket.as_fd().as_raw_fd();
        // SAFETY: the headers point into buffers of this batch, of the lengths that they say, which nobody
        // else touches during the call.
        let count = unsafe {
            let headers = self.headers.as_mut_ptr();
            libc::recvmmsg(fd, headers, BATCH as _, libc::MSG_DONTWAIT as _, ptr::null_mut())
        };
        match count {
            0.. => Ok(count as usize),
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
                // Somebody's ICMP answer to an earlier send; nothing of ours is wrong.
                error if error.kind() == io::ErrorKind::ConnectionRefused => Ok(0),
                error => Err(error),
            },
        }
    }

    /// Message `index` of the last [`receive`](Self::receive): its sender, the packets in it, and the length
    /// of each of them but the last, which may be shorter. `None`: its sender is no IP address.
    pub fn message(&mut self, index: usize) -> Option<(SocketAddr, &mut [u8], usize)> {
        let header = &self.headers[index];
        let length = header.msg_len as usize;
        let segment = segment_size(&header.msg_hdr).filter(|size| *size > 0).unwrap_or(length.max(1));
        let from = self.names[index].address()?;
        let start = index * RX_STRIDE;
        Some((from, &mut self.bytes[start..start + length], segment))
    }
}

/// What GRO says of a received message.
fn segment_size(header: &libc::msghdr) -> Option<usize> {
    // SAFETY: the kernel wrote the control data that the header describes; the macros keep within it. The
    // value is read unaligned.
    unsafe {
        let control = libc::CMSG_FIRSTHDR(header);
        if control.is_null()
            || (*control).cmsg_level != libc::SOL_UDP
            || (*control).cmsg_type != libc::UDP_GRO
        {
            return None;
        }
        let size = ptr::read_unaligned(libc::CMSG_DATA(control).cast::<libc::c_int>());
        usize::try_from(size).ok()
    }
}

/// One message of a [`TxBatch`].
struct Outgoing {
    to: Option<SockAddr>,
    start: usize,
    end: usize,
    segment: usize,
}

/// A batch of messages to send.
pub struct TxBatch {
    bytes: Box<[u8]>,
    used: usize,
    messages: Vec<Outgoing>,
    controls: Box<[Control]>,
    headers: Box<[libc::mmsghdr]>,
    iovecs: Box<[libc::iovec]>,
}

impl Default for TxBatch {
    fn default() -> Self {
        Self {
            bytes: vec![0; TX_BYTES].into(),
            used: 0,
            messages: Vec::with_capacity(BATCH),
            controls: [Control([0; CONTROL]); BATCH].into(),
            headers: zeroed_headers(),
            iovecs: zeroed_iovecs(),
        }
    }
}

impl TxBatch {
    /// Room for the next packets.
    pub fn room(&mut self) -> &mut [u8] {
        &mut self.bytes[self.used..]
    }

    /// True if the batch should be sent before more is added: no room for `bytes`, or for two messages.
    pub fn is_full(&self, bytes: usize) -> bool {
        self.messages.len() + 2 > BATCH || self.bytes.len() - self.used < bytes
    }

    /// Adds the first `length` bytes of [`room`](Self::room), packets of `segment` bytes each (the last may
    /// be shorter), for `to`, or for whom the socket is connected to.
    pub fn push(&mut self, length: usize, segment: usize, to: Option<SocketAddr>) {
        let (start, end) = (self.used, self.used + length);
        self.messages.push(Outgoing { to: to.map(SockAddr::from), start, end, segment });
        self.used = end;
    }

    /// Sends everything. A message that the kernel does not take is lost, as packets are.
    pub fn flush(&mut self, socket: &impl AsFd) {
        let count = self.messages.len();
        for (index, message) in self.messages.iter().enumerate() {
            let length = message.end - message.start;
            self.iovecs[index] =
                libc::iovec { iov_base: self.bytes[message.start..].as_mut_ptr().cast(), iov_len: length };
            let header = &mut self.headers[index].msg_hdr;
            (header.msg_name, header.msg_namelen) = match &message.to {
                Some(to) => (to.as_ptr().cast_mut().cast(), to.len()),
                None => (ptr::null_mut(), 0),
            };
            header.msg_iov = &mut self.iovecs[index];
            header.msg_iovlen = 1;
            (header.msg_control, header.msg_controllen) = if length > message.segment {
                put_segment_size(&mut self.controls[index], message.segment as u16)
            } else {
                (ptr::null_mut(), 0)
            };
        }
        // SAFETY: the headers point at bytes, names and control data of this batch, which outlive the call.
        unsafe { send_all(socket, &mut self.headers[..count]) };
        self.messages.clear();
        self.used = 0;
    }
}

/// Writes the control message that asks for GSO. Returns where it is and how long.
fn put_segment_size(control: &mut Control, size: u16) -> (*mut libc::c_void, usize) {
    let start: *mut libc::c_void = control.0.as_mut_ptr().cast();
    // SAFETY: CMSG_SPACE of a u16 is 24 bytes, all of which `control` has, aligned as a cmsghdr.
    unsafe {
        let header: *mut libc::cmsghdr = start.cast();
        (*header).cmsg_level = libc::SOL_UDP;
        (*header).cmsg_type = libc::UDP_SEGMENT;
        (*header).cmsg_len = libc::CMSG_LEN(mem::size_of::<u16>() as _) as _;
        ptr::write_unaligned(libc::CMSG_DATA(header).cast(), size);
        (start, libc::CMSG_SPACE(mem::size_of::<u16>() as _) as usize)
    }
}

/// Sends messages; what the kernel refuses is passed over, but for a full socket buffer, which is waited for.
/// Returns how many it refused.
///
/// # Safety
/// The headers must point at names, control data and buffers that are valid for the lengths that they say.
pub(crate) unsafe fn send_all(socket: &impl AsFd, headers: &mut [libc::mmsghdr]) -> usize {
    let fd = socket.as_fd().as_raw_fd();
    let (mut done, mut refused) = (0, 0);
    while done < headers.len() {
        let rest = &mut headers[done..];
        // SAFETY: as promised by the caller.
        let sent = unsafe { libc::sendmmsg(fd, rest.as_mut_ptr(), rest.len() as _, 0) };
        if sent > 0 {
            done += sent as usize;
        } else if io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock {
            std::thread::yield_now();
        } else {
            refused += 1;
            done += 1;
        }
    }
    refused
}

pub(crate) fn zeroed_headers() -> Box<[libc::mmsghdr]> {
    // SAFETY: integers and raw pointers, for which zero is valid.
    (0..BATCH).map(|_| unsafe { mem::zeroed() }).collect()
}

pub(crate) fn zeroed_iovecs() -> Box<[libc::iovec]> {
    (0..BATCH).map(|_| libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }).collect()
}

/// Asks for socket buffers of `bytes`, beyond the system's limit where the privileges allow.
///
/// # Errors
/// The socket's.
pub fn set_buffers(socket: &Socket, bytes: usize) -> io::Result<()> {
    use nix::sys::socket::{setsockopt, sockopt};
    if setsockopt(socket, sockopt::RcvBufForce, &bytes).is_err() {
        socket.set_recv_buffer_size(bytes)?;
    }
    if setsockopt(socket, sockopt::SndBufForce, &bytes).is_err() {
        socket.set_send_buffer_size(bytes)?;
    }
    Ok(())
}

/// Sleeps until `socket` has something to read, `timeout` at most.
pub fn wait_readable(socket: &impl AsFd, timeout: Duration) {
    use nix::poll::{PollFd, PollFlags, ppoll};
    use nix::sys::time::TimeSpec;
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    // Interrupted or not: the caller looks.
    let _ = ppoll(&mut fds, Some(TimeSpec::from_duration(timeout)), None);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn a_train_arrives_as_its_packets() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        nix::sys::socket::setsockopt(&receiver, nix::sys::socket::sockopt::UdpGroSegment, &true).unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut out = TxBatch::default();
        let train: Vec<u8> = (0..2500).map(|i| i as u8).collect();
        out.room()[..2500].copy_from_slice(&train);
        out.push(2500, 1000, Some(receiver.local_addr().unwrap()));
        out.room()[..3].copy_from_slice(b"one");
        out.push(3, 3, Some(receiver.local_addr().unwrap()));
        out.flush(&sender);
        let mut batch = RxBatch::default();
        let mut packets = Vec::new();
        while packets.len() < 4 {
            wait_readable(&receiver, Duration::from_secs(5));
            for index in 0..batch.receive(&receiver).unwrap() {
                let (from, bytes, segment) = batch.message(index).unwrap();
                assert_eq!(from, sender.local_addr().unwrap());
                packets.extend(bytes.chunks(segment).map(<[u8]>::to_vec));
            }
        }
        let lengths: Vec<usize> = packets.iter().map(Vec::len).collect();
        assert_eq!(lengths, [1000, 1000, 500, 3]);
        assert_eq!(packets[..3].concat(), train);
    }

    #[test]
    fn nothing_to_receive_is_not_an_error() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(RxBatch::default().receive(&socket).unwrap(), 0);
    }
}
