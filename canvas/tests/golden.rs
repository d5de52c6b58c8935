//! Byte vectors written by hand from the tables of PROTOCOL.md, not by the code that they check.

use canvas::codec::control::{ClientFrame, Decoded, FrameError, PaintAck, ServerFrame, ServerStats, Welcome};
use canvas::codec::datagram::{
    Changes, ClientDatagram, DatagramError, ServerDatagram, diff_header, encode_record, versions_header,
};
use canvas::codec::tiles::{ImageEncoder, TilesDecoder, TilesError, TilesReason, stream_header};
use canvas::codec::{Change, Entry, Pixel, Pixels, TileVersion, TileVersions};

/// The bytes of hexadecimal digits; blanks and `|` are for the eye.
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        text.chars().filter_map(|digit| digit.to_digit(16)).map(|digit| digit as u8).collect();
    assert_eq!(digits.len() % 2, 0, "{text}");
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

#[test]
fn client_frames() {
    let pixels =
        [Pixel { x: 1, y: 2, colour: 3 }, Pixel { x: 0x1234, y: 0xffff, colour: 31 }].map(Entry::to_wire);
    let tiles =
        [TileVersion { tile: 5, version: 6 }, TileVersion { tile: 0x0100_0000, version: 0xffff_fffe }]
            .map(Entry::to_wire);
    for (frame, wire) in [
        (
            ClientFrame::Hello { version: 1, flags: 3, token: b"abc" },
            "01 | 08000000 | 0100 | 0300 | 03 | 616263",
        ),
        (ClientFrame::Hello { version: 1, flags: 2, token: b"" }, "01 | 05000000 | 0100 | 0200 | 00"),
        (
            ClientFrame::View { x0: 64, y0: 128, x1: 256, y1: 0xfffe, kbit_per_s: 1000 },
            "02 | 0c000000 | 4000 | 8000 | 0001 | feff | e8030000",
        ),
        (
            ClientFrame::Paint { seq: 0x0102_0304, flags: 1, pixels: Pixels::new(&pixels) },
            "03 | 0f000000 | 04030201 | 01 | 0100 0200 03 | 3412 ffff 1f",
        ),
        (
            ClientFrame::Repair { tiles: TileVersions::new(&tiles) },
            "04 | 10000000 | 05000000 06000000 | 00000001 feffffff",
        ),
        (ClientFrame::Ping(0x0102_0304_0506_0708), "05 | 08000000 | 0807060504030201"),
        (ClientFrame::Stats, "06 | 00000000"),
    ] {
        let wire = hex(wire);
        let mut out = vec![0xee];
        frame.encode(&mut out);
        assert_eq!(out[1..], wire, "{frame:?}");
        assert_eq!(ClientFrame::decode(&wire), Ok(Some((Decoded::Frame(frame), wire.len()))));
        for cut in 0..wire.len() {
            assert_eq!(ClientFrame::decode(&wire[..cut]), Ok(None), "{frame:?} cut to {cut}");
        }
        let kind = wire[0];
        assert_eq!(ServerFrame::decode(&wire), Err(FrameError::WrongDirection { kind }));
    }
}

#[test]
fn server_frames() {
    let palette = [[0xff, 0, 0], [0, 0, 0xfe]];
    for (frame, wire) in [
        (
            ServerFrame::Welcome(Welcome {
                version: 1,
                client_id: 0x1122_3344_5566_7788,
                width: 1000,
                height: 65,
                tile_side: 64,
                tick_ms: 50,
                cooldown_ms: 5000,
                palette: &palette,
            }),
            "41 | 1d000000 | 0100 | 8877665544332211 | e803 | 4100 | 4000 | 3200 | 88130000
             | 01 | ff0000 0000fe",
        ),
        (
            ServerFrame::PaintAck(PaintAck {
                seq: 9,
                applied: 0x0201,
                rejected: 3,
                reason: 2,
                commit: 0x0a0b,
            }),
            "43 | 11000000 | 09000000 | 0102 | 0300 | 02 | 0b0a000000000000",
        ),
        (ServerFrame::Pong(0x0102_0304_0506_0708), "45 | 08000000 | 0807060504030201"),
        (
            ServerFrame::Stats(ServerStats {
                applied: 1,
                rejected: 2,
                connections: 3,
                tick: 4,
                uptime_ms: 5,
                commit: 6,
            }),
            "46 | 30000000 | 0100000000000000 0200000000000000 0300000000000000
                            0400000000000000 0500000000000000 0600000000000000",
        ),
        (ServerFrame::Notice { code: 5, text: "né" }, "47 | 04000000 | 05 | 6ec3a9"),
        (ServerFrame::Datagram(&[0x82, 0, 1]), "48 | 03000000 | 820001"),
    ] {
        let wire = hex(wire);
        let mut out = vec![0xee];
        frame.encode(&mut out);
        assert_eq!(out[1..], wire, "{frame:?}");
        assert_eq!(ServerFrame::decode(&wire), Ok(Some((Decoded::Frame(frame), wire.len()))));
        for cut in 0..wire.len() {
            assert_eq!(ServerFrame::decode(&wire[..cut]), Ok(None), "{frame:?} cut to {cut}");
        }
        let kind = wire[0];
        assert_eq!(ClientFrame::decode(&wire), Err(FrameError::WrongDirection { kind }));
    }
}

#[test]
fn unknown_frames_and_trailing_bytes_are_skipped() {
    for kind in [0x00, 0x07, 0x40, 0x42, 0x44, 0x49, 0xff] {
        let wire = [kind, 2, 0, 0, 0, 1, 2, 3];
        assert_eq!(ClientFrame::decode(&wire), Ok(Some((Decoded::Unknown(kind), 7))));
        assert_eq!(ServerFrame::decode(&wire), Ok(Some((Decoded::Unknown(kind), 7))));
        assert_eq!(ClientFrame::decode(&wire[..6]), Ok(None));
    }
    for (wire, frame) in [
        ("01 | 08000000 | 0100 0000 01 61 | ffff", ClientFrame::Hello { version: 1, flags: 0, token: b"a" }),
        (
            "02 | 0d000000 | 0100 0200 0300 0400 05000000 | ff",
            ClientFrame::View { x0: 1, y0: 2, x1: 3, y1: 4, kbit_per_s: 5 },
        ),
        ("05 | 09000000 | 0100000000000000 | ff", ClientFrame::Ping(1)),
        ("06 | 03000000 | ffffff", ClientFrame::Stats),
    ] {
        let wire = hex(wire);
        assert_eq!(ClientFrame::decode(&wire), Ok(Some((Decoded::Frame(frame), wire.len()))));
    }
    for (wire, frame) in [
        ("45 | 09000000 | 0100000000000000 | ff", ServerFrame::Pong(1)),
        (
            "43 | 12000000 | 01000000 0200 0300 04 0500000000000000 | ff",
            ServerFrame::PaintAck(PaintAck { seq: 1, applied: 2, rejected: 3, reason: 4, commit: 5 }),
        ),
    ] {
        let wire = hex(wire);
        assert_eq!(ServerFrame::decode(&wire), Ok(Some((Decoded::Frame(frame), wire.len()))));
    }
}

#[test]
fn frames_of_a_wrong_size() {
    for (wire, error) in [
        // As soon as the header tells, whatever the type.
        ("03 | 01000100", FrameError::TooLong { kind: 3, length: 65_537, limit: 65_536 }),
        ("7f | ffffffff", FrameError::TooLong { kind: 0x7f, length: u32::MAX, limit: 65_536 }),
        ("41 | 00000000", FrameError::WrongDirection { kind: 0x41 }),
        ("01 | 04000000", FrameError::WrongSize { kind: 1, length: 4 }),
        ("02 | 0b000000", FrameError::WrongSize { kind: 2, length: 11 }),
        ("03 | 04000000", FrameError::WrongSize { kind: 3, length: 4 }),
        ("03 | 09000000", FrameError::PartEntry { kind: 3, length: 9 }),
        ("04 | 07000000", FrameError::PartEntry { kind: 4, length: 7 }),
        ("05 | 07000000", FrameError::WrongSize { kind: 5, length: 7 }),
        // A token longer than the body.
        ("01 | 07000000 | 0100 0000 03 6162", FrameError::WrongSize { kind: 1, length: 7 }),
    ] {
        assert_eq!(ClientFrame::decode(&hex(wire)), Err(error), "{wire}");
        assert_eq!(ClientFrame::decode(&hex(wire)[..4]), Ok(None), "{wire}: the header is not complete");
    }
    for (wire, error) in [
        ("48 | 01001000", FrameError::TooLong { kind: 0x48, length: 1_048_577, limit: 1_048_576 }),
        ("01 | 00000000", FrameError::WrongDirection { kind: 1 }),
        ("41 | 19000000", FrameError::WrongSize { kind: 0x41, length: 25 }),
        ("43 | 10000000", FrameError::WrongSize { kind: 0x43, length: 16 }),
        ("45 | 07000000", FrameError::WrongSize { kind: 0x45, length: 7 }),
        ("46 | 2f000000", FrameError::WrongSize { kind: 0x46, length: 47 }),
        ("47 | 00000000", FrameError::WrongSize { kind: 0x47, length: 0 }),
        ("47 | 02000000 | 01 ff", FrameError::NotUtf8),
        // Two colours announced, one sent.
        (
            "41 | 1a000000 | 0100 0000000000000000 0100 0100 4000 3200 00000000 01 ff0000",
            FrameError::WrongSize { kind: 0x41, length: 26 },
        ),
    ] {
        assert_eq!(ServerFrame::decode(&hex(wire)), Err(error), "{wire}");
    }
    // Lists may be empty, and as long as a frame may be.
    let empty = hex("03 | 05000000 | 01000000 00");
    let frame = ClientFrame::Paint { seq: 1, flags: 0, pixels: Pixels::new(&[]) };
    assert_eq!(ClientFrame::decode(&empty), Ok(Some((Decoded::Frame(frame), 10))));
    let mut longest = hex("04 | 00000100");
    longest.resize(5 + 65_536, 7);
    let (decoded, consumed) = ClientFrame::decode(&longest).unwrap().unwrap();
    assert!(matches!(decoded, Decoded::Frame(ClientFrame::Repair { tiles }) if tiles.len() == 8192));
    assert_eq!(consumed, longest.len());
}

#[test]
fn client_datagrams() {
    let pixels =
        [Pixel { x: 1, y: 2, colour: 3 }, Pixel { x: 0x1234, y: 0xffff, colour: 31 }].map(Entry::to_wire);
    let wire = hex("01 | 00 | 04030201 | 0100 0200 03 | 3412 ffff 1f");
    let paint = ClientDatagram::Paint { seq: 0x0102_0304, pixels: Pixels::new(&pixels) };
    let mut out = Vec::new();
    paint.encode(&mut out);
    assert_eq!(out, wire);
    assert_eq!(ClientDatagram::decode(&wire), Ok(paint));

    let header = hex("01 00 00000000");
    let pixels = |n: usize| [&header[..], &vec![0; 5 * n]].concat();
    assert!(ClientDatagram::decode(&pixels(200)).is_ok());
    for (wire, error) in [
        (vec![], DatagramError::Empty),
        (header[..1].to_vec(), DatagramError::CutShort),
        (header[..5].to_vec(), DatagramError::CutShort),
        (header.clone(), DatagramError::PixelCount(0)),
        (pixels(201), DatagramError::PixelCount(201)),
        (pixels(2)[..15].to_vec(), DatagramError::PartEntry),
    ] {
        assert_eq!(ClientDatagram::decode(&wire), Err(error));
        assert!(error.is_malformed());
    }
    for unknown in [0x00, 0x02, 0x81, 0x82, 0xff] {
        let error = ClientDatagram::decode(&[unknown]).unwrap_err();
        assert_eq!(error, DatagramError::UnknownType(unknown));
        assert!(!error.is_malformed());
    }
}

#[test]
fn versions() {
    let wire = hex("82 | 00 | 04030201 | 07000000 ffffffff | 08000000 01000000");
    let Ok(ServerDatagram::Versions { tick, tiles }) = ServerDatagram::decode(&wire) else { panic!() };
    assert_eq!(tick, 0x0102_0304);
    let expected = [TileVersion { tile: 7, version: u32::MAX }, TileVersion { tile: 8, version: 1 }];
    assert_eq!(tiles.iter().collect::<Vec<_>>(), expected);
    assert_eq!(versions_header(0x0102_0304), wire[..6]);
    assert_eq!(expected.map(Entry::to_wire).as_flattened(), &wire[6..]);
    assert_eq!(ServerDatagram::decode(&wire[..21]), Err(DatagramError::PartEntry));
    assert_eq!(ServerDatagram::decode(&wire[..5]), Err(DatagramError::CutShort));
}

#[test]
fn diff_with_a_list_and_a_bitmap() {
    let list = "09000000 | 02000000 | 00 | 0200 | 0000 05 | ff0f 06";
    let mut wire = hex("81 | 00 | 2a000000");
    assert_eq!(diff_header(42), wire[..]);
    wire.extend(hex(list));
    // Offsets 0, 9, 4095: bit 0 of byte 0, bit 1 of byte 1, bit 7 of byte 511.
    wire.extend(hex("0a000000 | 00000000 | 01 | 0300"));
    let mut bitmap = [0; 512];
    (bitmap[0], bitmap[1], bitmap[511]) = (0x01, 0x02, 0x80);
    wire.extend(bitmap);
    wire.extend([7, 8, 9]);

    let Ok(ServerDatagram::Diff { tick, records }) = ServerDatagram::decode(&wire) else { panic!() };
    assert_eq!(tick, 42);
    let records: Vec<_> = records.collect();
    assert_eq!(records.len(), 2);
    assert_eq!((records[0].tile, records[0].version), (9, 2));
    assert!(matches!(records[0].changes, Changes::List(_)));
    let changes = |pairs: &[(u16, u8)]| -> Vec<Change> {
        pairs.iter().map(|(offset, colour)| Change { offset: *offset, colour: *colour }).collect()
    };
    assert_eq!(records[0].changes.iter().collect::<Vec<_>>(), changes(&[(0, 5), (4095, 6)]));
    assert_eq!((records[1].tile, records[1].version), (10, 0));
    assert!(matches!(records[1].changes, Changes::Bitmap { .. }));
    assert_eq!(records[1].changes.iter().collect::<Vec<_>>(), changes(&[(0, 7), (9, 8), (4095, 9)]));
    assert_eq!(records[1].changes.iter().len(), 3);

    let mut out = Vec::new();
    encode_record(&mut out, 9, 2, &changes(&[(0, 5), (4095, 6)]));
    assert_eq!(out, hex(list));
}

#[test]
fn a_record_of_many_changes_is_a_bitmap() {
    // Offsets 0 to 299: 37 bytes full, then four bits.
    let changes: Vec<_> = (0..300).map(|offset| Change { offset, colour: (offset % 32) as u8 }).collect();
    let mut wire = hex("03000000 | 07000000 | 01 | 2c01");
    wire.extend([0xff; 37]);
    wire.push(0x0f);
    wire.extend([0; 474]);
    wire.extend((0..300).map(|i| (i % 32) as u8));
    let mut out = Vec::new();
    encode_record(&mut out, 3, 7, &changes);
    assert_eq!(out, wire);
}

#[test]
fn the_shorter_encoding_is_chosen() {
    for count in [0usize, 1, 2, 100, 255, 256, 257, 258, 300, 570, 571] {
        let (list, bitmap) = (11 + 3 * count, 11 + 512 + count);
        // Spread over the tile: the choice must not depend on where the changes are.
        for stride in [1, 7] {
            let changes: Vec<_> =
                (0..count).map(|n| Change { offset: (n * stride) as u16, colour: 1 }).collect();
            let mut out = Vec::new();
            encode_record(&mut out, 0, 1, &changes);
            assert_eq!(out.len(), list.min(bitmap), "{count} changes");
            assert_eq!(out[8], u8::from(bitmap < list), "{count} changes");
            assert!(out.len() <= 1100 - 6);
        }
    }
}

#[test]
fn broken_diffs() {
    let record = |text: &str| [hex("81 00 01000000"), hex(text)].concat();
    let bitmap = |count: u8, bits: [u8; 2], colours: usize| {
        let mut wire = record(&format!("00000000 01000000 01 {count:02x}00"));
        wire.extend(bits);
        wire.resize(wire.len() + 510 + colours, 0);
        wire
    };
    assert!(ServerDatagram::decode(&record("")).is_ok(), "no record");
    assert!(ServerDatagram::decode(&record("00000000 01000000 00 0000")).is_ok(), "no change");
    assert!(ServerDatagram::decode(&bitmap(2, [0x80, 0x01], 2)).is_ok());
    for (wire, error) in [
        (vec![], DatagramError::Empty),
        (vec![0x01], DatagramError::UnknownType(0x01)),
        (hex("81 00 010000"), DatagramError::CutShort),
        (record("00000000 01000000 00 01"), DatagramError::CutShort),
        (record("00000000 01000000 00 0100 0000"), DatagramError::CutShort),
        (record("00000000 01000000 00 0100 0010 01"), DatagramError::Offset(4096)),
        (record("00000000 01000000 02 0000"), DatagramError::UnknownEncoding(2)),
        (record("00000000 01000000 00 0000 ff"), DatagramError::CutShort),
        (bitmap(2, [0x80, 0x01], 1), DatagramError::CutShort),
        (bitmap(2, [0x80, 0x01], 3), DatagramError::CutShort),
        (bitmap(2, [0x80, 0x03], 2), DatagramError::Count { count: 2, bits: 3 }),
        (bitmap(2, [0x80, 0x00], 2), DatagramError::Count { count: 2, bits: 1 }),
    ] {
        assert_eq!(ServerDatagram::decode(&wire), Err(error));
    }
}

/// Tile, version and pixels of an image.
type OwnedImage = (u32, u32, Vec<u8>);

/// All images of a whole stream, fed in pieces of `piece` bytes, and how it ended.
fn images(wire: &[u8], piece: usize) -> (Vec<OwnedImage>, Result<TilesReason, TilesError>) {
    let mut images = Vec::new();
    let mut decoder = TilesDecoder::default();
    for piece in wire.chunks(piece) {
        // An error stays until the end, which reports it.
        let _ =
            decoder.push(piece, |_, image| images.push((image.tile, image.version, image.pixels.to_vec())));
    }
    (images, decoder.finish())
}

#[test]
fn tile_streams() {
    let mut state = 1u32;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    })
    .take(4096)
    .collect();
    let uniform = hex("05000000 | ffffffff | 01 | 01000000 | 07");
    let raw = [hex("06000000 | 02000000 | 00 | 00100000"), noise.clone()].concat();
    // One stored block of RFC 1951, the last: 01, LEN 4096, its complement, the bytes.
    let stored = [hex("07000000 | 03000000 | 02 | 05100000 | 01 0010 ffef"), noise.clone()].concat();
    let wire = [hex("01 02"), uniform.clone(), raw.clone(), stored].concat();
    for piece in [1, 2, 3, 13, 14, 4096, 100_000] {
        let (images, end) = images(&wire, piece);
        assert_eq!(end, Ok(TilesReason::Repair));
        assert_eq!(images.len(), 3);
        assert_eq!(images[0], (5, u32::MAX, vec![7; 4096]));
        assert_eq!(images[1], (6, 2, noise.clone()));
        assert_eq!(images[2], (7, 3, noise.clone()));
    }
    assert_eq!(images(&hex("01 00"), 1), (vec![], Ok(TilesReason::Snapshot)), "an empty canvas");
    assert_eq!(stream_header(TilesReason::Snapshot), [1, 0]);
    assert_eq!(stream_header(TilesReason::View), [1, 1]);
    assert_eq!(stream_header(TilesReason::Repair), [1, 2]);

    let mut encoder = ImageEncoder::default();
    let mut out = Vec::new();
    encoder.encode(5, u32::MAX, &[7; 4096], &mut out);
    assert_eq!(out, uniform);
    out.clear();
    let noise: &[u8; 4096] = noise[..].try_into().unwrap();
    encoder.encode(6, 2, noise, &mut out);
    assert!(out == raw, "what does not shrink goes raw");
    out.clear();
    let mut one = [7; 4096];
    one[100] = 8;
    encoder.encode(6, 2, &one, &mut out);
    assert_eq!(out[8], 2, "what shrinks goes as DEFLATE");
    assert!(out.len() < 100);
}

/// A body from an encoder with the full window, with a match from the end of the tile to its beginning.
#[test]
fn deflate_of_others() {
    use std::io::Write;
    let mut pixels: Vec<u8> = (0..4096).map(|i| (i % 251) as u8).collect();
    pixels.copy_within(0..40, 4056);
    for level in 1..=9 {
        let mut body = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::new(level));
        body.write_all(&pixels).unwrap();
        let body = body.finish().unwrap();
        let mut wire = hex("01 00 | 07000000 | 03000000 | 02");
        wire.extend((body.len() as u32).to_le_bytes());
        wire.extend(body);
        assert_eq!(
            images(&wire, 1000),
            (vec![(7, 3, pixels.clone())], Ok(TilesReason::Snapshot)),
            "level {level}"
        );
    }
}

#[test]
fn broken_tile_streams() {
    let image = |text: &str| [hex("01 00"), hex(text)].concat();
    let deflate = |body: &[u8]| {
        let mut wire = image("09000000 01000000 02");
        wire.extend((body.len() as u32).to_le_bytes());
        wire.extend(body);
        wire
    };
    let stored = |length: u16, pad: usize| {
        let mut body = vec![1];
        body.extend(length.to_le_bytes());
        body.extend((!length).to_le_bytes());
        body.resize(5 + usize::from(length) + pad, 1);
        body
    };
    assert_eq!(images(&deflate(&stored(4096, 0)), 100).1, Ok(TilesReason::Snapshot));
    for (wire, error) in [
        (vec![], TilesError::CutShort),
        (hex("01"), TilesError::CutShort),
        (hex("02"), TilesError::UnknownKind(2)),
        (hex("01 03"), TilesError::UnknownReason(3)),
        (image("09"), TilesError::CutShort),
        (image("09000000 01000000 01 01000000"), TilesError::CutShort),
        (image("09000000 01000000 03 01000000"), TilesError::UnknownEncoding { tile: 9, encoding: 3 }),
        (image("09000000 01000000 01 02000000"), TilesError::Length { tile: 9, encoding: 1, length: 2 }),
        (image("09000000 01000000 01 00000000"), TilesError::Length { tile: 9, encoding: 1, length: 0 }),
        (image("09000000 01000000 00 01100000"), TilesError::Length { tile: 9, encoding: 0, length: 4097 }),
        (image("09000000 01000000 00 ff0f0000"), TilesError::Length { tile: 9, encoding: 0, length: 4095 }),
        (image("09000000 01000000 02 00000000"), TilesError::Length { tile: 9, encoding: 2, length: 0 }),
        (
            image("09000000 01000000 02 ffffffff"),
            TilesError::Length { tile: 9, encoding: 2, length: u32::MAX },
        ),
        (deflate(&stored(4095, 0)), TilesError::Deflate { tile: 9 }),
        (deflate(&stored(4097, 0)), TilesError::Deflate { tile: 9 }),
        (deflate(&stored(4096, 1)), TilesError::Deflate { tile: 9 }),
        (deflate(&[0xff; 50]), TilesError::Deflate { tile: 9 }),
    ] {
        for piece in [1, 7, 10_000] {
            let (images, end) = images(&wire, piece);
            assert_eq!((images.len(), end), (0, Err(error)), "{wire:?}");
        }
    }
}
