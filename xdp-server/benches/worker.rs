//! A round of messages through a whole worker, and beside it through QUIC alone: what the `message` case of
//! `xdp-server bench` measures, under a benchmark runner.

use divan::Bencher;
use divan::counter::ItemsCount;
use xdp_server::bench::Progress;
use xdp_server::bench::message::Messages;
use xdp_server::bench::rig::Identities;

/// The program's, but for its settings.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Rounds that are measured: each consumes packets that were prepared for it.
const ROUNDS: u32 = 20;

/// Messages of a round.
const ROUND: usize = 4000;

/// Messages a second by the worker's clock: as `xdp-server bench` has it.
const RATE: u32 = 500_000;

fn main() {
    divan::main();
}

fn messages(connections: u32) -> Messages {
    let identities = Identities::new().expect("a temporary directory");
    let rounds = (ROUNDS as usize, ROUND);
    Messages::new(&identities, connections, rounds, RATE, &Progress::default()).expect("memory")
}

#[divan::bench(args = [100, 1000], sample_count = ROUNDS, sample_size = 1)]
fn whole_worker(bencher: Bencher<'_, '_>, connections: u32) {
    let mut messages = messages(connections);
    bencher.counter(ItemsCount::new(ROUND)).bench_local(|| messages.worker());
}

#[divan::bench(args = [100, 1000], sample_count = ROUNDS, sample_size = 1)]
fn quic_alone(bencher: Bencher<'_, '_>, connections: u32) {
    let mut messages = messages(connections);
    bencher.counter(ItemsCount::new(ROUND)).bench_local(|| messages.floor().len());
}
