//! `xdp-server doctor` on this host, as root and not: each trouble is made, found, and mended by typing the very
//! command that its row names, or giving the very flags.
//!
//! Every test has a network of its own: a namespace with one interface of four queues, whose other end is in
//! it, too.
//!
//! ```text
//!   namespace of the test's thread:   serv0 (4 queues, 10.78.0.1/24)  ◄── veth ──►  clnt0
//! ```
//!
//! What is not of a namespace (huge pages, net.core.*) is put back as it was.

#[path = "doctor/host.rs"]
mod host;

use host::{Copy, Doctor, Network, Seen, binary, open_directory, sh, type_script};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};

/// The configuration of most tests: small tables, on whatever pages, so that nothing depends on the host's
/// memory.
const SMALL: &str = "--iface serv0 --max-connections-per-worker 64 --huge-pages thp";

#[test]
fn all_is_well_on_a_veth_made_for_it() {
    Network::run(|| {
        let seen = Doctor::root().run(&format!("{SMALL} --queues 4 --backend xdp --xdp-mode copy"));
        for check in
            ["kernel", "AF_XDP", "privileges", "locked memory", "interface", "MTU", "queues", "RSS spread"]
        {
            assert_eq!(seen.status(check), "ok", "{seen}");
        }
        assert_eq!((seen.status("driver"), seen.found("driver")), ("ok", "veth".into()));
        assert_eq!((seen.status("XDP mode"), seen.status("XDP program")), ("ok", "ok"), "{seen}");
        assert_eq!((seen.status("GRO forwarding"), seen.status("IRQ affinity")), ("ok", "ok"), "{seen}");
        assert!(!seen.has("fail"), "{seen}");
        assert_eq!(seen.exit, if seen.has("warn") { 1 } else { 0 }, "{seen}");
        // Nothing was left behind: the very same again, and no program on the interface.
        assert_eq!(sh("ip -d link show serv0 | grep -c xdp || true").trim(), "0");
    });
}

#[test]
fn an_interface_that_is_down_is_brought_up() {
    Network::run(|| {
        sh("ip link set dev serv0 down");
        let seen = Doctor::root().mend("interface", &format!("{SMALL} --queues 2"), "fail");
        assert_eq!(seen, "ip link set dev serv0 up");
    });
}

#[test]
fn an_interface_without_an_address_gets_one() {
    Network::run(|| {
        sh("ip -4 address flush dev serv0");
        let flags = format!("{SMALL} --queues 4 --listen 0.0.0.0:4433 --backend xdp");
        Doctor::root().mend("addresses", &flags, "fail");
    });
}

#[test]
fn queues_are_added_and_taken_away() {
    Network::run(|| {
        sh("ethtool -L serv0 rx 2 tx 2");
        assert_eq!(
            Doctor::root().mend("queues", &format!("{SMALL} --queues 4"), "fail"),
            "ethtool -L serv0 rx 4 tx 4"
        );
        let typed = Doctor::root().mend("RSS spread", &format!("{SMALL} --queues 3"), "warn");
        assert_eq!(typed, "ethtool -L serv0 rx 3 tx 3");
        // More than the device was made with.
        let given = Doctor::root().mend("queues", &format!("{SMALL} --queues 9"), "fail");
        assert_eq!(given, "--queues 3");
    });
}

#[test]
fn merging_of_packets_is_switched_off() {
    Network::run(|| {
        sh("ethtool -K serv0 rx-udp-gro-forwarding on");
        let flags = format!("{SMALL} --queues 4");
        assert_eq!(Doctor::root().run(&flags).status("GRO forwarding"), "warn");
        Doctor::root().mend("GRO forwarding", &format!("{flags} --backend xdp"), "fail");
        assert!(sh("ethtool -k serv0").contains("rx-udp-gro-forwarding: off"));

        sh("ethtool -K serv0 rx-udp-gro-forwarding on");
        by_script("GRO forwarding", &flags, "scripts/tune_server.sh apply --iface serv0 --only gro");
    });
}

/// Types the script that is offered for `check`, sees that it is this one, and that it turns the row to ok.
#[track_caller]
fn by_script(check: &str, flags: &str, script: &str) {
    let seen = Doctor::root().run(flags);
    assert_eq!(seen.status(check), "warn", "{seen}");
    let record = open_directory();
    let state = format!("--state-file {}/state", record.path().display());
    assert_eq!(type_script(&seen, check, &state), script);
    let seen = Doctor::root().run(flags);
    assert_eq!(seen.status(check), "ok", "{seen}");
}

#[test]
fn mtus_are_made_to_fit() {
    Network::run(|| {
        for mtu in [9000, 1000] {
            sh(&format!("ip link set dev serv0 mtu {mtu}"));
            Doctor::root().mend("MTU", &format!("{SMALL} --queues 4"), "warn");
        }
    });
}

#[test]
fn interrupts_are_deferred_for_busy_polling() {
    Network::run(|| {
        let flags = format!("{SMALL} --queues 1 --poll busy");
        Doctor::root().mend("IRQ deferral", &flags, "warn");
        let deferral = || sh("cd /sys/class/net/serv0 && cat napi_defer_hard_irqs gro_flush_timeout");
        assert_eq!(deferral(), "2\n200000\n");

        sh("cd /sys/class/net/serv0 && echo 0 >napi_defer_hard_irqs && echo 0 >gro_flush_timeout");
        by_script("IRQ deferral", &flags, "scripts/tune_server.sh apply --iface serv0 --only napi");
        assert_eq!(deferral(), "2\n200000\n");
    });
}

#[test]
fn a_mode_that_the_driver_has_not_is_replaced() {
    Network::run(|| {
        let flags = format!("{SMALL} --queues 4 --backend xdp --xdp-mode zerocopy");
        assert_eq!(Doctor::root().mend("XDP mode", &flags, "fail"), "--xdp-mode copy");
    });
}

#[test]
fn interfaces_that_are_missing_or_in_another_namespace_are_told_apart() {
    Network::run(|| {
        let seen = Doctor::root().run("--iface eth77");
        assert_eq!((seen.status("interface"), seen.exit), ("fail", 2), "{seen}");
        assert!(seen.found("interface").contains("serv0"), "{seen}");
        // As `nsenter --net` leaves it: the namespace's network with the host's /sys.
        sh("umount /sys");
        let seen = Doctor::root().run(&format!("{SMALL} --queues 4"));
        assert_eq!(seen.status("interface"), "fail", "{seen}");
        let typed = seen.remedy("interface");
        assert!(typed.starts_with("unshare --mount sh -c"), "{typed}");
        let output = Command::new("sh").args(["-c", &typed]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("interface               ok"), "{text}");
    });
}

#[test]
fn a_server_that_is_running_is_in_the_way_twice() {
    Network::run(|| {
        let state = tempfile::tempdir().unwrap();
        let mut server = Command::new(binary())
            .args(format!("{SMALL} --queues 2 --backend xdp --xdp-mode copy --json --quiet").split(' '))
            .arg("--state")
            .arg(state.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Its first line says that it serves.
        let mut line = String::new();
        BufReader::new(server.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("\"start\""), "{line}");

        let flags = format!("{SMALL} --queues 2 --backend xdp");
        let given = Doctor::root().mend("port", &flags, "fail");
        assert_eq!(given, "--listen [::]:4434");
        let seen = Doctor::root().run(&flags);
        assert_eq!(seen.status("XDP program"), "fail", "{seen}");
        assert_eq!(seen.remedy("XDP program"), format!("kill {}", server.id()), "{seen}");
        sh(&seen.remedy("XDP program"));
        assert!(server.wait().unwrap().success(), "it drains on SIGTERM");
        let seen = Doctor::root().run(&flags);
        assert_eq!((seen.status("XDP program"), seen.status("port")), ("ok", "ok"), "{seen}");
    });
}

#[test]
fn who_may_not_is_told_what_is_lacking_and_given_it() {
    Network::run(|| {
        let copy = Copy::new();
        let doctor = Doctor::nobody(&copy);
        let flags = format!("{SMALL} --queues 4 --backend xdp");

        let seen = doctor.run(&flags);
        assert_eq!((seen.status("privileges"), seen.status("AF_XDP"), seen.exit), ("fail", "-", 2), "{seen}");
        for name in ["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_BPF", "CAP_PERFMON", "CAP_IPC_LOCK"] {
            assert!(seen.found("privileges").contains(name), "{seen}");
        }
        assert_eq!(doctor.run(SMALL).status("privileges"), "warn", "sockets do without");
        assert_eq!(doctor.run(&format!("{SMALL} --backend socket")).status("privileges"), "ok");

        let typed = doctor.mend("privileges", &flags, "fail");
        assert!(typed.starts_with("sudo setcap cap_net_admin,"), "{typed}");
        let seen = doctor.run(&flags);
        assert_eq!((seen.status("AF_XDP"), seen.status("locked memory")), ("ok", "ok"), "{seen}");
    });
}

#[test]
fn a_state_directory_is_made_for_its_user() {
    Network::run(|| {
        let (copy, directory) = (Copy::new(), open_directory());
        let flags = format!("--huge-pages thp --state {}/state", directory.path().display());
        let typed = Doctor::nobody(&copy).mend("state directory", &flags, "fail");
        assert!(typed.starts_with("sudo install -d -m 700 -o 65534 "), "{typed}");
        // One that is there, and another's.
        sh(&format!("chown 0 {}/state", directory.path().display()));
        let typed = Doctor::nobody(&copy).mend("state directory", &flags, "fail");
        assert!(typed.starts_with("sudo chown 65534 "), "{typed}");
    });
}

#[test]
fn io_uring_behind_a_filter_is_left_for_sockets() {
    Network::run(|| {
        let doctor = Doctor::root().without_io_uring();
        let seen = doctor.run("--huge-pages thp");
        assert_eq!(seen.status("io_uring"), "warn", "{seen}");
        assert!(seen.found("io_uring").contains("seccomp"), "{seen}");
        assert_eq!(seen.remedy("io_uring"), "--backend socket");
        assert_eq!(doctor.run("--huge-pages thp --backend socket").status("io_uring"), "-");
    });
}

/// In the host's own network: elsewhere these limits are those of another.
#[test]
fn socket_buffers_get_a_higher_limit() {
    assert_root();
    let copy = Copy::new();
    let _turn = Turn::of("/proc/sys/net/core/rmem_max");
    for (check, file) in
        [("receive buffer", "/proc/sys/net/core/rmem_max"), ("send buffer", "/proc/sys/net/core/wmem_max")]
    {
        let _kept = Kept::of(file);
        fs::write(file, "212992").unwrap();
        let flags = "--huge-pages thp --listen [::]:47113";
        assert_eq!(Doctor::root().run(flags).status(check), "ok", "CAP_NET_ADMIN goes beyond it");
        let typed = Doctor::nobody(&copy).mend(check, flags, "warn");
        assert!(typed.starts_with("sudo sysctl -w net.core."), "{typed}");
        assert_eq!(fs::read_to_string(file).unwrap().trim(), "134217728");
    }
}

/// All that matters at once: as root and not, with huge pages and without.
#[test]
fn root_and_others_with_huge_pages_and_without_are_told_the_same() {
    Network::run(|| {
        let file = "/proc/sys/vm/nr_hugepages";
        let turn = Turn::of(file);
        let pool = || fs::read_to_string(file).unwrap().trim().parse::<usize>().unwrap();
        // Without them: tables that are larger than what is free, whatever that is.
        let flags = |limit: u32| format!("--iface serv0 --queues 4 --max-connections-per-worker {limit}");
        let mut larger =
            std::iter::successors(Some(64), |limit| Some(limit * 2)).take_while(|limit| *limit <= 65_536);
        let flags = larger
            .find(|limit| Doctor::root().run(&flags(*limit)).status("huge pages") == "warn")
            .map(flags)
            .unwrap_or_else(|| panic!("{} pages of 2 MiB are more than any table here takes", pool()));
        let before = pool();
        let kept = Kept::of(file);
        let copy = Copy::new();
        let (root, nobody) = (Doctor::root(), Doctor::nobody(&copy));
        let look = || {
            let (seen, other) = (root.run(&flags), nobody.run(&flags));
            as_they_may(&seen, &other);
            (seen, other)
        };
        // Other programs may take pages between a look and the next: then what is typed is a larger number.
        let mend = |by: &dyn Fn(&Seen)| {
            let mended = (0..10).any(|_| {
                let (seen, other) = look();
                let ok = [&seen, &other].iter().all(|seen| seen.status("huge pages") == "ok");
                if seen.status("huge pages") == "warn" {
                    by(&seen);
                }
                ok
            });
            assert!(mended, "{}", root.run(&flags));
        };

        let (seen, other) = look();
        assert_eq!(
            (seen.status("huge pages"), other.status("huge pages")),
            ("warn", "warn"),
            "{seen}{other}"
        );
        for (seen, sudo) in [(&seen, ""), (&other, "sudo ")] {
            let need = &seen.json["huge_pages"];
            let number = |name: &str| need[name].as_u64().unwrap() as usize;
            assert_eq!(number("total"), before, "{seen}");
            assert_eq!(number("nr_hugepages"), before + number("needed") - number("free"), "{seen}");
            let command = format!("{sudo}sysctl -w vm.nr_hugepages={}", number("nr_hugepages"));
            assert_eq!(seen.remedy("huge pages"), command);
        }
        mend(&|seen| drop(sh(&seen.remedy("huge pages"))));

        // The script takes its own turn.
        fs::write(file, before.to_string()).unwrap();
        drop(turn);
        let record = open_directory();
        let more = format!("--state-file {}/state --server {}", record.path().display(), binary().display());
        mend(&|seen| {
            let typed = type_script(seen, "huge pages", &more);
            assert!(typed.starts_with("scripts/hugepages.sh --"), "{typed}");
        });

        // With them: the server gets what the doctor counted, and has nothing to say of huge pages.
        let _turn = Turn::of(file);
        let small = "--iface serv0 --queues 4 --max-connections-per-worker 64 --backend xdp --duration 1";
        let state = tempfile::tempdir().unwrap();
        let server =
            Command::new(binary()).args(small.split(' ')).arg("--state").arg(state.path()).output().unwrap();
        let text = String::from_utf8_lossy(&server.stdout).into_owned();
        assert!(server.status.success() && text.contains("on 2 MiB pages"), "{text}");
        assert!(!text.contains("nr_hugepages"), "{text}");
        drop(kept);
    });
}

/// What holds of any host for root, and for somebody without rights there: who may do less is told so, in the
/// rows that are about it; all else is the same; and whatever is wrong has a remedy, without sudo for root.
#[track_caller]
fn as_they_may(root: &Seen, nobody: &Seen) {
    const ABOUT_RIGHTS: [&str; 9] = [
        "AF_XDP",
        "privileges",
        "locked memory",
        "XDP mode",
        "XDP program",
        "receive buffer",
        "send buffer",
        "conntrack",
        "state directory",
    ];
    for seen in [root, nobody] {
        for row in seen.json["checks"].as_array().unwrap() {
            let trouble = row["status"] == "warn" || row["status"] == "fail";
            let remedy = row.get("type").or(row.get("give")).map(|remedy| remedy.as_str().unwrap());
            assert_eq!(trouble, remedy.is_some(), "{row}");
            let sudo = [remedy, row["or"].as_str()].into_iter().flatten().any(|text| text.contains("sudo "));
            assert!(!sudo || std::ptr::eq(seen, nobody), "{row}");
        }
        let worst = if seen.has("fail") { 2 } else { i32::from(seen.has("warn")) };
        assert_eq!(seen.exit, worst, "{seen}");
    }
    assert!(!root.has("fail"), "{root}");
    let [ours, theirs] = [root, nobody].map(|seen| seen.json["checks"].as_array().unwrap());
    assert_eq!(ours.len(), theirs.len(), "{root}{nobody}");
    for (our, their) in ours.iter().zip(theirs) {
        let check = our["check"].as_str().unwrap();
        assert_eq!(our["check"], their["check"]);
        if !ABOUT_RIGHTS.contains(&check) {
            assert_eq!(our["status"], their["status"], "{check}: {root}{nobody}");
        }
    }
}

/// This machine as it is, in its own network, without an interface: the server runs, whoever starts it.
#[test]
fn this_machine_can_serve_whoever_asks() {
    assert_root();
    let copy = Copy::new();
    let _turn = Turn::of("/proc/sys/net/core/rmem_max");
    for pages in ["auto", "thp"] {
        let flags = format!("--huge-pages {pages} --listen [::]:47114");
        let (root, nobody) =
            (Doctor::root().run(&flags), Doctor::nobody(&copy).run(&format!("{flags} --state /tmp/x")));
        as_they_may(&root, &nobody);
        for seen in [&root, &nobody] {
            assert_ne!(seen.exit, 2, "{seen}");
            for check in ["kernel", "privileges", "port"] {
                assert_eq!(seen.status(check), "ok", "{seen}");
            }
            assert_eq!(seen.status("interface"), "-", "{seen}");
        }
    }
}

#[test]
fn text_is_for_people_and_json_for_scripts() {
    Network::run(|| {
        let run = |more: &str| {
            let flags = format!("{SMALL} --queues 9 {more}");
            let output =
                Command::new(binary()).arg("doctor").args(flags.split_whitespace()).output().unwrap();
            assert_eq!(output.status.code(), Some(2));
            [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap())
        };
        let [text, errors] = run("");
        assert_eq!(errors, "");
        assert!(!text.contains('\x1b'), "no colours in a pipe");
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
        assert!(
            text.contains("\n    give:   --queues 4\n") && text.contains(" fail: xdp-server cannot run"),
            "{text}"
        );
        let [json, same_text] = run("--json");
        assert_eq!((json.lines().count(), same_text), (1, text));
        let [text, _] = run("--quiet");
        assert!(text.contains("queues") && !text.contains("kernel"), "{text}");
        let [json, text] = run("--quiet --json=true");
        assert!(json.starts_with('{') && text.contains("queues") && !text.contains("kernel"));
        // Settings come from the environment, too.
        let output = Command::new(binary())
            .args(["--json", "--quiet", "doctor"])
            .env("XDP_SERVER_IFACE", "serv0")
            .env("XDP_SERVER_QUEUES", "9")
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8(output.stdout).unwrap().contains("\"give\":\"--queues 4\""));
    });
}

#[test]
fn rss_tells_how_a_veth_chooses_queues() {
    Network::run(|| {
        let run = |flags: &str| {
            let output = Command::new(binary()).arg("rss").args(flags.split(' ')).output().unwrap();
            let [text, errors] =
                [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
            (output.status.code().unwrap(), text, errors)
        };
        sh("ethtool -L serv0 rx 3 tx 4");
        let (code, json, errors) = run("--iface serv0 --json");
        assert_eq!((code, errors.as_str()), (0, ""), "{json}");
        let expected = serde_json::json!({
            "iface": "serv0", "driver": "veth", "queues": 3, "key": null, "indirection": null,
            "function": null, "fields": { "udp4": null, "udp6": null }, "tx_selected": true,
        });
        let got: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(got, expected);
        let (code, text, _) = run("--iface serv0");
        assert_eq!(code, 0);
        assert!(text.contains("serv0 (veth)") && text.contains("3 receive"), "{text}");
        assert!(text.contains("transmit queue i to receive queue i"), "{text}");
        let (code, text, errors) = run("--iface eth77");
        assert_eq!((code, text.as_str()), (2, ""));
        assert!(errors.contains("no interface eth77") && errors.contains("serv0"), "{errors}");
    });
}

fn assert_root() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test changes the host's settings: run it as root (sudo -E)"
    );
}

/// The right to change a setting that all processes share, by the lock that the other tests take.
struct Turn(#[expect(dead_code, reason = "closing it gives the turn back")] File);

impl Turn {
    fn of(file: &str) -> Self {
        let file = File::open(file).unwrap();
        // SAFETY: the descriptor is open.
        assert_eq!(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) }, 0);
        Self(file)
    }
}

/// A setting that is put back as it was.
struct Kept {
    file: String,
    value: String,
}

impl Kept {
    fn of(file: &str) -> Self {
        Self { file: file.to_owned(), value: fs::read_to_string(file).unwrap() }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        fs::write(&self.file, self.value.trim()).unwrap();
    }
}
