//! `xdp-server`: see the library of the same name, and `--help`.

use std::process::ExitCode;

use xdp_server::cli::Command;

/// One allocator for Rust and, being unprefixed, for C: BoringSSL's state of each connection comes from here
/// too.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// jemalloc's settings, read by it at its first call. What a storm of connections used goes back after ten
/// seconds, by a thread of jemalloc's that `server::run` starts.
///
/// No `thp:always`: the kernel's khugepaged fills the holes that jemalloc has given back with huge pages of
/// zeros, and a server that 3,000 clients had left went from 31 back to 46 MB within half a minute, where 23
/// MB are left without. The hot part of a connection is on huge pages all the same, in the connection table.
#[expect(unsafe_code, reason = "the symbol is jemalloc's documented way to be configured at build time")]
// SAFETY: the name is jemalloc's own, and nothing else in the program defines it.
#[unsafe(export_name = "malloc_conf")]
pub static MALLOC_CONF: &std::ffi::CStr = c"dirty_decay_ms:10000,muzzy_decay_ms:0";

fn main() -> ExitCode {
    let settings = match xdp_server::cli::parse() {
        Ok(Command::Serve(settings)) => settings,
        Ok(Command::Doctor(settings)) => return xdp_server::doctor::run(&settings),
        Ok(Command::Bench(settings)) => return xdp_server::bench::run(&settings),
        Ok(Command::Rss { iface, json }) => return xdp_server::rss::run(&iface, json),
        Err(error) => return error.report(),
    };
    match xdp_server::server::run(&settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
