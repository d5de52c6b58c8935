//! The two programs against each other, end to end, in network namespaces: the server as users run it, on
//! every backend, and the load generator as its clients.
//!
//! ```text
//!   client namespace                           server namespace
//!     loadgen ── clnt0 ◄── veth, queues ────► serv0 ── XDP program ── AF_XDP ──┐
//!                                                           └─ pass ── socket ─┤ xdp-server
//!                                        loadgen ── lo ─────────────── socket ─┘
//! ```
//!
//! | file | question |
//! |---|---|
//! | `alignment` | do connections land on the queues that the load generator chose for them? |
//! | `scenario` | with loss, moves and a drain, on every backend: is every canvas the same, to the byte? |
//! | `canvases` | and by all other ways that packets can take? |
//! | `lifecycle` | does it end cleanly, also when killed, and keep out of another server's way? |
//! | `newcomers` | is everything that a newcomer gets wrong answered with what to type? |
//!
//! Needs root, and fails without. Namespaces belong to each test's own thread, so that nothing outside of
//! them is touched and nothing is left, however a test ends. One test runs at a time: they share the
//! machine's cores.

#[path = "namespaces/alignment.rs"]
mod alignment;
#[path = "namespaces/canvases.rs"]
mod canvases;
#[path = "net_xdp/lab.rs"]
#[allow(dead_code, reason = "shared with the tests of the AF_XDP backend, which use more of it")]
mod lab;
#[path = "namespaces/lifecycle.rs"]
mod lifecycle;
#[path = "namespaces/newcomers.rs"]
mod newcomers;
#[path = "namespaces/programs.rs"]
mod programs;
#[path = "namespaces/scenario.rs"]
mod scenario;

use lab::Lab;
use programs::eventually;
use serde_json::Value;

/// The server's addresses in its namespace.
const V4: &str = "https://10.77.0.1:4433";
const V6: &str = "https://[fd77::1]:4433";

/// Flags of a server on each backend.
const NATIVE: &[&str] =
    &["--iface", "serv0", "--queues", "2", "--backend", "xdp", "--xdp-mode", "copy", "--listen", "[::]:4433"];
const GENERIC: &[&str] = &["--iface", "serv0", "--queues", "2", "--backend", "xdp", "--xdp-mode", "generic"];
const SOCKETS: &[&str] = &["--queues", "2", "--backend", "socket"];

/// Runs `test` in two namespaces of its own, ready for a server and its clients.
fn in_namespaces(test: impl FnOnce(&Lab) + Send) {
    with_queues(2, test);
}

/// The same with this many queues on each end of the cable.
fn with_queues(queues: usize, test: impl FnOnce(&Lab) + Send) {
    // Before any server starts to wait for it.
    programs::loadgen();
    Lab::with_queues(queues, |lab| {
        lab.server("ip link set dev lo up");
        // veth completes no checksums for AF_XDP, nor does it split what the sender left in one piece.
        lab.client("ethtool -K clnt0 tx off");
        // On a busy machine the kernel takes its time to notice the carrier, and drops what is sent until
        // then.
        let up = |link: String| link.contains(" UP ").then_some(());
        eventually("serv0 is up", || up(lab.server("ip -brief link show dev serv0")));
        eventually("clnt0 is up", || up(lab.client("ip -brief link show dev clnt0")));
        test(lab);
    });
}

/// The XDP program on the server's interface, as `ip` shows it; null when there is none.
fn attached(lab: &Lab) -> Value {
    let links: Value = serde_json::from_str(&lab.server("ip -j -d link show dev serv0")).unwrap();
    links[0]["xdp"].clone()
}

/// The sum of one counter over a summary's workers.
fn total(summary: &Value, counter: &str) -> u64 {
    let workers = summary["workers"].as_array().unwrap();
    workers.iter().map(|worker| worker[counter].as_u64().unwrap()).sum()
}
