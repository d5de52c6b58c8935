//! A server of canvas/1 on quinn, to measure xdp-server beside: see [`peers::quinn_peer`].

use clap::Parser;

/// As xdp-server has it: none of the two is to win by its allocator.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> anyhow::Result<()> {
    peers::quinn_peer::run(&peers::serve::Options::parse())
}
