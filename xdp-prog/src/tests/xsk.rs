//! A real AF_XDP socket, as small as the kernel allows, that receives; and a way to put frames on the wire.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// Frames in the UMEM, and entries in each ring (a power of two, so that the fill ring holds all of them).
/// Also the most packets that a socket receives in its life: frames are not given back.
pub const FRAMES: u32 = 256;
/// Bytes of a frame; the least the kernel allows.
const FRAME: usize = 2048;

/// An AF_XDP socket in copy mode, bound to one queue, with all its frames in the fill ring.
pub struct Xsk {
    socket: OwnedFd,
    receive_ring: Mapping,
    receive_offsets: libc::xdp_ring_offset,
    umem: Mapping,
}

impl AsFd for Xsk {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Xsk {
    pub fn bind(ifindex: u32, queue: u32) -> Self {
        // SAFETY: takes no pointers; the result is checked before it is used.
        let socket = check(unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) });
        // SAFETY: the kernel has just made this descriptor for us.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };

        let umem = Mapping::new(FRAMES as usize * FRAME, None);
        let registration = libc::xdp_umem_reg {
            addr: umem.address.as_ptr() as u64,
            len: umem.length as u64,
            chunk_size: FRAME as u32,
            headroom: 0,
            flags: 0,
            tx_metadata_len: 0,
        };
        set_option(&socket, libc::XDP_UMEM_REG, &registration);
        for ring in [libc::XDP_UMEM_FILL_RING, libc::XDP_UMEM_COMPLETION_RING, libc::XDP_RX_RING] {
            set_option(&socket, ring, &FRAMES);
        }

        let offsets = ring_offsets(&socket);
        let fill_length = offsets.fr.desc as usize + FRAMES as usize * size_of::<u64>();
        let fill_ring = Mapping::new(fill_length, Some((&socket, libc::XDP_UMEM_PGOFF_FILL_RING as i64)));
        for frame in 0..FRAMES as usize {
            // SAFETY: the entry is inside the ring, aligned, and the kernel does not read it before the
            // producer index says that it may.
            unsafe { fill_ring.at::<u64>(offsets.fr.desc, frame).write((frame * FRAME) as u64) };
        }
        fill_ring.index(offsets.fr.producer).store(FRAMES, Ordering::Release);

        let receive_length = offsets.rx.desc as usize + FRAMES as usize * size_of::<libc::xdp_desc>();
        let receive_ring = Mapping::new(receive_length, Some((&socket, libc::XDP_PGOFF_RX_RING)));
        let address = libc::sockaddr_xdp {
            sxdp_family: libc::AF_XDP as u16,
            sxdp_flags: libc::XDP_COPY,
            sxdp_ifindex: ifindex,
            sxdp_queue_id: queue,
            sxdp_shared_umem_fd: 0,
        };
        let length = size_of_val(&address) as libc::socklen_t;
        // SAFETY: the address is valid for the length that is stated.
        check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) });
        Self { socket, receive_ring, receive_offsets: offsets.rx, umem }
    }

    /// The frames received since the last call.
    pub fn receive(&self) -> Vec<Vec<u8>> {
        let producer = self.receive_ring.index(self.receive_offsets.producer);
        let consumer = self.receive_ring.index(self.receive_offsets.consumer);
        let (mut next, end) = (consumer.load(Ordering::Relaxed), producer.load(Ordering::Acquire));
        let mut frames = Vec::new();
        while next != end {
            let entry = (next % FRAMES) as usize;
            // SAFETY: the kernel has published this entry and leaves it alone until it is consumed; the frame
            // that it names is inside the UMEM and ours from then on.
            let frame = unsafe {
                let descriptor =
                    self.receive_ring.at::<libc::xdp_desc>(self.receive_offsets.desc, entry).read();
                let start = self.umem.address.as_ptr().add(descriptor.addr as usize);
                std::slice::from_raw_parts(start, descriptor.len as usize).to_vec()
            };
            frames.push(frame);
            next = next.wrapping_add(1);
        }
        consumer.store(end, Ordering::Release);
        frames
    }
}

/// Puts `frames` on the wire, as they are, through the interface.
pub fn send(ifindex: u32, frames: &[Vec<u8>]) {
    // SAFETY: takes no pointers; the result is checked before it is used.
    let socket = check(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) });
    // SAFETY: the kernel has just made this descriptor for us.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: 0,
        sll_ifindex: ifindex.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    for frame in frames {
        // SAFETY: both pointers are to memory of the length stated beside them, which outlives the call.
        let sent = unsafe {
            libc::sendto(
                socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const address).cast(),
                size_of_val(&address) as libc::socklen_t,
            )
        };
        assert_eq!(sent, frame.len() as isize, "send: {}", io::Error::last_os_error());
    }
}

/// Memory shared with the kernel; unmapped on drop.
struct Mapping {
    address: NonNull<u8>,
    length: usize,
}

impl Mapping {
    /// Maps a ring of the socket, at its page offset, or else fresh memory.
    fn new(length: usize, ring: Option<(&OwnedFd, libc::off_t)>) -> Self {
        let (flags, descriptor, offset) = match ring {
            Some((socket, offset)) => (libc::MAP_SHARED | libc::MAP_POPULATE, socket.as_raw_fd(), offset),
            None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0),
        };
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the kernel chooses the address, so no memory of ours is replaced.
        let address =
            unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, descriptor, offset) };
        assert_ne!(address, libc::MAP_FAILED, "mmap: {}", io::Error::last_os_error());
        Self { address: NonNull::new(address.cast()).expect("never mapped at 0"), length }
    }

    /// The `entry`th `T` from byte `offset` on.
    fn at<T>(&self, offset: u64, entry: usize) -> *mut T {
        let start = offset as usize + entry * size_of::<T>();
        assert!(start + size_of::<T>() <= self.length);
        // SAFETY: just checked to be inside the mapping.
        unsafe { self.address.as_ptr().add(start).cast() }
    }

    /// A ring's producer or consumer index.
    fn index(&self, offset: u64) -> &AtomicU32 {
        // SAFETY: inside the mapping, aligned by the kernel's layout, and only ever accessed atomically.
        unsafe { AtomicU32::from_ptr(self.at(offset, 0)) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this mapping is ours, and no reference into it outlives `self`.
        check(unsafe { libc::munmap(self.address.as_ptr().cast(), self.length) });
    }
}

fn ring_offsets(socket: &OwnedFd) -> libc::xdp_mmap_offsets {
    // SAFETY: plain integers, for which zero is a value.
    let mut offsets: libc::xdp_mmap_offsets = unsafe { std::mem::zeroed() };
    let mut length = size_of_val(&offsets) as libc::socklen_t;
    // SAFETY: the buffer is valid for the length that is stated.
    check(unsafe {
        let buffer = (&raw mut offsets).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_XDP, libc::XDP_MMAP_OFFSETS, buffer, &mut length)
    });
    offsets
}

fn set_option<T>(socket: &OwnedFd, option: i32, value: &T) {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the value is valid for the length that is stated.
    check(unsafe {
        let value = std::ptr::from_ref(value).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_XDP, option, value, length)
    });
}

#[track_caller]
fn check(result: i32) -> i32 {
    assert!(result >= 0, "{}", io::Error::last_os_error());
    result
}
