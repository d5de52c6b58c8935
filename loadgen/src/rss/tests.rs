//! Of configurations, and of the ports chosen by them.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};

use clap::Parser;
use proptest::prelude::*;

use super::config::Hashing;
use super::ports::{Plan, QueueShare, skew};
use super::*;

const KEY: &str = "6d:5a:56:da:25:5b:0e:c2:41:67:25:3d:43:a3:8f:b0:d0:ca:2b:cb:\
                   ae:7b:30:b4:77:cb:2d:a3:80:30:f2:0c:6a:42:b7:3b:be:ac:01:fa";

/// What the server prints for a NIC that tells everything.
fn server_says() -> String {
    format!(
        r#"{{"iface":"eth0","driver":"ice","queues":4,"key":"{KEY}","indirection":[0,1,2,3,0,1,2,3],
            "function":"toeplitz","fields":{{"udp4":["src_ip","dst_ip","src_port","dst_port"],
            "udp6":["src_ip","dst_ip"]}},"tx_selected":false}}"#
    )
}

fn config(json: &str) -> RssConfig {
    serde_json::from_str(json).unwrap()
}

fn steering(json: &str, local: &str) -> Result<Steering, String> {
    let local: IpAddr = local.parse().unwrap();
    let server = SocketAddr::new(if local.is_ipv4() { [10, 0, 0, 1].into() } else { local }, 4433);
    config(json).steering(local, server).map_err(|error| error.to_string())
}

fn hashing(json: &str, local: &str) -> Hashing {
    match steering(json, local) {
        Ok(Steering::Hash(hashing)) => hashing,
        other => panic!("{other:?}"),
    }
}

/// The flags alone, as a command line of their own.
#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    align: AlignArgs,
}

fn alignment(flags: &str) -> Result<Option<Alignment>, String> {
    let flags = Flags::try_parse_from(["loadgen"].into_iter().chain(flags.split_whitespace()));
    let flags = flags.map_err(|error| error.to_string())?;
    Alignment::from_args(&flags.align).map_err(|error| error.to_string())
}

#[test]
fn the_published_flow_arrives_on_the_queue_of_its_hash() {
    let config = config(&server_says());
    let server = "161.142.100.80:1766".parse().unwrap();
    let Steering::Hash(hashing) = config.steering("66.9.149.187".parse().unwrap(), server).unwrap() else {
        panic!("a NIC with a key hashes")
    };
    // Its hash is 0x51ccc178; a table of 8 entries takes 3 bits.
    assert_eq!(hashing.queue(2794), Some(0));
    assert_eq!(hashing.queues(), [0, 1, 2, 3]);
    assert!(hashing.by_port());
}

#[test]
fn what_cannot_be_known_is_said_with_what_to_type() {
    let says = server_says();
    let changed = |from: &str, to: &str| {
        assert!(says.contains(from), "{from}");
        says.replace(from, to)
    };
    let key = format!("\"{KEY}\"");
    for (json, local, expected) in [
        (changed(&key, "null"), "10.0.0.2", "give --rss-key"),
        (changed("[0,1,2,3,0,1,2,3]", "null"), "10.0.0.2", "give --rss-indirection"),
        (changed("\"toeplitz\"", "\"crc32\""), "10.0.0.2", "ethtool -X eth0 hfunc toeplitz"),
        (changed("\"src_port\",", ""), "10.0.0.2", "ethtool -N eth0 rx-flow-hash udp4 sdfn"),
        (changed("\"udp4\"", "\"other\""), "10.0.0.2", "give --rss-fields"),
        (changed(&key, "\"00:11:22:33:44:55:66:77\""), "10.0.0.2", "12 bytes are hashed, which takes 16"),
        ("{}".to_owned(), "10.0.0.2", "the RSS key of IFACE is unknown"),
        (r#"{"tx_selected":true}"#.to_owned(), "10.0.0.2", "no number of \"queues\""),
    ] {
        let error = steering(&json, local).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
    // A function that is not told is the usual one.
    assert!(steering(&changed("\"toeplitz\"", "null"), "10.0.0.2").is_ok());
}

#[test]
fn wrong_files_are_named() {
    for (text, expected) in [
        (r#"{"key":"xyz"}"#, "ethtool -x"),
        (r#"{"indirection":[0,1,2]}"#, "power of two"),
        (r#"{"queues":-1}"#, "-1"),
        ("ring 0", "line 1"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rss.json");
        std::fs::write(&path, text).unwrap();
        let error = RssConfig::read(&path).unwrap_err().to_string();
        assert!(error.contains("rss.json") && error.contains(expected), "{error}");
    }
    let error = RssConfig::read("/nonexistent/rss.json".as_ref()).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/rss.json: No such file"), "{error}");
}

#[test]
fn flags_that_lack_something() {
    assert!(alignment("").unwrap().is_none());
    assert!(alignment("--align-queues").unwrap_err().contains("xdp-server rss --json --iface IFACE"));
    assert!(alignment("--only-queue 1").unwrap_err().contains("--align-queues"));
    assert!(alignment("--align-queues --rss-fields fnsd").unwrap_err().contains("sdfn"));
    assert!(alignment("--align-queues --rss-key 12").unwrap_err().contains("ethtool -x"));
    assert!(alignment("--align-queues --rss-indirection 0,1,2").unwrap_err().contains("power of two"));
}

#[test]
fn flags_make_plans_on_loopback() {
    let server = "127.0.0.1:4433".parse().unwrap();
    let given = format!("--align-queues --rss-key {KEY} --rss-indirection even:3:64");
    let plan = |more: &str, endpoints| {
        let alignment = alignment(&format!("{given} {more}")).unwrap().unwrap();
        alignment.plan(server, endpoints, 2).map_err(|error| error.to_string())
    };
    let shares = plan("", 4).unwrap().shares(7);
    let share = |queue, connections, ports| QueueShare { queue, connections, ports };
    assert_eq!(shares, [share(0, 3, 2), share(1, 2, 2), share(2, 2, 2)]);
    assert_eq!(plan("--only-queue 2", 3).unwrap().shares(7), [share(2, 7, 4)]);
    assert!(plan("--only-queue 3", 3).unwrap_err().contains("over queues 0, 1, 2"));
    let error = plan("--rss-fields sd", 3).unwrap_err();
    assert!(error.contains("127.0.0.1 land on queue") && error.contains("udp4 sdfn"), "{error}");
    // All connections land on one queue anyway: that one can be had.
    let queue = error.split("land on queue ").nth(1).unwrap().split(',').next().unwrap();
    let only = plan(&format!("--rss-fields sd --only-queue {queue}"), 2).unwrap();
    assert_eq!(only.shares(5), [share(queue.parse().unwrap(), 5, 2)]);
    // The sockets' own ports are those that the hash leads to the queue.
    let hashing = RssConfig {
        key: Some(KEY.parse().unwrap()),
        indirection: Some("even:3:64".parse().unwrap()),
        fields: Some(Fields::both(HashInput::AddressesAndPorts)),
        ..RssConfig::default()
    };
    let Ok(Steering::Hash(hashing)) = hashing.steering(server.ip(), server) else { panic!("it hashes") };
    let sockets = plan("", 6).unwrap().into_sockets();
    let queues: Vec<_> =
        sockets.iter().map(|socket| hashing.queue(socket.local_addr().unwrap().port())).collect();
    assert_eq!(queues, [0, 1, 2, 0, 1, 2].map(Some));
}

#[test]
fn processes_go_on_where_others_end() {
    let server = "127.0.0.1:4433".parse().unwrap();
    let given = format!("--align-queues --rss-key {KEY} --rss-indirection even:3:64 --rss-fields sdfn");
    let alignment = alignment(&given).unwrap().unwrap();
    // As a process is told.
    let told: Alignment = serde_json::from_str(&serde_json::to_string(&alignment).unwrap()).unwrap();
    let mut connections = BTreeMap::new();
    for before in [0, 4, 8] {
        for share in told.clone().after(before).plan(server, 3, 1).unwrap().shares(4) {
            *connections.entry(share.queue).or_default() += share.connections;
        }
    }
    assert_eq!(connections, BTreeMap::from([(0, 4), (1, 4), (2, 4)]));
}

#[test]
fn ports_that_run_out_are_said() {
    let hashing = hashing(&server_says(), "10.0.0.2");
    let choose = |candidates: std::ops::Range<u16>| {
        Plan::choose(hashing.queues(), 5, candidates, |port| Ok(hashing.queue(port)), Ok)
    };
    assert_eq!(choose(40_000..41_000).unwrap().endpoints(), 20);
    let error = choose(40_000..40_012).unwrap_err().to_string();
    assert!(error.contains("5 are wanted") && error.contains("ip_local_port_range"), "{error}");
    let refused = |_| Err::<u16, _>(io::Error::from(io::ErrorKind::PermissionDenied));
    let error = Plan::choose(vec![0], 1, 1..2, |_| Ok(Some(0)), refused).unwrap_err();
    assert!(matches!(error, AlignError::Bind(_)), "{error}");
}

#[test]
fn skew_is_the_busiest_over_the_mean() {
    assert_eq!(skew(&[5.0; 4]), 1.0);
    assert_eq!(skew(&[20.0, 0.0, 0.0, 0.0]), 4.0);
    assert_eq!(skew(&[12.0, 10.0, 8.0]), 1.2);
    assert_eq!((skew(&[]), skew(&[0.0; 2])), (1.0, 1.0));
}

proptest! {
    // Each case hashes all ports.
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever key, table and threads, and though every third port is taken: clients that are dealt out in
    /// turn, also by threads, land on every queue equally often by the hash, to within one.
    #[test]
    fn every_queue_gets_its_share(
        key in proptest::collection::vec(any::<u8>(), 40..=52),
        queues in 1u16..=12,
        (endpoints, threads) in (1usize..=40, 1usize..=6),
        clients in 0usize..=500,
        v6: bool,
    ) {
        let key: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        let entries: Vec<_> = (0..queues).cycle().take(64).collect();
        let json = serde_json::json!({ "key": key, "indirection": entries, "fields": {
            "udp4": ["src_port", "dst_port", "src_ip", "dst_ip"],
            "udp6": ["src_ip", "dst_ip", "src_port", "dst_port"],
        }});
        let hashing = hashing(&json.to_string(), if v6 { "fd00::2" } else { "10.0.0.2" });
        // Bad luck with a key (all zero, say) may make queues unreachable; then that is said.
        let reachable: BTreeMap<_, _> = (1024..=65535).map(|port| (hashing.queue(port), ())).collect();
        let tried = Cell::new(0);
        let bind = |port: u16| {
            tried.set(tried.get() + 1);
            if tried.get() % 3 == 0 { Err(io::ErrorKind::AddrInUse.into()) } else { Ok(port) }
        };
        let per_queue = per_queue(endpoints, hashing.queues().len(), threads);
        let queue_of = |port| Ok(hashing.queue(port));
        let chosen = Plan::choose(hashing.queues(), per_queue, 1024..=65535, queue_of, bind);
        if reachable.len() < usize::from(queues) {
            let said = matches!(chosen, Err(AlignError::TooFewPorts { .. }));
            prop_assert!(said);
            return Ok(());
        }
        let plan = chosen.unwrap();
        prop_assert!(plan.endpoints() >= endpoints && plan.endpoints() % threads == 0);
        let shares = plan.shares(clients);
        let ports = plan.into_sockets();
        let mut connections = vec![0; usize::from(queues)];
        for client in 0..clients {
            // As threads do it: each has every so-maniest socket, and deals out its clients to them in turn.
            let (thread, turn) = (client % threads, client / threads);
            let own: Vec<_> = ports.iter().skip(thread).step_by(threads).collect();
            let queue = hashing.queue(*own[turn % own.len()]).unwrap();
            connections[usize::from(queue)] += 1;
        }
        prop_assert_eq!(&connections, &shares.iter().map(|share| share.connections).collect::<Vec<_>>());
        let (most, least) = (connections.iter().max().unwrap(), connections.iter().min().unwrap());
        prop_assert!(most - least <= 1, "{connections:?}");
        let mut distinct = ports.clone();
        distinct.sort_unstable();
        distinct.dedup();
        prop_assert_eq!(distinct.len(), ports.len());
    }
}
