//! Regions on a real kernel. Needs root: the pools of huge pages are filled for a test, and emptied after it.

mod common;

use common::{Host, without_memory};
use hugepages::{Error, HugePages, PageKind, Pages, Region, Report, Request, advise, needed_pages};
use std::{fs, ptr};

const MIB: usize = 1 << 20;

fn request(len: usize, pages: Pages) -> Request<'static> {
    Request { what: "test", len, pages, numa_node: None, prefault: true }
}

/// The line of figures `field` in `/proc/self/smaps` for the mapping that has `addr`, in bytes; `None` if
/// nothing is mapped there.
fn smaps(addr: *const u8, field: &str) -> Option<usize> {
    let text = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    for line in text.lines() {
        if let Some(value) = line.strip_prefix(field).and_then(|rest| rest.strip_prefix(':')) {
            if inside {
                return Some(value.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10);
            }
        } else if let Some((first, last)) = line.split_once(' ').and_then(|(range, _)| range.split_once('-'))
            && let (Ok(first), Ok(last)) = (usize::from_str_radix(first, 16), usize::from_str_radix(last, 16))
        {
            inside = (first..last).contains(&addr.addr());
        }
    }
    None
}

/// Checks what every region promises: alignment, whole pages, zeroes, and that all of it can be written.
fn check(region: &Region, len: usize) {
    let size = region.kind().size();
    assert!(region.as_ptr().addr().get().is_multiple_of(size));
    assert_eq!(region.len(), len.next_multiple_of(size));
    assert_eq!((region.report().asked, region.report().mapped), (len, region.len()));
    // SAFETY: the region is ours, and all of it may be read and written.
    let bytes = unsafe { std::slice::from_raw_parts_mut(region.as_ptr().as_ptr(), region.len()) };
    assert!(bytes.iter().step_by(509).all(|&byte| byte == 0));
    bytes.iter_mut().step_by(2048).for_each(|byte| *byte = 0xa5);
    *bytes.last_mut().unwrap() = 0x5a;
    assert!(bytes.iter().step_by(2048).all(|&byte| byte == 0xa5));
}

/// The number that the advice says to set the pool to.
fn advised_total(advice: &str) -> usize {
    let (_, number) = advice.split_once("vm.nr_hugepages=").or(advice.split_once("echo ")).expect(advice);
    number.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().expect(advice)
}

/// Runs `test` until the pool is the same after it as before, since others on this host may use it too.
/// Returns that state of the pool, and what the test found in it.
fn with_steady_pool(kind: PageKind, test: impl Fn(&HugePages) -> String) -> (HugePages, String) {
    for _ in 0..100 {
        let before = HugePages::read(kind).expect("a pool");
        let result = test(&before);
        if HugePages::read(kind).as_ref() == Some(&before) {
            return (before, result);
        }
    }
    panic!("the pool of {kind} pages never rests; stop whatever else uses it");
}

#[test]
fn pages_of_2_mib_by_name() {
    let mut host = Host::lock();
    assert_eq!(host.add(PageKind::Huge2M, 4), 4, "8 MiB of free memory");
    // Also without asking for it, explicit pages are faulted in: a missing one must not wait for its first
    // touch.
    for prefault in [true, false] {
        let len = 7 * MIB - 1;
        let region = Region::map(&Request { prefault, ..request(len, "2m".parse().unwrap()) }).unwrap();
        assert_eq!(region.kind(), PageKind::Huge2M);
        assert_eq!(smaps(region.as_ptr().as_ptr(), "KernelPageSize"), Some(2 * MIB));
        assert_eq!(smaps(region.as_ptr().as_ptr(), "Private_Hugetlb"), Some(8 * MIB));
        check(&region, len);
        let report = region.report();
        assert_eq!((report.huge, report.prefaulted, &report.advice), (8 * MIB, true, &None));
        assert_eq!(report.to_string(), "test: 8 MiB on 2 MiB pages, pre-faulted");
    }
}

#[test]
fn pages_of_1_gib_by_name_or_the_advice_to_get_them() {
    let mut host = Host::lock();
    let pages = Pages::Exactly(PageKind::Huge1G);
    let Some(pool) = HugePages::read(PageKind::Huge1G) else {
        let error = Region::map(&request(1, pages)).unwrap_err().to_string();
        assert!(error.contains("no pages of that size"), "{error}");
        return;
    };
    let want = pool.available(None) + 1;
    let (pool, error) = with_steady_pool(PageKind::Huge1G, |_| {
        Region::map(&request(want << 30, pages)).unwrap_err().to_string()
    });
    assert_eq!(advised_total(&error), pool.total + 1, "{error}");
    assert!(error.contains(&format!("boot with hugepagesz=1G hugepages={}", pool.total + 1)), "{error}");
    // Whether there is a whole GiB in one piece is the host's affair. If so, it must be had.
    if host.add(PageKind::Huge1G, 1) == 1 {
        let region = Region::map(&request(600 * MIB, pages)).unwrap();
        assert_eq!(region.kind(), PageKind::Huge1G);
        assert_eq!(smaps(region.as_ptr().as_ptr(), "KernelPageSize"), Some(1 << 30));
        check(&region, 600 * MIB);
        drop(region);
        let region = Region::map(&request(600 * MIB, Pages::Auto)).unwrap();
        assert_eq!((region.kind(), &region.report().advice), (PageKind::Huge1G, &None));
    }
}

#[test]
fn transparent_pages_by_name_or_the_advice_to_get_them() {
    let _host = Host::lock();
    let switch = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap();
    match Region::map(&request(8 * MIB - 1, Pages::Exactly(PageKind::Transparent))) {
        Ok(region) => {
            assert_eq!(region.kind(), PageKind::Transparent);
            // Nothing is believed: the kernel counts huge pages here.
            assert_eq!(smaps(region.as_ptr().as_ptr(), "AnonHugePages"), Some(8 * MIB));
            assert_eq!((region.report().huge, region.report().prefaulted), (8 * MIB, true));
            check(&region, 8 * MIB - 1);
        }
        Err(error) => {
            assert!(switch.contains("[never]"), "{switch}: {error}");
            assert!(error.to_string().contains("type: echo madvise | sudo tee"), "{error}");
        }
    }
}

#[test]
fn untouched_transparent_pages_are_not_claimed() {
    let _host = Host::lock();
    let pages = Pages::AtMost(PageKind::Transparent);
    let region = Region::map(&Request { prefault: false, ..request(8 * MIB, pages) }).unwrap();
    assert_eq!(smaps(region.as_ptr().as_ptr(), "Rss"), Some(0));
    assert_eq!((region.report().huge, region.report().prefaulted), (0, false));
    assert!(region.report().to_string().ends_with("faulted on first touch"), "{}", region.report());
    check(&region, 8 * MIB);
}

#[test]
fn plain_pages_by_name() {
    let _host = Host::lock();
    let region = Region::map(&request(8 * MIB + 1, Pages::Exactly(PageKind::Plain))).unwrap();
    assert_eq!(region.kind(), PageKind::Plain);
    let at = region.as_ptr().as_ptr();
    assert_eq!(smaps(at, "Rss"), Some(region.len()));
    assert_eq!(smaps(at, "AnonHugePages"), Some(0));
    check(&region, 8 * MIB + 1);
    assert_eq!((region.report().huge, &region.report().advice), (0, &None));
}

#[test]
fn small_memory_takes_no_huge_page_unasked() {
    let mut host = Host::lock();
    host.add(PageKind::Huge2M, 1);
    let region = Region::map(&request(100 << 10, Pages::Auto)).unwrap();
    assert_eq!((region.kind(), region.len()), (PageKind::Plain, 100 << 10));
    assert_eq!(region.report().advice, None);
    let region = Region::map(&request(100 << 10, Pages::AtMost(PageKind::Huge2M))).unwrap();
    assert_eq!((region.kind(), region.len()), (PageKind::Huge2M, 2 * MIB));
}

#[test]
fn the_advice_of_an_error_is_right() {
    let mut host = Host::lock();
    let exactly = Pages::Exactly(PageKind::Huge2M);
    let (pool, error) = with_steady_pool(PageKind::Huge2M, |pool| {
        let len = (pool.available(None) + 8) * 2 * MIB;
        Region::map(&request(len, exactly)).unwrap_err().to_string()
    });
    let len = (pool.available(None) + 8) * 2 * MIB;
    assert_eq!(advised_total(&error), pool.total + 8, "{error}");
    if pool.is_default {
        assert!(error.contains("type: sudo sysctl -w vm.nr_hugepages="), "{error}");
    }
    host.set(PageKind::Huge2M, advised_total(&error));
    assert_eq!(Region::map(&request(len, exactly)).unwrap().kind(), PageKind::Huge2M);
}

#[test]
fn falling_back_says_what_to_type_and_several_regions_add_up() {
    let mut host = Host::lock();
    let pages = Pages::AtMost(PageKind::Huge2M);
    let map = |pool: &HugePages| -> [Region; 2] {
        let missing = [8, 3].map(|more| pool.available(None) + more);
        missing.map(|count| {
            Region::map(&Request { prefault: false, ..request(count * 2 * MIB, pages) }).unwrap()
        })
    };
    let (pool, text) = with_steady_pool(PageKind::Huge2M, |pool| {
        let regions = map(pool);
        for (region, more) in regions.iter().zip([8, 3]) {
            assert!(region.kind() > PageKind::Huge2M);
            let advice = region.report().advice.as_deref().unwrap();
            assert_eq!(advised_total(advice), pool.total + more, "{advice}");
            assert!(region.report().to_string().ends_with(advice));
        }
        advise(regions.iter().map(Region::report)).unwrap()
    });
    // Two regions together: what is free serves once.
    assert_eq!(advised_total(&text), pool.total + pool.available(None) + 8 + 3, "{text}");
    host.set(PageKind::Huge2M, advised_total(&text));
    let regions = map(&pool);
    assert!(regions.iter().all(|region| region.kind() == PageKind::Huge2M));
    assert_eq!(advise(regions.iter().map(Region::report)), None);
    assert_eq!(needed_pages(regions[1].len(), PageKind::Huge2M), pool.available(None) + 3);
}

#[test]
fn memory_is_on_the_node_asked_for() {
    let mut host = Host::lock();
    assert_eq!(host.add(PageKind::Huge2M, 1), 1, "2 MiB of free memory");
    for kind in [PageKind::Huge2M, PageKind::Transparent, PageKind::Plain] {
        let request = Request { numa_node: Some(0), ..request(2 * MIB, Pages::AtMost(kind)) };
        let region = Region::map(&request).unwrap();
        assert_eq!(region.report().numa_node, Some(0));
        assert!(region.report().to_string().contains(", node 0, pre-faulted"), "{}", region.report());
        let at = region.as_ptr().as_ptr();
        let query = |flags: u32| {
            let (mut result, mut mask) = (-1_i32, [0_u64; 16]);
            // SAFETY: result and mask are ours; the mask has the bits that the call says, less one, as usual.
            let failed = unsafe {
                libc::syscall(libc::SYS_get_mempolicy, &mut result, mask.as_mut_ptr(), 1025, at, flags)
            };
            assert_eq!(failed, 0, "get_mempolicy: {}", std::io::Error::last_os_error());
            (result, mask[0])
        };
        const MPOL_F_NODE: u32 = 1;
        const MPOL_F_ADDR: u32 = 2;
        assert_eq!(query(MPOL_F_NODE | MPOL_F_ADDR).0, 0, "the node of the page");
        assert_eq!(query(MPOL_F_ADDR), (libc::MPOL_BIND, 1), "the policy of the mapping");
    }
}

#[test]
fn a_node_that_is_not_there() {
    for node in [1023, 1024, u32::MAX] {
        let error = Region::map(&Request { numa_node: Some(node), ..request(MIB, Pages::Auto) }).unwrap_err();
        assert!(matches!(&error, Error::NoSuchNode { online, .. } if online.contains(&0)), "{error}");
        assert!(error.to_string().starts_with(&format!("test: no NUMA node {node} on this host")), "{error}");
    }
}

#[test]
fn lengths_that_make_no_sense() {
    let error = Region::map(&request(0, Pages::Auto)).unwrap_err();
    assert!(matches!(error, Error::Empty { .. }), "{error}");
    for pages in ["auto", "1g", "2m", "thp", "plain"] {
        for len in [usize::MAX, usize::MAX / 2, (64 << 40) + 1] {
            let error = Region::map(&request(len, pages.parse().unwrap())).unwrap_err();
            assert!(matches!(error, Error::TooLong { .. }), "{error}");
        }
    }
}

#[test]
fn no_memory_at_all_is_an_error() {
    let _host = Host::lock();
    let results = without_memory(|| {
        [Pages::Auto, Pages::Exactly(PageKind::Plain)].map(|pages| Region::map(&request(16 * MIB, pages)))
    });
    for result in results {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::OutOfMemory { len, .. } if len == 16 * MIB), "{error}");
        assert!(error.to_string().contains("ulimit -v"), "{error}");
    }
}

#[test]
fn dropping_unmaps_and_gives_the_pages_back() {
    let mut host = Host::lock();
    assert_eq!(host.add(PageKind::Huge2M, 2), 2, "4 MiB of free memory");
    // Lengths that are not whole pages: rounding must be the same both ways.
    for (kind, len) in
        [(PageKind::Huge2M, 3 * MIB), (PageKind::Transparent, 3 * MIB), (PageKind::Plain, 3 * MIB + 1)]
    {
        let (pool, _) = with_steady_pool(PageKind::Huge2M, |_| {
            let region = Region::map(&request(len, Pages::AtMost(kind))).unwrap();
            let (first, end) = (region.as_ptr().as_ptr(), region.len());
            assert!(region.kind() == kind || kind == PageKind::Transparent, "{}", region.report());
            let last = first.wrapping_add(end - 1);
            assert!(smaps(first, "Size").is_some() && smaps(last, "Size").is_some());
            drop(region);
            // Ours was the only one with these bounds; this test's turn keeps others from mapping it again.
            assert_eq!([first, last].map(|at| smaps(at, "Size")), [None, None]);
            String::new()
        });
        assert!(pool.free >= 2);
    }
    // Many times over, so that a page lost each time would be missed.
    for _ in 0..50 {
        let region = Region::map(&request(4 * MIB, Pages::Exactly(PageKind::Huge2M))).unwrap();
        // SAFETY: the region is ours.
        unsafe { ptr::write_bytes(region.as_ptr().as_ptr(), 1, 1) };
    }
}

#[test]
fn regions_go_from_thread_to_thread() {
    fn check<T: Send + Sync>() {}
    check::<Region>();
    check::<Report>();
    check::<Error>();
    let _host = Host::lock();
    let region = Region::map(&request(MIB, Pages::Exactly(PageKind::Plain))).unwrap();
    std::thread::spawn(move || drop(region)).join().unwrap();
}
