//! What newcomers get wrong, and what they are told: the whole text, since its remedy is to be typed.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::fcntl::{Flock, FlockArg};
use serde_json::{Value, json};

use crate::programs::{Clients, Home, Server, refused};
use crate::{NATIVE, in_namespaces};

/// User and group `nobody` of Debian, and of most others.
const NOBODY: u32 = 65_534;

/// Runs a server as root that must end with exit code 1 and this error.
#[track_caller]
fn explains(home: &Home, flags: &[&str], error: &str) {
    assert_eq!(refused(home.server(flags)), (1, format!("error: {error}\n")));
}

#[test]
fn an_interface_that_is_not_there() {
    in_namespaces(|_| {
        let error = "there is no interface eth7; there are: lo, serv0";
        explains(&Home::new(), &["--iface", "eth7"], error);
        explains(&Home::new(), &["--iface", "eth7", "--backend", "xdp", "--queues", "47"], error);
    });
}

#[test]
fn more_queues_than_the_interface_has() {
    in_namespaces(|_| {
        explains(
            &Home::new(),
            &["--iface", "serv0", "--queues", "47"],
            "--queues 47, but serv0 has 2: give --queues 2, or more queues with `ethtool -L serv0 combined 47` \
             (where the driver has them apart: `rx 47 tx 47`)",
        );
    });
}

#[test]
fn an_interface_that_is_down() {
    in_namespaces(|lab| {
        lab.server("ip link set dev serv0 down");
        explains(&Home::new(), NATIVE, "interface serv0 is down; bring it up with `ip link set serv0 up`");
    });
}

#[test]
fn a_mode_that_the_driver_has_not_got() {
    in_namespaces(|_| {
        explains(
            &Home::new(),
            &["--iface", "serv0", "--backend", "xdp", "--xdp-mode", "zerocopy"],
            "the driver of serv0 refused zero-copy on queue 0: Operation not supported (os error 95); --xdp-mode \
             copy works without it",
        );
    });
}

#[test]
fn values_that_are_not_allowed() {
    in_namespaces(|_| {
        let home = Home::new();
        for (flags, error) in [
            (&["--queues", "0"][..], "invalid value '0' for '--queues <N>': 0 is not in 1..=256"),
            (
                &["--backend", "raw"],
                "invalid value 'raw' for '--backend <NAME>'\n  [possible values: auto, xdp, io_uring, socket]",
            ),
            (
                &["--backend", "xdp"],
                "--backend xdp needs --iface IF, the interface to attach to; `ip -brief link` lists them",
            ),
            (
                &["--listen", "4433"],
                "invalid value '4433' for '--listen <ADDR:PORT>': give ADDRESS:PORT with a numeric address, such as \
                 [::]:4433 (all, IPv4 too) or 192.0.2.1:4433",
            ),
        ] {
            let text = format!("error: {error}\n\nFor more information, try '--help'.\n");
            assert_eq!(refused(home.server(flags)), (2, text));
        }
    });
}

#[test]
fn certificates_that_do_not_work() {
    in_namespaces(|_| {
        let home = Home::new();
        let pair = |name: &str| {
            let key = rcgen::KeyPair::generate().unwrap();
            let cert = rcgen::CertificateParams::new([name.to_owned()]).unwrap().self_signed(&key).unwrap();
            fs::write(home.path(&format!("{name}.pem")), cert.pem()).unwrap();
            fs::write(home.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
        };
        pair("one");
        pair("other");
        fs::write(home.path("garbage.pem"), "not a certificate\n").unwrap();
        let [cert, key, other, garbage, missing] =
            ["one.pem", "one.key", "other.key", "garbage.pem", "missing.pem"].map(|name| home.file(name));
        let bad = |cert: &str, key: &str, error: &str| {
            explains(&home, &["--cert", cert, "--key", key], &format!("bad certificate: {error}"));
        };
        bad(
            &garbage,
            &key,
            &format!(
                "no PEM certificate in {garbage} (`-----BEGIN CERTIFICATE-----`); if it is DER, convert it: \
                 `openssl x509 -inform der -in {garbage} -out cert.pem`"
            ),
        );
        bad(
            &cert,
            &garbage,
            &format!("no PEM key in {garbage} (`-----BEGIN PRIVATE KEY-----`); check --key"),
        );
        bad(
            &cert,
            &other,
            &format!(
                "the private key {other} does not belong to the certificate {cert}; give the pair that was issued \
                 together"
            ),
        );
        bad(
            &missing,
            &key,
            &format!("cannot read {missing}: No such file or directory (os error 2); check --cert"),
        );
        // And the right pair is right.
        let server = Server::start(&home, &["--cert", &cert, "--key", &key]);
        assert_eq!(server.started()["certificate"]["self_signed"], false);
        server.stop();
    });
}

/// A command that runs the server as `nobody`, from where that user can read it, with a home that is that user's.
fn as_nobody(home: &Home, flags: &[&str]) -> Command {
    let (program, own) = (home.path("xdp-server"), home.path("nobody"));
    fs::set_permissions(home.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_xdp-server"), &program).unwrap();
    fs::create_dir_all(&own).unwrap();
    chown(&own, Some(NOBODY), Some(NOBODY)).unwrap();
    let mut command = Command::new(program);
    command.uid(NOBODY).gid(NOBODY).env("HOME", &own).env_remove("XDG_STATE_HOME").args(flags);
    command
}

/// What AF_XDP without root is answered with, by the program that [`as_nobody`] makes.
fn no_root(home: &Home) -> String {
    format!(
        "AF_XDP is denied: CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF, CAP_PERFMON, CAP_IPC_LOCK are missing; run the server \
         with sudo, or grant them for good: sudo setcap \
         cap_net_admin,cap_net_raw,cap_bpf,cap_perfmon,cap_ipc_lock=ep {}",
        home.path("xdp-server").display()
    )
}

#[test]
fn no_root_for_af_xdp() {
    in_namespaces(|_| {
        let home = Home::new();
        assert_eq!(refused(as_nobody(&home, NATIVE)), (1, format!("error: {}\n", no_root(&home))));
    });
}

/// Without root, and without a backend's name, it serves all the same.
#[test]
fn no_root_at_all() {
    in_namespaces(|_| {
        for flags in [&["--iface", "serv0"][..], &[]] {
            let home = Home::new();
            let note = match flags {
                [] => "AF_XDP not tried: it needs --iface IF".to_owned(),
                _ => format!("AF_XDP not taken: {}", no_root(&home)),
            };
            let server = Server::spawn(&home, as_nobody(&home, &[flags, &["--duration", "60"]].concat()));
            let started = server.started();
            assert_eq!(started["backend"], "io_uring");
            assert!(started["notes"].as_array().unwrap().contains(&json!(note)), "{:#}", started["notes"]);
            let clients = ["--clients", "10", "--duration", "0.5", "--frame-share", "100"];
            let (code, report) = Clients::near("https://127.0.0.1:4433", &clients).end();
            assert_eq!(code, 0, "{report:#}");
            server.stop();
        }
    });
}

/// The host's pool of huge pages, for one test: nobody else changes it meanwhile, and it is put back.
struct Pool {
    before: u64,
    _lock: Flock<File>,
}

impl Pool {
    const FILE: &str = "/proc/sys/vm/nr_hugepages";

    /// Waits for its turn.
    fn lock() -> Self {
        let file = File::open(Self::FILE).expect("a kernel with huge pages");
        let lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno).unwrap();
        let before = fs::read_to_string(Self::FILE).unwrap().trim().parse().unwrap();
        Self { before, _lock: lock }
    }

    fn resize(&self, pages: u64) -> io::Result<()> {
        fs::write(Self::FILE, pages.to_string())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let restored = self.resize(self.before);
        assert!(restored.is_ok() || std::thread::panicking(), "{restored:?}");
    }
}

/// Without huge pages it runs on smaller ones, and says what to type; typed, that helps.
#[test]
fn no_huge_pages() {
    in_namespaces(|_| {
        let pool = Pool::lock();
        pool.resize(0).unwrap();
        let home = Home::new();
        let few = ["--huge-pages", "2m", "--max-connections-per-worker", "1024"];
        let flags = [NATIVE, &few].concat();
        let memory = |started: &Value| {
            let workers = started["workers"].as_array().unwrap().iter();
            workers.map(|worker| worker["memory"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let server = Server::start(&home, &flags);
        let started = server.started();
        assert!(memory(&started).iter().all(|memory| !memory.contains(" 2 MiB pages")), "{started:#}");
        let advised: Vec<u64> = started["notes"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|note| {
                note.as_str().unwrap().split_once("sysctl -w vm.nr_hugepages=")?.1.parse().ok()
            })
            .collect();
        server.stop();

        let pages = advised.iter().max().expect("a note that says what to type");
        pool.resize(*pages).unwrap();
        let server = Server::start(&home, &flags);
        let memory = memory(&server.started());
        assert_eq!(memory, ["UMEM 16 MiB on 2 MiB pages, connections on 2 MiB pages"; 2], "{advised:?}");
        server.stop();
    });
}
