//! Encoding and decoding are inverse, and no decoder panics or believes nonsense, whatever the bytes.

use canvas::codec::control::{ClientFrame, Decoded, PaintAck, ServerFrame, ServerStats, Welcome};
use canvas::codec::datagram::{
    ClientDatagram, MAX_RECORD_CHANGES, ServerDatagram, diff_header, encode_record, versions_header,
};
use canvas::codec::tiles::{ImageEncoder, TilesDecoder, TilesReason, stream_header};
use canvas::codec::{Change, Pixels, TileVersions};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::subsequence;

/// A client's frame with what it borrows, to be made in a callback.
#[derive(Clone, Debug)]
enum OwnedClientFrame {
    Hello(u16, u16, Vec<u8>),
    View(u16, u16, u16, u16, u32),
    Paint(u32, u8, Vec<[u8; 5]>),
    Repair(Vec<[u8; 8]>),
    Ping(u64),
    Stats,
}

impl OwnedClientFrame {
    fn borrow(&self) -> ClientFrame<'_> {
        match self {
            Self::Hello(version, flags, token) => {
                ClientFrame::Hello { version: *version, flags: *flags, token }
            }
            Self::View(x0, y0, x1, y1, kbit_per_s) => {
                ClientFrame::View { x0: *x0, y0: *y0, x1: *x1, y1: *y1, kbit_per_s: *kbit_per_s }
            }
            Self::Paint(seq, flags, pixels) => {
                ClientFrame::Paint { seq: *seq, flags: *flags, pixels: Pixels::new(pixels) }
            }
            Self::Repair(tiles) => ClientFrame::Repair { tiles: TileVersions::new(tiles) },
            Self::Ping(number) => ClientFrame::Ping(*number),
            Self::Stats => ClientFrame::Stats,
        }
    }
}

fn client_frame() -> impl Strategy<Value = OwnedClientFrame> {
    prop_oneof![
        (any::<u16>(), any::<u16>(), vec(any::<u8>(), 0..=255))
            .prop_map(|(a, b, c)| OwnedClientFrame::Hello(a, b, c)),
        any::<(u16, u16, u16, u16, u32)>().prop_map(|(a, b, c, d, e)| OwnedClientFrame::View(a, b, c, d, e)),
        (any::<u32>(), any::<u8>(), vec(any::<[u8; 5]>(), 0..300))
            .prop_map(|(a, b, c)| OwnedClientFrame::Paint(a, b, c)),
        vec(any::<[u8; 8]>(), 0..300).prop_map(OwnedClientFrame::Repair),
        any::<u64>().prop_map(OwnedClientFrame::Ping),
        Just(OwnedClientFrame::Stats),
    ]
}

#[derive(Clone, Debug)]
enum OwnedServerFrame {
    Welcome([u64; 2], [u16; 5], Vec<[u8; 3]>),
    PaintAck(PaintAck),
    Pong(u64),
    Stats(ServerStats),
    Notice(u8, String),
    Datagram(Vec<u8>),
}

impl OwnedServerFrame {
    fn borrow(&self) -> ServerFrame<'_> {
        match self {
            Self::Welcome([client_id, cooldown], [version, width, height, tile_side, tick_ms], palette) => {
                ServerFrame::Welcome(Welcome {
                    version: *version,
                    client_id: *client_id,
                    width: *width,
                    height: *height,
                    tile_side: *tile_side,
                    tick_ms: *tick_ms,
                    cooldown_ms: *cooldown as u32,
                    palette,
                })
            }
            Self::PaintAck(ack) => ServerFrame::PaintAck(*ack),
            Self::Pong(number) => ServerFrame::Pong(*number),
            Self::Stats(stats) => ServerFrame::Stats(*stats),
            Self::Notice(code, text) => ServerFrame::Notice { code: *code, text },
            Self::Datagram(payload) => ServerFrame::Datagram(payload),
        }
    }
}

fn server_frame() -> impl Strategy<Value = OwnedServerFrame> {
    prop_oneof![
        (any::<[u64; 2]>(), any::<[u16; 5]>(), vec(any::<[u8; 3]>(), 1..=256))
            .prop_map(|(a, b, c)| OwnedServerFrame::Welcome(a, b, c)),
        any::<(u32, u16, u16, u8, u64)>().prop_map(|(seq, applied, rejected, reason, commit)| {
            OwnedServerFrame::PaintAck(PaintAck { seq, applied, rejected, reason, commit })
        }),
        any::<u64>().prop_map(OwnedServerFrame::Pong),
        any::<[u64; 6]>().prop_map(|[applied, rejected, connections, tick, uptime_ms, commit]| {
            OwnedServerFrame::Stats(ServerStats { applied, rejected, connections, tick, uptime_ms, commit })
        }),
        (any::<u8>(), ".{0,80}").prop_map(|(code, text)| OwnedServerFrame::Notice(code, text)),
        vec(any::<u8>(), 0..1100).prop_map(OwnedServerFrame::Datagram),
    ]
}

/// The changes of a record, in order.
fn changes() -> impl Strategy<Value = Vec<Change>> {
    let count = prop_oneof![0..20usize, 200..320usize, 560..=MAX_RECORD_CHANGES];
    count
        .prop_flat_map(|count| (subsequence((0..4096).collect::<Vec<u16>>(), count), vec(any::<u8>(), count)))
        .prop_map(|(offsets, colours)| {
            offsets.into_iter().zip(colours).map(|(offset, colour)| Change { offset, colour }).collect()
        })
}

fn tile_pixels() -> impl Strategy<Value = Box<[u8; 4096]>> {
    let boxed = |pixels: Vec<u8>| <Box<[u8; 4096]>>::try_from(pixels.into_boxed_slice()).unwrap();
    prop_oneof![
        any::<u8>().prop_map(|colour| Box::new([colour; 4096])),
        (any::<u8>(), 0..4096usize, any::<u8>()).prop_map(|(ground, at, colour)| {
            let mut pixels = Box::new([ground; 4096]);
            pixels[at] = colour;
            pixels
        }),
        vec(0u8..32, 4096).prop_map(boxed),
        vec(any::<u8>(), 4096).prop_map(boxed),
    ]
}

proptest! {
    #[test]
    fn client_frames_survive(frames in vec(client_frame(), 1..4)) {
        let mut wire = Vec::new();
        frames.iter().for_each(|frame| frame.borrow().encode(&mut wire));
        let mut rest = &wire[..];
        for frame in &frames {
            let (decoded, consumed) = ClientFrame::decode(rest).unwrap().unwrap();
            prop_assert_eq!(decoded, Decoded::Frame(frame.borrow()));
            rest = &rest[consumed..];
        }
        prop_assert!(rest.is_empty());
    }

    #[test]
    fn server_frames_survive(frames in vec(server_frame(), 1..4)) {
        let mut wire = Vec::new();
        frames.iter().for_each(|frame| frame.borrow().encode(&mut wire));
        let mut rest = &wire[..];
        for frame in &frames {
            let (decoded, consumed) = ServerFrame::decode(rest).unwrap().unwrap();
            prop_assert_eq!(decoded, Decoded::Frame(frame.borrow()));
            rest = &rest[consumed..];
        }
        prop_assert!(rest.is_empty());
    }

    #[test]
    fn paint_datagrams_survive(seq: u32, pixels in vec(any::<[u8; 5]>(), 1..=200)) {
        let paint = ClientDatagram::Paint { seq, pixels: Pixels::new(&pixels) };
        let mut wire = Vec::new();
        paint.encode(&mut wire);
        prop_assert_eq!(ClientDatagram::decode(&wire), Ok(paint));
    }

    #[test]
    fn diffs_survive(tick: u32, records in vec((any::<u32>(), any::<u32>(), changes()), 0..4)) {
        let mut wire = diff_header(tick).to_vec();
        for (tile, version, changes) in &records {
            encode_record(&mut wire, *tile, *version, changes);
        }
        let Ok(ServerDatagram::Diff { tick: decoded, records: iter }) = ServerDatagram::decode(&wire) else {
            panic!("not a DIFF");
        };
        prop_assert_eq!(decoded, tick);
        let again: Vec<_> = iter.map(|r| (r.tile, r.version, r.changes.iter().collect::<Vec<_>>())).collect();
        prop_assert_eq!(again, records);
    }

    #[test]
    fn versions_survive(tick: u32, tiles in vec(any::<[u8; 8]>(), 0..=136)) {
        let mut wire = versions_header(tick).to_vec();
        wire.extend(tiles.as_flattened());
        prop_assert!(wire.len() <= 1100);
        let versions = ServerDatagram::Versions { tick, tiles: TileVersions::new(&tiles) };
        prop_assert_eq!(ServerDatagram::decode(&wire), Ok(versions));
    }

    #[test]
    fn images_survive(
        images in vec((any::<u32>(), any::<u32>(), tile_pixels()), 0..5),
        piece in 1usize..6000,
    ) {
        let mut encoder = ImageEncoder::default();
        let mut wire = stream_header(TilesReason::View).to_vec();
        for (tile, version, pixels) in &images {
            let before = wire.len();
            encoder.encode(*tile, *version, pixels, &mut wire);
            prop_assert!(wire.len() - before <= canvas::codec::tiles::MAX_IMAGE);
        }
        let mut decoder = TilesDecoder::default();
        let mut again = Vec::new();
        for piece in wire.chunks(piece) {
            decoder
                .push(piece, |reason, image| {
                    assert_eq!(reason, TilesReason::View);
                    again.push((image.tile, image.version, Box::new(image.pixels)));
                })
                .unwrap();
        }
        prop_assert_eq!(decoder.finish(), Ok(TilesReason::View));
        prop_assert_eq!(again, images);
    }

    #[test]
    fn arbitrary_bytes_panic_nowhere(bytes in vec(any::<u8>(), 0..2000), piece in 1usize..300) {
        feed_everything(&bytes, piece);
    }

    #[test]
    fn arbitrary_bodies_panic_nowhere(
        kind in prop_oneof![0x00u8..0x08, 0x40u8..0x4a, 0x80u8..0x84],
        body in vec(any::<u8>(), 0..100),
        piece in 1usize..30,
    ) {
        let frame = [&[kind][..], &(body.len() as u32).to_le_bytes(), &body].concat();
        feed_everything(&frame, piece);
        feed_everything(&[&[kind, 0][..], &body].concat(), piece);
    }

    /// Valid input with a few bytes changed, cut at some place.
    #[test]
    fn mutated_input_panics_nowhere(
        client in client_frame(),
        server in server_frame(),
        records in vec((0u32..9, any::<u32>(), changes()), 1..3),
        pixels in tile_pixels(),
        mutations in vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut: prop::sample::Index,
    ) {
        let mut inputs = vec![Vec::new(); 2];
        client.borrow().encode(&mut inputs[0]);
        server.borrow().encode(&mut inputs[1]);
        let mut diff = diff_header(1).to_vec();
        for (tile, version, changes) in &records {
            encode_record(&mut diff, *tile, *version, changes);
        }
        inputs.push(diff);
        let mut stream = stream_header(TilesReason::Snapshot).to_vec();
        ImageEncoder::default().encode(1, 2, &pixels, &mut stream);
        inputs.push(stream);
        for mut input in inputs {
            for (at, value) in &mutations {
                let at = at.index(input.len());
                input[at] = *value;
            }
            input.truncate(cut.index(input.len() + 1));
            feed_everything(&input, 100);
        }
    }
}

/// Gives the bytes to every decoder and reads everything that comes out; checks what a decoder promises of
/// it.
fn feed_everything(bytes: &[u8], piece: usize) {
    if let Ok(Some((decoded, consumed))) = ClientFrame::decode(bytes) {
        assert!((5..=bytes.len()).contains(&consumed));
        if let Decoded::Frame(ClientFrame::Paint { pixels, .. }) = decoded {
            assert_eq!(pixels.iter().count(), pixels.len());
        }
    }
    if let Ok(Some((decoded, consumed))) = ServerFrame::decode(bytes) {
        assert!((5..=bytes.len()).contains(&consumed));
        if let Decoded::Frame(ServerFrame::Welcome(welcome)) = decoded {
            assert_eq!(welcome.geometry().is_ok(), welcome.width > 0 && welcome.height > 0);
            assert_eq!(welcome.palette().is_ok(), welcome.palette.len() > 1);
        }
    }
    if let Ok(ClientDatagram::Paint { pixels, .. }) = ClientDatagram::decode(bytes) {
        assert!((1..=200).contains(&pixels.iter().count()));
    }
    if let Ok(ServerDatagram::Diff { records, .. }) = ServerDatagram::decode(bytes) {
        for record in records {
            assert_eq!(record.changes.iter().count(), record.changes.len());
            assert!(record.changes.iter().all(|change| change.offset < 4096));
        }
    }
    let mut decoder = TilesDecoder::default();
    for piece in bytes.chunks(piece) {
        if decoder.push(piece, |_, _| ()).is_err() {
            assert!(decoder.push(&[], |_, _| ()).is_err(), "an error stays");
            break;
        }
    }
    let _ = decoder.finish();
}
