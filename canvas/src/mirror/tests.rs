//! Each rule of section 4 by itself. Records and images are made by hand, so that their order is the test's.

use super::*;
use crate::codec::Entry;
use crate::codec::datagram::{diff_header, encode_record, versions_header};

fn geometry() -> Geometry {
    Geometry::new(322, 65).unwrap() // 6 x 2 tiles; tile 11 has 2 columns and 1 row
}

fn mirror(snapshot: bool) -> Mirror {
    Mirror::new(geometry(), MirrorOptions { snapshot, ..MirrorOptions::default() })
}

/// A mirror after an empty snapshot: every tile at version 0.
fn started() -> Mirror {
    let mut mirror = mirror(true);
    mirror.on_snapshot_end();
    mirror
}

/// The record that leads `tile` to `version` sets the pixel at offset `version % 64` to colour `version`; so
/// an image at version v has those of all versions up to v.
fn change(version: u32) -> Change {
    Change { offset: (version % 64) as u16, colour: version as u8 }
}

fn diff(records: &[(u32, u32)]) -> Vec<u8> {
    let mut payload = diff_header(1).to_vec();
    records
        .iter()
        .for_each(|(tile, version)| encode_record(&mut payload, *tile, *version, &[change(*version)]));
    payload
}

fn versions(tiles: &[(u32, u32)]) -> Vec<u8> {
    let mut payload = versions_header(1).to_vec();
    payload.extend(
        tiles.iter().flat_map(|(tile, version)| TileVersion { tile: *tile, version: *version }.to_wire()),
    );
    payload
}

/// The image of a tile that got all records from `first` to `version`.
fn image(tile: u32, first: u32, version: u32) -> Image {
    let mut pixels = [0; TILE_PIXELS];
    let mut next = first;
    loop {
        let Change { offset, colour } = change(next);
        pixels[usize::from(offset)] = colour;
        if next == version {
            return Image { tile, version, pixels };
        }
        next = next.wrapping_add(1);
    }
}

/// Feeds one record and returns whether it was news.
fn feed(mirror: &mut Mirror, tile: u32, version: u32) -> bool {
    let mut news = false;
    mirror
        .on_datagram(&diff(&[(tile, version)]), |seen, what| {
            assert_eq!((seen, what), (tile, change(version)));
            news = true;
        })
        .unwrap();
    news
}

fn repairs(mirror: &mut Mirror, now_ms: u64) -> Vec<(u32, u32)> {
    let mut due = Vec::new();
    mirror.repairs_due(now_ms, &mut due);
    due.into_iter().map(|entry| (entry.tile, entry.version)).collect()
}

fn assert_is(mirror: &Mirror, image: &Image) {
    let (pixels, version) = mirror.tile(image.tile);
    assert_eq!(version, Some(image.version));
    assert!(*pixels == image.pixels, "pixels at version {}", image.version);
}

#[test]
fn records_in_order_are_applied_and_old_ones_dropped() {
    let mut mirror = started();
    for version in 1..=3 {
        assert!(feed(&mut mirror, 2, version));
    }
    assert!(!feed(&mut mirror, 2, 3), "a duplicate");
    assert!(!feed(&mut mirror, 2, 1), "a latecomer");
    assert_is(&mirror, &image(2, 1, 3));
    assert_eq!(repairs(&mut mirror, 0), []);
    assert!(mirror.is_settled());
    let counters = MirrorCounters { records_new: 3, records_old: 2, ..MirrorCounters::default() };
    assert_eq!(*mirror.counters(), counters);
}

#[test]
fn a_gap_is_applied_and_repaired() {
    let mut mirror = started();
    feed(&mut mirror, 2, 1);
    assert!(feed(&mut mirror, 2, 4));
    assert_eq!(mirror.tile(2).0[4], 4, "shown in spite of the gap");
    assert!(!mirror.is_settled());
    assert_eq!(repairs(&mut mirror, 500), [(2, 4)]);
    assert_eq!(repairs(&mut mirror, 5000), [], "asked once, the image is awaited");
    // While it is: no gap, and the image is older than what came meanwhile.
    assert!(feed(&mut mirror, 2, 7));
    assert!(feed(&mut mirror, 2, 6), "overtaken, but kept");
    assert!(!feed(&mut mirror, 2, 7), "a duplicate of a kept record");
    assert!(!feed(&mut mirror, 2, 3), "the image has it");
    assert_eq!(mirror.counters().gaps, 1);
    mirror.on_image(TilesReason::Repair, &image(2, 1, 5)).unwrap();
    assert_is(&mirror, &image(2, 1, 7));
    assert!(mirror.is_settled());
    assert_eq!(mirror.counters().gaps, 1);
}

#[test]
fn a_kept_record_that_was_overtaken_does_not_hide_the_newer_one() {
    let mut mirror = mirror(true);
    // Both of one pixel.
    assert!(feed(&mut mirror, 2, 3 + 64));
    assert!(feed(&mut mirror, 2, 3));
    assert_eq!((mirror.tile(2).0[3], mirror.tile(2).1), (3 + 64, Some(3 + 64)));
    mirror.on_image(TilesReason::Snapshot, &image(2, 1, 2)).unwrap();
    assert_eq!((mirror.tile(2).0[3], mirror.tile(2).1), (3 + 64, Some(3 + 64)));
}

#[test]
fn a_hole_between_image_and_kept_records_is_repaired_again() {
    let mut mirror = started();
    feed(&mut mirror, 2, 2);
    assert_eq!(repairs(&mut mirror, 0), [(2, 2)]);
    feed(&mut mirror, 2, 6);
    mirror.on_image(TilesReason::Repair, &image(2, 1, 4)).unwrap();
    assert_eq!(mirror.tile(2).1, Some(6));
    assert_eq!(repairs(&mut mirror, 999), [], "no more often than once a second");
    assert!(!mirror.is_settled());
    assert_eq!(repairs(&mut mirror, 1000), [(2, 6)]);
    mirror.on_image(TilesReason::Repair, &image(2, 1, 6)).unwrap();
    assert_is(&mirror, &image(2, 1, 6));
    assert!(mirror.is_settled());
}

#[test]
fn an_image_older_than_the_repair_is_not_its_answer() {
    let mut mirror = started();
    feed(&mut mirror, 2, 9);
    assert_eq!(repairs(&mut mirror, 0), [(2, 9)]);
    mirror.on_image(TilesReason::View, &image(2, 1, 8)).unwrap();
    assert_eq!(mirror.tile(2).1, Some(9));
    assert!(!mirror.is_settled(), "still awaited");
    mirror.on_image(TilesReason::Repair, &image(2, 1, 9)).unwrap();
    assert_is(&mirror, &image(2, 1, 9));
}

#[test]
fn images_that_nobody_awaits_are_taken_when_newer() {
    let mut mirror = started();
    feed(&mut mirror, 2, 1);
    mirror.on_image(TilesReason::View, &image(2, 1, 5)).unwrap();
    assert_is(&mirror, &image(2, 1, 5));
    let mut other = image(2, 1, 5);
    other.pixels[100] = 99;
    mirror.on_image(TilesReason::View, &other).unwrap();
    mirror.on_image(TilesReason::View, &image(2, 1, 4)).unwrap();
    assert_is(&mirror, &image(2, 1, 5));
    assert_eq!((mirror.counters().images_taken, mirror.counters().images_old), (1, 2));
    // The same version mends a tile that has a hole.
    feed(&mut mirror, 2, 7);
    mirror.on_image(TilesReason::View, &image(2, 1, 7)).unwrap();
    assert_is(&mirror, &image(2, 1, 7));
    assert!(mirror.is_settled());
    assert_eq!(repairs(&mut mirror, 0), []);
}

#[test]
fn versions_tell_of_the_last_diff() {
    let mut mirror = started();
    feed(&mut mirror, 2, 1);
    mirror.on_datagram(&versions(&[(2, 1), (0, 0)]), |_, _| ()).unwrap();
    assert!(mirror.is_settled());
    mirror.on_datagram(&versions(&[(2, 3), (0, 1), (2, 3)]), |_, _| ()).unwrap();
    assert_eq!(repairs(&mut mirror, 0), [(2, 1), (0, 0)]);
    assert_eq!(mirror.counters().stale, 2);
    for (tile, version) in [(2, 3), (0, 1)] {
        mirror.on_image(TilesReason::Repair, &image(tile, 1, version)).unwrap();
    }
    assert!(mirror.is_settled());
    // Older than what the mirror holds: a VERSIONS that came late.
    mirror.on_datagram(&versions(&[(2, 2)]), |_, _| ()).unwrap();
    assert!(mirror.is_settled());
}

#[test]
fn what_versions_told_while_an_image_was_awaited_is_not_forgotten() {
    let mut mirror = started();
    feed(&mut mirror, 2, 2);
    assert_eq!(repairs(&mut mirror, 0), [(2, 2)]);
    mirror.on_datagram(&versions(&[(2, 4)]), |_, _| ()).unwrap();
    mirror.on_image(TilesReason::Repair, &image(2, 1, 3)).unwrap();
    assert_eq!(repairs(&mut mirror, 1000), [(2, 3)]);
}

#[test]
fn the_snapshot_ends_with_version_0_where_it_had_no_image() {
    let mut mirror = mirror(true);
    assert_eq!(mirror.tile(1).1, None);
    for (tile, version) in [(1, 1), (1, 2), (3, 9), (4, 2)] {
        assert!(feed(&mut mirror, tile, version));
    }
    assert_eq!(repairs(&mut mirror, 0), [], "no gap while the snapshot is under way");
    mirror.on_image(TilesReason::Snapshot, &image(3, 1, 8)).unwrap();
    assert_is(&mirror, &image(3, 1, 9));
    assert!(!mirror.is_settled());
    mirror.on_snapshot_end();
    assert_is(&mirror, &image(1, 1, 2));
    assert_eq!(mirror.tile(0), (&[0; TILE_PIXELS], Some(0)));
    // Tile 4 is at 0 and has seen 2: the first record was lost.
    assert_eq!(repairs(&mut mirror, 0), [(4, 2)]);
    mirror.on_snapshot_end();
    assert_is(&mirror, &image(1, 1, 2));
}

#[test]
fn without_a_snapshot_the_first_record_starts_a_tile() {
    let mut mirror = mirror(false);
    assert!(mirror.is_settled());
    mirror.on_datagram(&versions(&[(2, 70)]), |_, _| ()).unwrap();
    assert_eq!(repairs(&mut mirror, 0), [], "of which it holds nothing, it misses nothing");
    assert!(feed(&mut mirror, 2, 77));
    assert_eq!(repairs(&mut mirror, 0), []);
    assert!(feed(&mut mirror, 2, 79));
    assert_eq!(repairs(&mut mirror, 0), [(2, 79)]);
}

#[test]
fn the_first_view_brings_all_its_tiles_without_a_snapshot_and_none_with_it() {
    let all = geometry().all_tiles();
    let mut without = mirror(false);
    without.set_view(all);
    assert!(!without.is_settled());
    feed(&mut without, 2, 9);
    for tile in all.iter() {
        without.on_image(TilesReason::View, &image(tile, 1, if tile % 6 == 5 { 1 } else { 8 })).unwrap();
    }
    assert!(without.is_settled());
    assert_is(&without, &image(2, 1, 9));

    let mut with = started();
    with.set_view(geometry().tile_rect(0, 0, 64, 64));
    with.set_view(geometry().tile_rect(0, 0, 64, 64));
    assert!(with.is_settled());
    with.set_view(all);
    assert!(!with.is_settled());
    for tile in 1..12 {
        with.on_image(TilesReason::View, &image(tile, 1, 1)).unwrap();
    }
    assert!(with.is_settled(), "tile 0 never left the view");
}

#[test]
fn a_tile_that_comes_back_into_view_starts_anew() {
    let (left, right) = (geometry().tile_rect(0, 0, 64, 65), geometry().tile_rect(64, 0, 322, 65));
    let mut mirror = started();
    feed(&mut mirror, 0, 1);
    feed(&mut mirror, 0, 4);
    mirror.set_view(right);
    assert_eq!(repairs(&mut mirror, 0), [], "out of view");
    assert!(!feed(&mut mirror, 0, 5), "under way when the view changed");
    mirror.on_datagram(&versions(&[(0, 5)]), |_, _| ()).unwrap();
    assert_eq!((mirror.counters().records_beside, mirror.counters().stale), (1, 0));
    mirror.set_view(left);
    assert!(feed(&mut mirror, 0, 9), "no gap: the image is awaited");
    mirror.on_image(TilesReason::View, &image(0, 1, 8)).unwrap();
    mirror.on_image(TilesReason::View, &image(6, 1, 1)).unwrap();
    assert_is(&mirror, &image(0, 1, 9));
    assert!(mirror.is_settled());
}

#[test]
fn a_view_within_the_snapshot_waits_for_its_own_image() {
    let mut mirror = mirror(true);
    mirror.set_view(geometry().tile_rect(64, 0, 128, 64));
    mirror.set_view(geometry().all_tiles());
    // The snapshot's image of tile 0 may be from before the time out of view; records kept on top of it may
    // miss some.
    mirror.on_image(TilesReason::Snapshot, &image(0, 1, 2)).unwrap();
    feed(&mut mirror, 0, 6);
    mirror.on_snapshot_end();
    assert!(!mirror.is_settled());
    mirror.on_image(TilesReason::View, &image(0, 1, 5)).unwrap();
    assert_is(&mirror, &image(0, 1, 6));
    assert_eq!(mirror.counters().gaps, 0, "none while an image is awaited");
    for tile in 2..12 {
        mirror.on_image(TilesReason::View, &image(tile, 1, 1)).unwrap();
    }
    assert!(mirror.is_settled());
}

#[test]
fn versions_wrap() {
    let mut mirror = mirror(true);
    mirror.on_image(TilesReason::Snapshot, &image(2, u32::MAX - 9, u32::MAX - 1)).unwrap();
    mirror.on_snapshot_end();
    assert!(feed(&mut mirror, 2, u32::MAX));
    assert!(feed(&mut mirror, 2, 0));
    assert!(!feed(&mut mirror, 2, u32::MAX));
    assert_eq!(mirror.counters().gaps, 0);
    assert!(feed(&mut mirror, 2, 3));
    assert_eq!(repairs(&mut mirror, 0), [(2, 3)]);
    mirror.on_image(TilesReason::Repair, &image(2, u32::MAX - 9, 3)).unwrap();
    assert_is(&mirror, &image(2, u32::MAX - 9, 3));

    // Kept records across the wrap, put on top of an image from before it, in the order of versions.
    mirror.set_view(geometry().no_tiles());
    mirror.set_view(geometry().tile_rect(128, 0, 130, 64));
    for version in [1, u32::MAX, 0] {
        feed(&mut mirror, 2, version);
    }
    mirror.on_image(TilesReason::View, &image(2, u32::MAX - 9, u32::MAX - 1)).unwrap();
    assert_is(&mirror, &image(2, u32::MAX - 9, 1));
    assert!(mirror.is_settled());
}

#[test]
fn records_that_do_not_fit_are_lost_and_repaired() {
    let mut mirror = Mirror::new(geometry(), MirrorOptions { snapshot: true, kept_bytes: 200 });
    for version in 1..=9 {
        assert!(feed(&mut mirror, 2, version));
    }
    assert!(mirror.counters().records_dropped > 0);
    assert_eq!(mirror.tile(2).1, Some(9), "shown, if not kept");
    mirror.on_snapshot_end();
    let held = mirror.tile(2).1.unwrap();
    assert!((1..9).contains(&held));
    assert_eq!(repairs(&mut mirror, 0), [(2, held)]);
    mirror.on_image(TilesReason::Repair, &image(2, 1, 9)).unwrap();
    assert_is(&mirror, &image(2, 1, 9));
    assert_eq!(mirror.room, 200, "all room is free again");
}

#[test]
fn what_the_canvas_does_not_have_is_refused() {
    let mut mirror = started();
    assert_eq!(mirror.on_datagram(&diff(&[(12, 1)]), |_, _| ()), Err(MirrorError::NoSuchTile(12)));
    assert_eq!(mirror.on_datagram(&versions(&[(12, 1)]), |_, _| ()), Err(MirrorError::NoSuchTile(12)));
    assert_eq!(mirror.on_image(TilesReason::View, &image(12, 1, 1)), Err(MirrorError::NoSuchTile(12)));
    let outside = MirrorError::NoSuchPixel { tile: 11, offset: 2 };
    assert_eq!(mirror.on_datagram(&diff(&[(0, 1), (11, 2)]), |_, _| ()), Err(outside));
    assert_eq!((mirror.tile(0).1, mirror.tile(11).1), (Some(1), Some(0)));
    assert_eq!(mirror.on_image(TilesReason::View, &image(11, 1, 2)), Err(outside));
    assert!(mirror.on_datagram(&[], |_, _| ()).is_err());
    assert!(feed(&mut mirror, 11, 1));
}

#[test]
fn repairs_come_in_frames_full() {
    let geometry = Geometry::new(64 * 128, 64 * 65).unwrap();
    let mut mirror = Mirror::new(geometry, MirrorOptions::default());
    mirror.on_snapshot_end();
    for tile in 0..geometry.tile_count() {
        mirror.on_datagram(&versions(&[(tile, 1)]), |_, _| ()).unwrap();
    }
    assert_eq!(repairs(&mut mirror, 0).len(), 8192);
    assert_eq!(repairs(&mut mirror, 0).len(), 128);
    assert_eq!(repairs(&mut mirror, 0).len(), 0);
}

#[test]
fn pixels_are_row_major() {
    let mut mirror = started();
    let geometry = geometry();
    for (tile, version) in [(0, 1), (1, 2), (2, 1), (11, 1)] {
        mirror.on_image(TilesReason::View, &image(tile, version, version)).unwrap();
    }
    let pixels = mirror.pixels();
    assert_eq!(pixels.len(), 322 * 65);
    for y in 0..65 {
        for x in 0..322 {
            assert_eq!(Some(pixels[usize::from(y) * 322 + usize::from(x)]), mirror.pixel(x, y));
        }
    }
    let painted: Vec<_> = (0..pixels.len()).filter(|at| pixels[*at] != 0).collect();
    assert_eq!(painted, [1, 66, 129, 64 * 322 + 321]);
    assert_eq!(mirror.pixel(322, 0), None);

    let mut other = started();
    let all = geometry.all_tiles();
    assert_eq!(mirror.first_difference(&mirror, &all), None);
    other.on_image(TilesReason::View, &image(0, 1, 1)).unwrap();
    let difference = mirror.first_difference(&other, &all).unwrap();
    assert_eq!(difference, Difference { tile: 1, at: (66, 0), ours: (2, Some(2)), theirs: (0, Some(0)) });
    assert!(difference.to_string().contains("(66, 0)"));
    assert_eq!(mirror.first_difference(&other, &geometry.tile_rect(0, 0, 64, 65)), None);
}
