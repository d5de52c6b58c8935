//! Steering: the kernel delivers each packet to the socket of the worker that owns its connection.
//!
//! Without it the kernel spreads packets over the sockets of a port by a hash of addresses and ports, the
//! *4-tuple*: a client whose port changes (a NAT that forgot it, a walk from one network to another) is then
//! delivered to some other worker, which has to pass each of its packets on. A server's connection ID starts
//! with the index of its worker ([`crate::quic::cid`]), so a program of eleven instructions can do better.
//! Measured with 1,000 clients that change their port, on four workers (`tests/steering.rs`): 0 strays of
//! 16,000 packets; without it 7,600.
//!
//! It is classic BPF, attached with `SO_ATTACH_REUSEPORT_CBPF` (Linux 4.5): that needs no privilege, no BPF
//! system call and no map. The kernel runs it for each packet to the port, on the UDP payload, and takes its
//! result as the number of a socket in the order of binding, which is that of the workers (see
//! [`SocketGroup`](super::SocketGroup)). A result beyond the last socket, such as `HASH`, lets the kernel
//! spread by the 4-tuple as if there were no program. So
//!
//! - a packet under a short header goes to the worker in byte 0 of its destination ID;
//! - a packet under a long header, too, if that ID is 17 bytes long like ours. A client may choose such an ID
//!   for its first packets: its byte 0 is random then, and so is the worker; the same for each repetition;
//! - all other packets, a client's first ones above all, go by the 4-tuple: evenly, a repetition of a packet
//!   to the same worker as the first, and by a hash whose key no client knows, so that nobody can aim at one
//!   worker;
//! - garbage goes by the same rules. The program cannot fail, and drops nothing: that is for workers, who
//!   count.

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd};

use crate::quic::cid;

/// "Spread by the 4-tuple": larger than any socket's number.
const HASH: u32 = u32::MAX;

/// Shorter payloads are garbage, and are left to the hash before the program reads beyond their end, which
/// would end it with 0, so that a flood of them would be worker 0's alone. In bytes: no QUIC packet of ours
/// is shorter than its ID.
const MIN_LEN: u32 = 1 + cid::LEN as u32;

/// Bit of byte 0 that says "long header" (RFC 8999, section 5).
const LONG_HEADER: u32 = 0x80;

/// Where a short header has the destination ID.
const SHORT_ID: u32 = 1;

/// Where a long header, after its first byte and four of version, has the destination ID's length; the ID
/// follows.
const LONG_ID_LEN: u32 = 5;

// The operations of classic BPF (the kernel's Documentation/networking/filter.rst) that the program uses. A
// is the accumulator, k the instruction's constant.
const LOAD_LENGTH: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_LEN; // A = length of the payload
const LOAD_BYTE: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS; // A = byte k of the payload
const IF_AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K; // A >= k?
const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K; // A == k?
const IF_ANY_BIT: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K; // A & k != 0?
const RETURN_A: u32 = libc::BPF_RET | libc::BPF_A;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K; // the result is k

/// The program. A comparison skips as many instructions as its first number says if it holds, else as its
/// second.
const PROGRAM: [libc::sock_filter; 11] = [
    // Long enough for everything that is read below?
    instruction(LOAD_LENGTH, 0, 0, 0),
    instruction(IF_AT_LEAST, 0, 8, MIN_LEN), // else to the hash
    // Which kind of header?
    instruction(LOAD_BYTE, 0, 0, 0),
    instruction(IF_ANY_BIT, 2, 0, LONG_HEADER), // long: skip the short header's part
    // Short header: byte 0 of the ID is the worker. If there is no such worker, the kernel falls back to the
    // hash.
    instruction(LOAD_BYTE, 0, 0, SHORT_ID),
    instruction(RETURN_A, 0, 0, 0),
    // Long header: likewise, if the ID is as long as ours.
    instruction(LOAD_BYTE, 0, 0, LONG_ID_LEN),
    instruction(IF_EQUAL, 0, 2, cid::LEN as u32), // else to the hash
    instruction(LOAD_BYTE, 0, 0, LONG_ID_LEN + 1),
    instruction(RETURN_A, 0, 0, 0),
    // The hash.
    instruction(RETURN, 0, 0, HASH),
];

const fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}

/// Steers the packets of the port that `sockets` share: all sockets of one `SO_REUSEPORT` group, in the order
/// in which they were bound, which must be that of the workers. With fewer than two there is nothing to
/// steer, and nothing is attached. The program stays until the last of them is closed.
///
/// # Errors
/// What setsockopt(2) says: `ENOPROTOOPT` before Linux 4.5. Packets are then spread by the 4-tuple, and
/// workers pass on those that are not theirs.
pub fn attach(sockets: &[impl AsFd]) -> io::Result<()> {
    let [first, _, ..] = sockets else { return Ok(()) };
    let mut program = PROGRAM;
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the option wants a `sock_fprog` that points at `len` instructions, both of which are live, and
    // copies them.
    let result = unsafe {
        libc::setsockopt(
            first.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            mem::size_of_val(&program) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
