//! The parts of the packet path, one by one, with everything they touch in the cache.

use canvas::codec::datagram::ClientDatagram;
use canvas::codec::{Entry, Pixel, Pixels};
use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use hugepages::{PageKind, Pages};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use xdp_server::net::frame::{self, MAX_HEADERS};
use xdp_server::net::{Ethernet, Link, Path, checksum};
use xdp_server::quic::cid::{CidCodec, Route};
use xdp_server::quic::header;
use xdp_server::quic::table::ConnectionTable;
use xdp_server::quic::wheel::TimerWheel;

/// The program's, but for its settings.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Length of a packet with one PAINT datagram of one pixel, in bytes.
const MESSAGE: usize = 49;

/// Length of a full packet, in bytes.
const FULL: usize = 1200;

fn main() {
    divan::main();
}

fn path() -> Path {
    let mac = |last| [2, 0, 0, 0, 0, last];
    let at = |last, port| SocketAddr::from(([10, 0, 0, last], port));
    let link = Link::Ethernet(Ethernet { local: mac(1), peer: mac(2), vlan: None });
    Path { local: at(1, 4433), peer: at(2, 50_000), link }
}

fn frame_of(len: usize) -> Vec<u8> {
    let headers = frame::headers_len(&path()).expect("an Ethernet path");
    let mut bytes = vec![7; headers + len];
    frame::write_headers(&mut bytes, &path()).expect("it fits");
    bytes
}

#[divan::bench]
fn frame_parse(bencher: Bencher<'_, '_>) {
    let bytes = frame_of(MESSAGE);
    bencher.bench_local(|| frame::parse(black_box(&bytes)));
}

#[divan::bench(args = [MESSAGE, FULL])]
fn frame_build(bencher: Bencher<'_, '_>, len: usize) {
    let (mut bytes, path) = (frame_of(len), path());
    assert!(bytes.len() <= MAX_HEADERS + FULL);
    bencher.bench_local(|| frame::write_headers(black_box(&mut bytes), &path));
}

#[divan::bench(args = [MESSAGE, FULL])]
fn checksum(bencher: Bencher<'_, '_>, len: usize) {
    let bytes = vec![0xa5; len];
    bencher.counter(BytesCount::new(len)).bench_local(|| checksum::finish(checksum::sum(black_box(&bytes))));
}

#[divan::bench]
fn quic_header_parse(bencher: Bencher<'_, '_>) {
    let packet = [0x40; MESSAGE];
    bencher.bench_local(|| header::parse(black_box(&packet)).is_some());
}

#[divan::bench]
fn connection_id_decode(bencher: Bencher<'_, '_>) {
    let codec = CidCodec::new(&[3; 16]);
    let id = codec.encode(&Route { worker: 0, slot: 77, generation: 5, serial: 1 });
    bencher.bench_local(|| codec.decode(black_box(&id)));
}

#[divan::bench(args = [1000, 60_000], sample_size = 10_000)]
fn table_lookup(bencher: Bencher<'_, '_>, connections: u32) {
    let pages = Pages::Exactly(PageKind::Plain);
    // As far apart as connections are, so that a large table is not in the cache.
    let mut table = ConnectionTable::new(connections, pages, None, 0).expect("memory");
    for n in 0..connections {
        table.insert_with(|_, _| Some([u64::from(n); 128])).expect("a free slot");
    }
    let mut slot = 0;
    bencher.bench_local(|| {
        slot = (slot + 7919) % connections; // a prime: all slots, none beside the last
        table.find(slot, 0).map(|value| value[0])
    });
}

/// Arms a slot later than it is, the usual case, and for one in eight earlier.
#[divan::bench]
fn timer_wheel_arm(bencher: Bencher<'_, '_>) {
    let start = Instant::now();
    let mut wheel = TimerWheel::new(1024, start);
    let mut n = 0_u32;
    bencher.bench_local(|| {
        n = n.wrapping_add(1);
        let slot = n % 1024;
        if n.is_multiple_of(8) {
            wheel.disarm(slot);
        }
        wheel.arm(slot, start + Duration::from_millis(u64::from(n % 60)));
    });
}

/// A turn of the worker's whose timers are all in the future.
#[divan::bench]
fn timer_wheel_expire_nothing(bencher: Bencher<'_, '_>) {
    let start = Instant::now();
    let mut wheel = TimerWheel::new(1024, start);
    (0..1024).for_each(|slot| wheel.arm(slot, start + Duration::from_secs(3600)));
    let mut due = Vec::new();
    bencher.bench_local(|| wheel.expire(black_box(start), 64, &mut due));
}

#[divan::bench(args = [1, 200])]
fn paint_decode(bencher: Bencher<'_, '_>, pixels: u16) {
    let wire: Vec<[u8; 5]> = (0..pixels).map(|n| Pixel { x: n, y: n, colour: 3 }.to_wire()).collect();
    let mut payload = Vec::new();
    ClientDatagram::Paint { seq: 1, pixels: Pixels::new(&wire) }.encode(&mut payload);
    bencher.bench_local(|| match ClientDatagram::decode(black_box(&payload)) {
        Ok(ClientDatagram::Paint { pixels, .. }) => pixels.into_iter().map(|p| u32::from(p.x)).sum::<u32>(),
        Err(_) => 0,
    });
}
