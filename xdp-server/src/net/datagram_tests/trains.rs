//! Segmentation offloads, GSO and GRO: over loopback, a train sent as one message also arrives as one.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::AsRawFd;

use nix::sys::socket::sockopt::UdpGroSegment;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt,
};

use super::*;
use crate::net::MAX_RX_PAYLOAD;
use crate::net::segment::MAX_TRAIN_BYTES;

/// Sends `bytes` in one message, to be cut up every `size` bytes.
fn send_train(client: &UdpSocket, to: SocketAddr, bytes: &[u8], size: u16) {
    let to = SockaddrStorage::from(to);
    let control = [ControlMessage::UdpGsoSegments(&size)];
    let sent =
        sendmsg(client.as_raw_fd(), &[IoSlice::new(bytes)], &control, MsgFlags::empty(), Some(&to)).unwrap();
    assert_eq!(sent, bytes.len());
}

/// A client that sees trains as they are.
pub(in crate::net) struct Observer(pub(in crate::net) UdpSocket);

impl Observer {
    pub(in crate::net) fn new(address: &str) -> Self {
        let socket = client(address);
        setsockopt(&socket, UdpGroSegment, &true).unwrap();
        Self(socket)
    }

    /// Messages until there are `count` payloads: the lengths of the payloads of each.
    pub(in crate::net) fn messages<I: PacketIo>(
        &self,
        server: &mut Server<I>,
        count: usize,
    ) -> Vec<Vec<usize>> {
        let (mut messages, mut seen) = (Vec::new(), 0);
        let mut buffer = vec![0; 65_535];
        let mut control = nix::cmsg_space!(i32);
        while seen < count {
            let (bytes, size) = server.until(|| {
                let (mut vectors, control) = ([IoSliceMut::new(&mut buffer)], Some(control.as_mut_slice()));
                let socket = self.0.as_raw_fd();
                let message =
                    recvmsg::<SockaddrStorage>(socket, &mut vectors, control, MsgFlags::empty()).ok()?;
                let size = message.cmsgs().unwrap().find_map(|message| match message {
                    ControlMessageOwned::UdpGroSegments(size) => Some(size as usize),
                    _ => None,
                });
                Some((message.bytes, size.unwrap_or(message.bytes)))
            });
            let payloads: Vec<usize> = (0..bytes).step_by(size).map(|at| size.min(bytes - at)).collect();
            seen += payloads.len();
            messages.push(payloads);
        }
        messages
    }
}

/// Numbered payloads of these lengths for `path`.
fn numbered(path: Path, lengths: impl IntoIterator<Item = usize>) -> Vec<(Path, Vec<u8>)> {
    lengths.into_iter().zip(0_u8..).map(|(length, number)| (path, vec![number; length])).collect()
}

pub fn a_merged_buffer_comes_out_payload_by_payload_within_the_budget<B: Backend>() {
    keep_order();
    for (listen, from, ip) in [("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1"), ("[::]:0", "[::1]:0", "::1")] {
        let mut server = one::<B>(listen);
        let to = SocketAddr::new(ip.parse().unwrap(), server.local.port());
        let client = client(from);
        // 60 whole payloads and a shorter one.
        let bytes: Vec<u8> = (0..60 * 100 + 7).map(|at| (at / 100) as u8).collect();
        send_train(&client, to, &bytes, 100);
        client.send_to(b"alone", to).unwrap();
        server.wait(PATIENCE);

        let expected: Vec<Vec<u8>> = bytes.chunks(100).map(<[u8]>::to_vec).collect();
        let mut got = Vec::new();
        for budget in [0, 1, 10, 49] {
            let before = got.len();
            let handed = server.io.receive(budget, &mut |path: &Path, payload: &mut [u8]| {
                assert_eq!((path.local, path.peer), (to, client.local_addr().unwrap()));
                got.push(payload.to_vec());
                payload.fill(0xee); // in place: the neighbours must not see it
            });
            assert_eq!((handed, got.len() - before), (budget, budget), "the rest waits for the next call");
        }
        // The socket has no more of the train, but the backend does: nobody may sleep on it.
        let start = Instant::now();
        server.wait(PATIENCE);
        assert!(start.elapsed() < PATIENCE);
        got.extend(server.receive(2).into_iter().map(|(_, payload)| payload));
        assert_eq!(got.split_last(), Some((&b"alone".to_vec(), expected.as_slice())));
        let counters = server.counters();
        assert_eq!((counters.rx_packets, counters.rx_bytes), (62, bytes.len() as u64 + 5));
    }
}

pub fn many_full_buffers_are_received_whole<B: Backend>() {
    keep_order();
    let mut server = one::<B>("127.0.0.1:0");
    let client = client("127.0.0.1:0");
    let count = MAX_TRAIN_BYTES / 1200;
    for train in 0..10 {
        send_train(&client, server.local, &vec![train; count * 1200], 1200);
    }
    let packets = server.receive(10 * count);
    for (index, (_, payload)) in packets.iter().enumerate() {
        assert_eq!(*payload, [(index / count) as u8; 1200], "packet {index}");
    }
}

pub fn payloads_of_a_buffer_that_are_too_long_are_counted_one_by_one<B: Backend>() {
    keep_order();
    let mut server = one::<B>("127.0.0.1:0");
    let client = client("127.0.0.1:0");
    let long = MAX_RX_PAYLOAD + 1;
    // Loopback has room for longer packets than Ethernet. The last one of the buffer is short enough.
    send_train(&client, server.local, &vec![1; 3 * long + 5], long as u16);
    client.send_to(&vec![2; 40_000], server.local).unwrap();
    client.send_to(&[3], server.local).unwrap();
    let packets = server.receive(2);
    assert_eq!((packets[0].1.as_slice(), packets[1].1.as_slice()), (&[1; 5][..], &[3][..]));
    let counters = server.counters();
    assert_eq!((counters.rx_too_long, counters.rx_packets), (4, 2));
}

pub fn trains_leave_as_one_message_each<B: Backend>() {
    keep_order();
    for (listen, from) in [("127.0.0.1:0", "127.0.0.1:0"), ("[::]:0", "127.0.0.1:0"), ("[::]:0", "[::1]:0")] {
        let mut server = one::<B>(listen);
        let (one, other) = (Observer::new(from), Observer::new(from));
        let (to_one, to_other) = (server.path_to(&one.0), server.path_to(&other.0));
        let mut packets = numbered(to_one, [1200, 1200, 1200, 300]); // a train and its end
        packets.extend(numbered(to_one, [1200])); // the next train, cut off by another peer
        packets.extend(numbered(to_other, [50, 50, 60])); // longer than its segment size: starts a new one
        packets.extend(numbered(to_one, [70; 65])); // one more than fit
        server.send_all(&packets);
        let expected = [vec![1200, 1200, 1200, 300], vec![1200], vec![70; 64], vec![70]];
        assert_eq!(one.messages(&mut server, 70), expected, "{listen} {from}");
        assert_eq!(other.messages(&mut server, 3), [vec![50, 50], vec![60]], "{listen} {from}");
        let counters = server.counters();
        assert_eq!((counters.tx_errors, counters.tx_trains_refused), (0, 0));
    }
}

pub fn trains_arrive_at_a_plain_receiver_as_the_packets_that_they_are<B: Backend>() {
    keep_order();
    let mut server = one::<B>("127.0.0.1:0");
    let client = client("127.0.0.1:0");
    let path = server.path_to(&client);
    // More than the queue holds, so that it also wraps around within a train.
    let packets = numbered(path, (0..250).map(|number| if number % 17 == 16 { 900 } else { 1200 }));
    for _ in 0..3 {
        // As many as a client's socket takes at once.
        for some in packets.chunks(50) {
            server.send(some);
            for (_, payload) in some {
                assert_eq!(server.sent_to(&client), (path.local, payload.clone()));
            }
        }
    }
}

pub fn where_segmentation_is_refused_packets_go_one_by_one_for_good<B: Backend>() {
    keep_order();
    // Segments need checksums: a socket without sends single packets only (EINVAL).
    let refuse = |socket: &SocketIo| {
        let on: libc::c_int = 1;
        // SAFETY: the value is a live int of the length given.
        let result = unsafe {
            libc::setsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_NO_CHECK,
                (&raw const on).cast(),
                size_of_val(&on) as libc::socklen_t,
            )
        };
        assert_eq!(result, 0);
    };
    let mut server = servers::<B>(&config("127.0.0.1:0", 1), refuse).remove(0);
    let observer = Observer::new("127.0.0.1:0");
    let packets = numbered(server.path_to(&observer.0), [10; 5]);
    for _ in 0..3 {
        server.send(&packets);
        assert_eq!(observer.messages(&mut server, 5), [[10]; 5]);
        let counters = server.counters();
        assert_eq!((counters.tx_errors, counters.tx_trains_refused), (0, 1), "one train was the last");
    }
}

pub fn a_train_that_cannot_be_sent_costs_only_itself<B: Backend>() {
    keep_order();
    let mut server = one::<B>("0.0.0.0:0");
    let observer = Observer::new("127.0.0.1:0");
    let good = server.path_to(&observer.0);
    let bad = Path { peer: "127.0.0.1:0".parse().unwrap(), ..good }; // EINVAL, alone too
    let mut packets = numbered(good, [100; 3]);
    packets.extend(numbered(bad, [100; 3]));
    packets.extend(numbered(good, [100; 3]));
    for round in 1..3 {
        server.send(&packets);
        assert_eq!(observer.messages(&mut server, 6), vec![vec![100; 3]; 2], "segmentation goes on");
        let counters = server.counters();
        assert_eq!((counters.tx_errors, counters.tx_trains_refused), (3 * round, round));
    }
}
