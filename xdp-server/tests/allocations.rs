//! No allocation for a message: what the worker allocates in steady state is what quiche does, and nothing of
//! its own. An own test program, for its allocator counts.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use xdp_server::bench::Progress;
use xdp_server::bench::message::Messages;
use xdp_server::bench::rig::Identities;

/// Counts this thread's allocations, by Rust code: BoringSSL's are quiche's, and not on this path.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    ALLOCATIONS.with(|allocations| allocations.set(allocations.get() + 1));
}

// SAFETY: everything is passed on to the system's allocator as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise is the one that is asked for here.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: as above, and `place` came from `System`.
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(place, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations that `what` makes.
fn allocations(what: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    what();
    ALLOCATIONS.get() - before
}

/// So many that none sends its 24th acknowledgement: quiche adds a PING to that, and allocates for it.
const CONNECTIONS: u32 = 250;

const ROUND: usize = 4000;

/// Allocations that a round may have besides: those lists, of a few clients that sent more than the others or
/// less. It is less than one for each turn of the worker, let alone each acknowledgement or message.
const GROWTH: u64 = 40;

/// Rounds that come before: after two acknowledgements in each, quiche's lists of packets in flight have
/// grown from 8 to 16 entries, and are not full again in the round that counts. (Nobody acknowledges anything
/// here.)
const WARM_UP: usize = 5;

#[test]
fn the_worker_allocates_nothing_for_a_message() {
    let identities = Identities::new().unwrap();
    let rounds = (WARM_UP + 1, ROUND);
    // So fast that acknowledgements are made for packets, none by a timer.
    let rate = 100_000_000;
    let mut messages = Messages::new(&identities, CONNECTIONS, rounds, rate, &Progress::default()).unwrap();
    let everybody: Vec<u32> = (0..CONNECTIONS).collect();
    for _ in 0..WARM_UP {
        messages.worker();
        messages.rig().apply();
        messages.floor();
        messages.acknowledge(&everybody);
    }
    let sent_before = messages.rig().packets_sent();
    let worker = allocations(|| messages.worker());
    let worker_acks = messages.rig().packets_sent() - sent_before;
    let receiving = allocations(|| {
        messages.floor();
    });
    let mut acks = 0;
    let acknowledging = allocations(|| acks = messages.acknowledge(&everybody));
    messages.check().unwrap();

    assert_eq!(acks, u64::from(CONNECTIONS), "QUIC alone acknowledges what it received of each client");
    let quiche = receiving + acknowledging.div_ceil(acks) * worker_acks;
    println!(
        "{ROUND} messages, {worker_acks} acknowledgements: the worker made {worker} allocations; quiche \
         alone {receiving} to receive as many, and {acknowledging} to acknowledge {acks} times: {quiche}"
    );
    assert!((1..=ROUND as u64 / 8).contains(&worker_acks), "{worker_acks} acknowledgements");
    let own = worker.saturating_sub(quiche);
    assert!(own < GROWTH, "the worker made {own} allocations of its own");
}
