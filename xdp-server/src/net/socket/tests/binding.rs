//! Binding: who gets the port, in which order, and what is said when it fails.

use std::mem;

use super::*;

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
fn a_group_shares_the_port_and_misses_nothing() {
    let mut group = bind(&config("[::]:0", 4));
    assert!(group.sockets.iter().all(|socket| socket.local_addr() == group.local));
    let clients: Vec<UdpSocket> = (0..128).map(|_| client("127.0.0.1:0")).collect();
    for (number, client) in clients.iter().enumerate() {
        client.send_to(&[number as u8], (Ipv4Addr::LOCALHOST, group.local.port())).unwrap();
    }
    let (start, mut seen) = (Instant::now(), Vec::new());
    let mut by_worker = [0; 4];
    while seen.len() < clients.len() && start.elapsed() < PATIENCE {
        for (socket, count) in group.sockets.iter_mut().zip(&mut by_worker) {
            *count += socket.receive(usize::MAX, &mut |_, payload| seen.push(payload[0]));
        }
    }
    seen.sort_unstable();
    assert!(seen.into_iter().eq(0..128));
    // That the hash leaves one of four out has a chance of 4 * 0.75^128, or 4e-16.
    assert!(by_worker.iter().all(|&count| count > 0), "{by_worker:?}");
}

/// Steering programs select a socket by its place in the group, so the place must be the worker's number.
#[test]
fn the_order_of_the_group_is_that_of_the_workers() {
    let mut group = bind(&config("127.0.0.1:0", 4));
    let client = client("127.0.0.1:0");
    for worker in [2, 0, 3, 1] {
        // A classic BPF program of one instruction: return the number.
        let mut code = libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: worker as u32 };
        let program = libc::sock_fprog { len: 1, filter: &mut code };
        // SAFETY: the option wants a `sock_fprog` that points at `len` instructions, and copies it.
        let result = unsafe {
            libc::setsockopt(
                group.sockets[0].socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_REUSEPORT_CBPF,
                (&raw const program).cast(),
                size_of_val(&program) as libc::socklen_t,
            )
        };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        client.send_to(&[worker as u8], group.local).unwrap();
        assert_eq!(receive(&mut group.sockets[worker], 1)[0].1, [worker as u8]);
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

/// Lets `socket(AF_INET6)` fail on this thread as it does on a kernel without IPv6, or in a systemd unit with
/// `RestrictAddressFamilies=AF_INET`.
fn forbid_ipv6() {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let number = mem::offset_of!(libc::seccomp_data, nr) as u32;
    // The lower half of the first argument, on a little-endian machine.
    let family = mem::offset_of!(libc::seccomp_data, args) as u32;
    let code = |code, jf, k| libc::sock_filter { code, jt: 0, jf, k };
    let mut filter = [
        code(LOAD, 0, number),
        code(IF_EQUAL, 3, libc::SYS_socket as u32),
        code(LOAD, 0, family),
        code(IF_EQUAL, 1, libc::AF_INET6 as u32),
        code(RETURN, 0, libc::SECCOMP_RET_ERRNO | libc::EAFNOSUPPORT as u32),
        code(RETURN, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program points at `len` instructions, which the kernel checks and copies.
    let result = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

#[test]
fn without_ipv6_the_wildcard_is_ipv4_and_says_so() {
    let thread = std::thread::spawn(|| {
        forbid_ipv6();
        let mut group = bind(&config("[::]:0", 2));
        assert_eq!(group.local.ip(), Ipv4Addr::UNSPECIFIED);
        assert!(group.notes[0].to_string().contains("no IPv6: listening on 0.0.0.0:0"), "{:?}", group.notes);
        group.sockets.truncate(1);
        let to = (Ipv4Addr::LOCALHOST, group.local.port()).into();
        asks_and_is_answered(&mut group.sockets[0], "127.0.0.1:0", to);

        let error = SocketGroup::bind(&config("[::1]:4433", 1)).unwrap_err();
        assert!(error.to_string().contains("Use --listen 0.0.0.0:4433"), "{error}");
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}
