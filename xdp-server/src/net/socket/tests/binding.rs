//! Binding: who gets the port, in which order, and what is said when it fails.

use super::*;
use crate::net::datagram_tests::sandbox::without_call;

#[test]
fn a_second_server_is_turned_away() {
    for workers in [1, 3] {
        let first = bind(&config("[::]:0", workers));
        let port = first.local.port();
        for listen in [format!("[::]:{port}"), format!("127.0.0.1:{port}"), format!("[::1]:{port}")] {
            let error = SocketGroup::bind(&config(&listen, workers)).unwrap_err();
            assert!(matches!(error, BindError::PortTaken { .. }), "{error:?}");
            let text = error.to_string();
            assert!(
                text.contains(&listen) && text.contains(&format!("ss -ulpn 'sport = :{port}'")),
                "{text}"
            );
        }
        drop(first);
        assert_eq!(bind(&config(&format!("[::]:{port}"), workers)).local.port(), port);
    }
}

#[test]
fn an_address_that_is_not_ours_is_named() {
    let error = SocketGroup::bind(&config("192.0.2.77:4433", 1)).unwrap_err();
    assert!(matches!(error, BindError::AddressNotAvailable { .. }), "{error:?}");
    let error = SocketGroup::bind(&config("[fe80::1]:4433", 1)).unwrap_err();
    assert!(error.to_string().contains("[fe80::1%INDEX]:4433"), "{error}");
}

#[test]
fn a_group_shares_one_port() {
    let group = bind(&config("[::]:0", 4));
    assert!(group.sockets.iter().all(|socket| socket.local_addr() == group.local));
}

/// Steering programs select a socket by its place in the group, so the place must be the worker's number.
#[test]
fn the_order_of_the_group_is_that_of_the_workers() {
    let mut group = servers::<Plain>(&config("127.0.0.1:0", 4), |_| ());
    let client = client("127.0.0.1:0");
    for worker in [2, 0, 3, 1] {
        // A classic BPF program of one instruction: return the number.
        let mut code = libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: worker as u32 };
        let program = libc::sock_fprog { len: 1, filter: &mut code };
        // SAFETY: the option wants a `sock_fprog` that points at `len` instructions, and copies it.
        let result = unsafe {
            libc::setsockopt(
                group[0].io.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_REUSEPORT_CBPF,
                (&raw const program).cast(),
                size_of_val(&program) as libc::socklen_t,
            )
        };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        client.send_to(&[worker as u8], group[0].local).unwrap();
        assert_eq!(group[worker].receive(1)[0].1, [worker as u8]);
    }
}

#[test]
fn buffers_and_busy_polling_are_as_asked_or_noted() {
    let asked = 64 << 20;
    let group = bind(&SocketConfig {
        rcvbuf: asked,
        sndbuf: asked,
        busy_poll: Some(Duration::from_micros(50)),
        ..config("[::]:0", 3)
    });
    let got = group.sockets[2].socket.recv_buffer_size().unwrap() / 2;
    let noted = group.notes.iter().filter(|note| matches!(note, SocketNote::ReceiveBuffer { .. })).count();
    assert_eq!(noted, usize::from(got < asked), "{got} bytes, {:?}", group.notes);
    assert!(group.notes.len() <= 3, "each is said once: {:?}", group.notes);
    if nix::unistd::geteuid().is_root() {
        assert!(group.notes.is_empty(), "{:?}", group.notes);
    }
}

/// As on a kernel without IPv6, or in a systemd unit with `RestrictAddressFamilies=AF_INET`.
#[test]
fn without_ipv6_the_wildcard_is_ipv4_and_says_so() {
    without_call(libc::SYS_socket, Some(libc::AF_INET6 as u32), libc::EAFNOSUPPORT, || {
        let group = bind(&config("[::]:0", 2));
        assert_eq!(group.local.ip(), Ipv4Addr::UNSPECIFIED);
        assert!(group.notes[0].to_string().contains("no IPv6: listening on 0.0.0.0:0"), "{:?}", group.notes);
        let mut server = one::<Plain>("[::]:0");
        let to = server.on_localhost();
        server.asks_and_is_answered("127.0.0.1:0", to);

        let error = SocketGroup::bind(&config("[::1]:4433", 1)).unwrap_err();
        assert!(error.to_string().contains("Use --listen 0.0.0.0:4433"), "{error}");
    });
}
