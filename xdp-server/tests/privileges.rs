//! Who the server is after its start, and what it says where it may not: the real program, in the two network
//! namespaces of `net_xdp/lab.rs`, as root, as `nobody`, and with capabilities but not as root.
//!
//! Needs root, and fails without.

#[path = "net_xdp/lab.rs"]
mod lab;
#[path = "privileges/program.rs"]
mod program;

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use canvas::codec::control::{ClientFrame, Decoded, ServerFrame};
use canvas::codes::{ALPN, HELLO_SNAPSHOT};
use caps::{CapSet, Capability, CapsHashSet};
use lab::Lab;
use program::{Place, Server};
use xdp_server::host::privileges;

/// The user and group `nobody`, and what is left to it by a sandbox that gives it the five capabilities that
/// AF_XDP takes.
const NOBODY: u32 = 65_534;
const AS_NOBODY: &str = "setpriv --reuid 65534 --regid 65534 --clear-groups";
const CAPABLE: &str = "--inh-caps=+net_admin,+net_raw,+bpf,+perfmon,+ipc_lock \
                       --ambient-caps=+net_admin,+net_raw,+bpf,+perfmon,+ipc_lock";

/// AF_XDP on the server's end of the cable.
const XDP: &str = "--iface serv0 --backend xdp --xdp-mode copy";

/// What a client may take to be welcomed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connects to `server`, says HELLO, and waits for WELCOME.
#[track_caller]
fn expect_welcome(lab: &Lab, server: &str) {
    let socket = lab.socket("10.77.0.2:0", server);
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let mut config = quiche::Config::new(quiche::PROTOCOL_VERSION).unwrap();
    config.set_application_protos(&[ALPN]).unwrap();
    config.verify_peer(false);
    config.set_max_idle_timeout(20_000);
    config.set_initial_max_data(1 << 20);
    config.set_initial_max_stream_data_bidi_local(1 << 20);
    config.set_initial_max_stream_data_uni(1 << 20);
    config.set_initial_max_streams_uni(4);
    config.enable_dgram(true, 64, 64);
    let (local, peer) = (socket.local_addr().unwrap(), server.parse().unwrap());
    let id = quiche::ConnectionId::from_ref(&[7; 16]);
    let mut quic = quiche::connect(Some("localhost"), &id, local, peer, &mut config).unwrap();

    let (mut hello, mut answer) = (Vec::new(), Vec::new());
    ClientFrame::Hello { version: 1, flags: HELLO_SNAPSHOT, token: &[] }.encode(&mut hello);
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        exchange(&mut quic, &socket, local, peer);
        if quic.is_established() && !hello.is_empty() {
            let sent = quic.stream_send(0, &hello, false).unwrap();
            hello.drain(..sent);
        }
        let mut bytes = [0; 4096];
        while let Ok((length, _)) = quic.stream_recv(0, &mut bytes) {
            answer.extend_from_slice(&bytes[..length]);
        }
        match ServerFrame::decode(&answer).unwrap() {
            None => {}
            Some((Decoded::Frame(ServerFrame::Welcome(_)), _)) => {
                quic.close(true, 0, b"").unwrap();
                return exchange(&mut quic, &socket, local, peer);
            }
            Some(other) => panic!("not a WELCOME: {other:?}"),
        }
    }
    panic!("no WELCOME; established: {}, {:?}", quic.is_established(), quic.peer_error());
}

/// Sends all there is to send, and receives once.
fn exchange(quic: &mut quiche::Connection, socket: &UdpSocket, local: SocketAddr, peer: SocketAddr) {
    let mut packet = [0; 2048];
    while let Ok((length, _)) = quic.send(&mut packet) {
        socket.send(&packet[..length]).unwrap();
    }
    if let Ok(length) = socket.recv(&mut packet) {
        // Errors close the connection, which is found out by the caller.
        let _ = quic.recv(&mut packet[..length], quiche::RecvInfo { from: peer, to: local });
    }
    quic.on_timeout();
}

/// Serves a client, ends clean, and leaves no program on the interface.
#[track_caller]
fn expect_service_and_clean_end(lab: &Lab, server: &mut Server) {
    expect_welcome(lab, "10.77.0.1:4433");
    assert_eq!(server.stop().code(), Some(0));
    assert!(!lab.server("ip link show dev serv0").contains("xdp"), "the program is still attached");
}

#[test]
fn root_becomes_the_user_told_on_sockets() {
    Lab::run(|lab| {
        let place = Place::new(0);
        // In root's own directory, which the server opens before.
        let dump = place.state().join("canvas.bin");
        let flags =
            format!("--backend socket --user nobody --width 64 --height 64 --dump {}", dump.display());
        let mut server = Server::start(place.command("", &flags));
        server.expect_powerless(NOBODY);
        assert!(server.notes().contains("from here on nobody (user 65534, group 65534), without cap"));
        expect_service_and_clean_end(lab, &mut server);
        assert_eq!(std::fs::read(dump).unwrap(), vec![0; 64 * 64]);
    });
}

#[test]
fn root_becomes_the_user_told_on_af_xdp_and_still_follows_the_addresses() {
    Lab::run(|lab| {
        let place = Place::new(0);
        let mut server = Server::start(place.command("", &format!("{XDP} --user 65534")));
        server.expect_powerless(NOBODY);
        server.expect_undumpable();
        assert_eq!(server.start["backend"], "xdp");
        assert!(lab.server("ip link show dev serv0").contains("xdp"));

        lab.server("ip address add 10.77.0.9/24 dev serv0");
        let note = server.event("note");
        let text = note["text"].as_str().unwrap();
        assert!(text.contains("AF_XDP serves") && text.contains("10.77.0.9"), "{note}");
        expect_welcome(lab, "10.77.0.9:4433");
        expect_service_and_clean_end(lab, &mut server);
    });
}

#[test]
fn root_becomes_the_caller_of_sudo() {
    Lab::run(|lab| {
        let place = Place::new(0);
        let mut command = place.command("", "--backend socket");
        command.env("SUDO_UID", "65534").env("SUDO_GID", "65534").env("SUDO_USER", "nobody");
        let mut server = Server::start(command);
        server.expect_powerless(NOBODY);
        expect_service_and_clean_end(lab, &mut server);
    });
}

#[test]
fn root_without_anybody_to_become_keeps_no_capability() {
    Lab::run(|lab| {
        let place = Place::new(0);
        let mut server = Server::start(place.command("", XDP));
        server.expect_powerless(0);
        assert!(server.notes().contains("--user NAME"), "{}", server.notes());
        expect_service_and_clean_end(lab, &mut server);
    });
}

#[test]
fn five_capabilities_are_enough_for_af_xdp_without_root_and_are_given_up() {
    Lab::run(|lab| {
        let place = Place::new(NOBODY);
        let mut server = Server::start(place.command(&format!("{AS_NOBODY} {CAPABLE}"), XDP));
        server.expect_powerless(NOBODY);
        assert_eq!((&server.start["backend"], &server.start["xdp_mode"]), (&"xdp".into(), &"copy".into()));
        expect_service_and_clean_end(lab, &mut server);
    });
}

#[test]
fn an_ordinary_user_is_told_why_not_af_xdp_and_served_by_io_uring() {
    Lab::run(|lab| {
        let place = Place::new(NOBODY);
        let mut server = Server::start(place.command(AS_NOBODY, "--iface serv0"));
        server.expect_powerless(NOBODY);
        assert_eq!(server.start["backend"], "io_uring");
        let missing = "CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF, CAP_PERFMON, CAP_IPC_LOCK are missing";
        let command = "cap_net_admin,cap_net_raw,cap_bpf,cap_perfmon,cap_ipc_lock=ep";
        for words in ["AF_XDP not taken", missing, command] {
            assert!(server.notes().contains(words), "{words:?} is not in: {}", server.notes());
        }
        expect_service_and_clean_end(lab, &mut server);

        let refusal = place.refusal(AS_NOBODY, XDP);
        assert!(refusal.contains("error: AF_XDP is denied") && refusal.contains(missing), "{refusal}");
    });
}

#[test]
fn each_closed_gate_is_named() {
    Lab::run(|_| {
        let (of_root, of_nobody) = (Place::new(0), Place::new(NOBODY));
        let refusal = |wrapper: &str, words: &[&str]| {
            let place = if wrapper.contains(AS_NOBODY) { &of_nobody } else { &of_root };
            let refusal = place.refusal(wrapper, XDP);
            words.iter().for_each(|word| assert!(refusal.contains(word), "{word:?} is not in: {refusal}"));
        };
        // Enough to get to the program, but not to load it.
        refusal(
            &format!("{AS_NOBODY} --inh-caps=+net_raw --ambient-caps=+net_raw"),
            &["CAP_NET_ADMIN, CAP_BPF, CAP_PERFMON, CAP_IPC_LOCK are missing", "sudo setcap"],
        );
        refusal(&format!("{AS_NOBODY} --no-new-privs"), &["no_new_privs", "AmbientCapabilities="]);
        refusal(
            "setpriv --bounding-set=-bpf,-sys_admin --inh-caps=-bpf,-sys_admin",
            &["CAP_BPF is missing", "--cap-add BPF"],
        );
        refusal("unshare --user --map-root-user", &["user namespace", "rootless container"]);
        // All that it takes but CAP_IPC_LOCK, and a limit below a UMEM's size.
        let no_lock = CAPABLE.replace(",+ipc_lock", "");
        refusal(
            &format!("prlimit --memlock=65536 {AS_NOBODY} {no_lock}"),
            &["RLIMIT_MEMLOCK", "64 KiB in all", "ulimit -l unlimited"],
        );
    });
}

#[test]
fn users_who_cannot_be_become_are_refused_before_anything_else_happens() {
    Lab::run(|lab| {
        let place = Place::new(NOBODY);
        let refusal = place.refusal("", &format!("{XDP} --user no-such-user"));
        assert!(refusal.contains("error: --user no-such-user: there is no such user"), "{refusal}");
        assert_eq!(std::fs::read_dir(place.state()).unwrap().count(), 0, "no key was made");

        let refusal = place.refusal(AS_NOBODY, "--user root");
        assert!(refusal.contains("cannot become root") && refusal.contains("use sudo"), "{refusal}");
        // Who one is already can be become by anybody.
        let mut server = Server::start(place.command(AS_NOBODY, "--user nobody"));
        server.expect_powerless(NOBODY);
        expect_service_and_clean_end(lab, &mut server);
    });
}

/// Set for the child process of the next test, where it does the work: credentials belong to a whole process.
const CHILD: &str = "XDP_SERVER_TEST_PRIVILEGES_CHILD";

#[test]
fn cap_bpf_is_kept_where_maps_do_not_work_without_and_not_passed_on() {
    if std::env::var_os(CHILD).is_some() {
        let nobody = privileges::user(Some("nobody"), &|_| None).unwrap();
        let note = privileges::give_up(nobody.as_ref(), || {
            assert_eq!(caps::read(None, CapSet::Effective).unwrap(), CapsHashSet::new());
            assert_eq!(nix::unistd::geteuid().as_raw(), NOBODY);
            false
        });
        assert!(note.unwrap().unwrap().contains("with CAP_BPF alone"));
        let only = CapsHashSet::from([Capability::CAP_BPF]);
        for set in [CapSet::Permitted, CapSet::Effective] {
            assert_eq!(caps::read(None, set).unwrap(), only);
        }
        assert_eq!(caps::read(None, CapSet::Inheritable).unwrap(), CapsHashSet::new());
        assert!(nix::unistd::setuid(nix::unistd::Uid::from_raw(0)).is_err(), "there is no way back");
        std::thread::spawn(|| {
            assert_eq!(
                caps::read(None, CapSet::Permitted).unwrap(),
                CapsHashSet::from([Capability::CAP_BPF])
            );
            privileges::renounce().unwrap();
            assert_eq!(caps::read(None, CapSet::Permitted).unwrap(), CapsHashSet::new());
        })
        .join()
        .unwrap();
        return;
    }
    let name = "cap_bpf_is_kept_where_maps_do_not_work_without_and_not_passed_on";
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}
