//! The canvas's own work: applying pixels, encoding a tick, packing it for a view.

use canvas::tiles::{bytes_needed, create};
use canvas::{Canvas, Geometry, Palette};
use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use hugepages::{PageKind, Pages, Region, Request};

/// Side of the canvas in pixels: the server's default.
const SIDE: u16 = 1000;

fn main() {
    divan::main();
}

fn canvas() -> Canvas {
    let geometry = Geometry::new(SIDE.into(), SIDE.into()).expect("a size that is allowed");
    let region = Region::map(&Request {
        what: "tiles",
        len: bytes_needed(geometry),
        pages: Pages::Exactly(PageKind::Plain),
        numa_node: None,
        prefault: true,
    });
    let (writer, _) = create(geometry, region.expect("memory")).expect("as large as needed");
    Canvas::new(writer, Palette::default(), 50)
}

/// Paints `count` pixels all over the canvas.
fn paint(canvas: &mut Canvas, count: u32) {
    for n in 0..count {
        // Two primes: no row, column or tile is preferred.
        let (x, y) = (n * 7919 % u32::from(SIDE), n * 104_729 % u32::from(SIDE));
        let _ = black_box(canvas.paint(x as u16, y as u16, (n % 16) as u8));
    }
}

#[divan::bench(args = [1000, 60_000])]
fn paint_pixels(bencher: Bencher<'_, '_>, pixels: u32) {
    let mut canvas = canvas();
    bencher.counter(ItemsCount::new(pixels)).bench_local(|| paint(&mut canvas, pixels));
}

/// Painting is not measured.
#[divan::bench(args = [100, 1000, 60_000])]
fn encode_tick(bencher: Bencher<'_, '_>, pixels: u32) {
    let canvas = std::cell::RefCell::new(canvas());
    bencher
        .counter(ItemsCount::new(pixels))
        .with_inputs(|| paint(&mut canvas.borrow_mut(), pixels))
        .bench_local_values(|()| canvas.borrow_mut().tick());
}

#[divan::bench(args = [100, 1000, 60_000])]
fn pack_tick(bencher: Bencher<'_, '_>, pixels: u32) {
    let mut canvas = canvas();
    paint(&mut canvas, pixels);
    let (tick, view) = (canvas.tick(), canvas.geometry().all_tiles());
    bencher.counter(ItemsCount::new(pixels)).bench_local(|| {
        let mut bytes = 0;
        tick.pack_diffs(&view, |payload| bytes += black_box(payload).len());
        bytes
    });
}
