#![allow(missing_docs)]
mod common;
use hugepages::*;
use std::time::Instant;
#[inline(never)]
pub fn get_probe(s: &Slab<[u64; 2000]>, i: u32) -> Option<&[u64; 2000]> {
    s.get(i)
}
#[test]
fn t() {
    let mut h = common::Host::lock();
    h.add(PageKind::Huge2M, 64);
    for k in ["2m", "thp", "plain"] {
        for len in [2usize << 20, 8 << 20, 128 << 20] {
            let t = Instant::now();
            let r = Region::map(&Request {
                what: "x",
                len,
                pages: k.parse().unwrap(),
                numa_node: Some(0),
                prefault: true,
            })
            .unwrap();
            let e = t.elapsed();
            let t = Instant::now();
            let s = r.report().to_string();
            drop(r);
            println!("{k} {len} {e:?} drop {:?} {s}", t.elapsed());
        }
    }
    let s = Slab::<[u64; 2000]>::new("s", 65536, Pages::Auto, Some(0)).unwrap();
    println!("{} {:?}", s.report(), get_probe(&s, 5).is_some());
    println!(
        "{:?}",
        Region::map(&Request {
            what: "umem of queue 3",
            len: 3 << 30,
            pages: Pages::Exactly(PageKind::Huge1G),
            numa_node: Some(0),
            prefault: true
        })
        .unwrap_err()
        .to_string()
    );
}
