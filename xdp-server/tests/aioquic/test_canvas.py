"""canvas/1 as PROTOCOL.md has it, seen from outside by a client on aioquic.

Expects a server that was just started, so that the canvas is empty; what depends on that is only
checked when it is so. See conftest.py for the environment variables. The drain test comes last.
"""

import asyncio
import os
import random
import signal
import socket
import struct
import sys
import time
import zlib
from collections import defaultdict

import pytest

import canvas_client as cc
from canvas_client import DIFFS, SNAPSHOT

NO_APPLICATION_PROTOCOL = 0x100 + 120  # RFC 9001, section 8.1


async def eventually(condition, timeout=5.0, what=""):
    """Like CanvasClient.wait_for, for conditions on several clients."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not in {timeout} s: {what}"
        await asyncio.sleep(0.05)


def other_colour(client, x, y):
    return (client.mirror.pixel(x, y) + 1) % len(client.welcome.palette)


def random_pixels(rng, client, count, x0, y0, x1, y1):
    x1 = min(x1, client.welcome.width)
    y1 = min(y1, client.welcome.height)
    colours = len(client.welcome.palette)
    return [
        (rng.randrange(x0, x1), rng.randrange(y0, y1), rng.randrange(colours))
        for _ in range(count)
    ]


def need_canvas(client, width, height):
    if client.welcome.width < width or client.welcome.height < height:
        pytest.skip(f"needs a canvas of at least {width} x {height}")


def assert_same(*clients):
    first = clients[0].mirror
    for client in clients[1:]:
        mirror = client.mirror
        differ = [
            tile
            for tile in set(first.tiles) | set(mirror.tiles)
            if first.tile(tile) != mirror.tile(tile)
        ]
        assert not differ, f"tiles that differ: {sorted(differ)}"
        assert first.grown() == mirror.grown()


def same(*clients):
    first = clients[0].mirror
    return all(
        client.mirror.quiet
        and client.mirror.painted() == first.painted()
        and client.mirror.grown() == first.grown()
        for client in clients
    )


# ---- the client itself, without a server ------------------------------------------------------


def record(tile, version, *pixels):
    return cc.Record(tile, version, 0, pixels)


def image(tile, version, colour, reason=cc.REASON_REPAIR):
    return cc.Image(reason, tile, version, 1, bytes([colour]) * cc.TILE_BYTES)


def test_client_serial_numbers():
    """Section 2: versions wrap and are compared as in RFC 1982."""
    assert cc.newer(1, 0) and not cc.newer(0, 1) and not cc.newer(7, 7)
    assert cc.newer(0, 0xFFFFFFFF) and not cc.newer(0xFFFFFFFF, 0)
    assert cc.newer(0x7FFFFFFF, 0) and not cc.newer(0x80000001, 0)


def test_client_mirror_rules():
    """Section 4: v+1, older, gap, one REPAIR a second, records kept while an image is awaited."""
    mirror = cc.Mirror(128, 64, snapshot=False)
    mirror.on_record(record(0, 0xFFFFFFFE, (5, 1)))  # the first one seen: no gap
    assert mirror.pixel(5, 0) == 1 and not mirror.owed
    mirror.on_record(record(0, 0xFFFFFFFF, (5, 2)))
    mirror.on_record(record(0, 0, (5, 3)))  # v+1 across the wrap
    mirror.on_record(record(0, 0xFFFFFFFF, (5, 9)))  # an older one
    assert mirror.pixel(5, 0) == 3 and not mirror.owed
    mirror.on_record(record(0, 2, (6, 1)))  # a gap: applied, and asked for
    assert mirror.pixel(6, 0) == 1 and mirror.gaps == 1
    assert mirror.take_repairs(100.0) == [(0, 2)] and mirror.is_waiting(0)
    mirror.on_record(record(0, 5, (7, 5)))  # no gap while waiting: kept
    mirror.on_record(record(0, 4, (7, 4)))
    mirror.on_record(record(0, 3, (7, 3)))
    assert mirror.gaps == 1 and mirror.pixel(7, 0) == 0
    mirror.on_image(image(0, 3, 8))
    assert mirror.pixel(7, 0) == 5 and mirror.pixel(6, 0) == 8 and mirror.versions[0] == 5
    mirror.on_image(image(0, 4, 1))  # not awaited, and not newer
    assert mirror.pixel(6, 0) == 8
    mirror.on_versions([(0, 4), (1, 9)])  # older; a tile of which nothing is held
    assert not mirror.owed
    mirror.on_versions([(0, 6)])
    assert mirror.take_repairs(100.5) == [] and mirror.take_repairs(101.0) == [(0, 5)]


def test_client_snapshot_rules():
    """Section 4: a tile left out of the snapshot is at version 0; records before its end wait."""
    mirror = cc.Mirror(128, 64, snapshot=True)
    mirror.on_record(record(0, 8, (0, 4)))
    mirror.on_record(record(1, 1, (0, 5)))
    mirror.on_image(image(0, 7, 2, cc.REASON_SNAPSHOT))
    assert mirror.pixel(0, 0) == 4 and mirror.pixel(1, 0) == 2 and mirror.pixel(64, 0) == 0
    mirror.on_snapshot_end()
    assert mirror.pixel(64, 0) == 5 and mirror.gaps == 0
    mirror = cc.Mirror(128, 64, snapshot=True)
    mirror.on_snapshot_end()
    mirror.on_record(record(1, 2, (0, 5)))
    assert mirror.gaps == 1


def test_client_encodings():
    """Section 4: list, bitmap, and images raw, uniform, deflate."""
    bits = bytearray(512)
    bits[0] |= 1 << 3
    bits[511] |= 1 << 7
    payload = struct.pack("<BBI", 0x81, 0, 9)
    payload += struct.pack("<IIBH", 1, 2, 0, 2) + struct.pack("<HBHB", 4095, 7, 0, 8)
    payload += struct.pack("<IIBH", 3, 4, 1, 2) + bits + b"\x05\x06"
    diff = cc.Diff.parse(payload)
    assert diff.tick == 9
    assert diff.records[0] == cc.Record(1, 2, 0, ((4095, 7), (0, 8)))
    assert diff.records[1] == cc.Record(3, 4, 1, ((3, 5), (4095, 6)))
    for cut in range(7, len(payload)):
        if cut != 6 + 11 + 6:
            with pytest.raises(cc.WireError):
                cc.Diff.parse(payload[:cut])
    pixels = bytes(range(256)) * 16
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(pixels) + packer.flush()
    stream = bytes([1, 2])
    stream += struct.pack("<IIBI", 5, 6, 0, 4096) + pixels
    stream += struct.pack("<IIBI", 7, 8, 1, 1) + b"\x09"
    stream += struct.pack("<IIBI", 9, 10, 2, len(packed)) + packed
    reader = cc.TilesReader()
    images = []
    for at, byte in enumerate(stream):
        images += reader.feed(bytes([byte]), at == len(stream) - 1)
    assert images == [
        cc.Image(2, 5, 6, 0, pixels),
        cc.Image(2, 7, 8, 1, b"\x09" * 4096),
        cc.Image(2, 9, 10, 2, pixels),
    ]


# ---- the transport (section 1), connection IDs (section 6) ------------------------------------


async def test_snapshot_of_the_start(connect):
    """Section 4: the snapshot is exactly one TILES stream; on an empty canvas, two bytes."""
    async with connect(flags=SNAPSHOT) as client:
        before = await client.stats()
        await client.wait_snapshot()
        await asyncio.sleep(0.5)
        assert len(client.streams) == 1
        (stream,) = client.streams.values()
        assert stream.ended and stream.kind == 1 and stream.reason == cc.REASON_SNAPSHOT
        if before.commit == 0 and before.applied == 0:
            assert stream.received == 2 and stream.images == 0


async def test_transport_parameters(connect):
    """Section 1: DATAGRAM of at least 1200 bytes, max_ack_delay up to 100 ms, ALPN."""
    async with connect(greet=False) as client:
        parameters = client.transport_parameters()
        assert parameters.max_datagram_frame_size >= 1200
        assert parameters.max_ack_delay is None or parameters.max_ack_delay <= 100
        assert parameters.initial_max_streams_bidi >= 1
        assert client.alpn == "canvas/1"


async def test_alpn_among_others(connect):
    """Section 1: the server picks canvas/1 from a longer list."""
    async with connect(alpn=("hq-interop", "canvas/1")) as client:
        assert client.alpn == "canvas/1"
        assert await client.ping_pong(1) == 1


async def test_wrong_alpn_is_refused(connect):
    """Section 1: only canvas/1 (and h3) are spoken."""
    async with connect(alpn=("canvas/999",), handshake=False) as client:
        terminated = await client.wait_terminated()
        assert terminated.error_code == NO_APPLICATION_PROTOCOL


async def test_connection_ids(connect):
    """Section 6: seventeen bytes; those of one connection share nothing but the worker index."""
    async with connect() as client:
        await client.wait_snapshot()
        ids = client.server_connection_ids()
        assert all(len(cid) == 17 for cid in ids)
        assert len({cid[0] for cid in ids}) == 1
        assert len({cid[1:] for cid in ids}) == len(ids)
        initial = client.transport_parameters().initial_source_connection_id
        assert len(initial) == 17 and initial[0] == ids[0][0]


def udp_exchange(address, packet, seconds=0.5):
    """Sends one UDP packet, and returns what comes back within that time."""
    family, _, _, _, target = socket.getaddrinfo(*address, type=socket.SOCK_DGRAM)[0]
    replies = []
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.sendto(packet, target)
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            sock.settimeout(left)
            try:
                replies.append(sock.recv(65_535))
            except TimeoutError:
                break
    return replies


def test_version_negotiation(address):
    """Section 1: QUIC version 1; any other version is answered as in RFC 9000, section 17.2.1."""
    destination, source = os.urandom(8), os.urandom(8)
    packet = b"\xc3" + struct.pack(">I", 0x1A2A3A4A)
    packet += bytes([8]) + destination + bytes([8]) + source
    packet += os.urandom(1200 - len(packet))
    replies = udp_exchange(address, packet)
    assert len(replies) == 1
    reply = replies[0]
    assert reply[0] & 0x80
    assert reply[1:5] == bytes(4)
    assert reply[5:14] == bytes([8]) + source
    assert reply[14:23] == bytes([8]) + destination
    assert len(reply) > 23 and (len(reply) - 23) % 4 == 0
    versions = [version for (version,) in struct.iter_unpack(">I", reply[23:])]
    assert 1 in versions and 0x1A2A3A4A not in versions


@pytest.mark.parametrize("size", [200, 60, 40, 22])
@pytest.mark.parametrize("worker", [0, 255, None])
def test_unknown_connection_id(address, worker, size):
    """Section 6: a stateless reset, smaller than what asked for it (RFC 9000, 10.3), or nothing."""
    cid = bytearray(os.urandom(17))
    if worker is not None:
        cid[0] = worker
    packet = b"\x43" + bytes(cid)
    packet += os.urandom(size - len(packet))
    replies = udp_exchange(address, packet, 0.15)
    assert len(replies) <= 1
    for reply in replies:
        assert 21 <= len(reply) < len(packet)
        assert reply[0] & 0xC0 == 0x40


async def test_nat_rebinding(connect):
    """Section 6 and RFC 9000, section 9: the session goes on from another port."""
    async with connect() as client, connect() as painter:
        need_canvas(client, 8, 8)
        await client.wait_snapshot()
        await painter.wait_snapshot()
        for step in range(3):
            before, after = await client.rebind()
            assert before[1] != after[1]
            if step == 2 and len(client.server_connection_ids()) > 1:
                client.change_connection_id()  # a migration, not only a rebinding
            assert await client.ping_pong(step) == step
            colour = other_colour(client, step, 0)
            client.paint([(step, 0, colour)])
            await client.wait_for(lambda: client.mirror.pixel(step, 0) == colour)
            # what others paint arrives too, after the path was validated
            colour = other_colour(painter, step, 1)
            assert (await painter.paint_acked([(step, 1, colour)])).applied == 1
            await client.wait_for(lambda: client.mirror.pixel(step, 1) == colour)
        assert client.terminated is None


# ---- the control stream (sections 2 and 3) ----------------------------------------------------


async def test_welcome(connect):
    """Section 3: WELCOME, the first frame, and section 2: the limits of what it tells."""
    async with connect() as client, connect(flags=0) as second:
        welcome = client.welcome
        assert client.frames[0][0] == cc.WELCOME
        assert welcome.version == 1
        assert 1 <= welcome.width <= 65535 and 1 <= welcome.height <= 65535
        assert welcome.tile_side == 64
        assert 1 <= welcome.tick_ms <= 10_000
        assert 2 <= len(welcome.palette) <= 256
        assert second.welcome.client_id != welcome.client_id
        assert second.welcome._replace(client_id=0) == welcome._replace(client_id=0)


async def test_token_is_accepted(connect):
    """Section 3: a HELLO with a token, on a server without authentication."""
    for token in (b"secret", bytes(range(255))):
        async with connect(token=token) as client:
            assert await client.ping_pong(2) == 2


async def test_ping(connect):
    """Section 3: PONG holds the PING's u64; trailing bytes are skipped."""
    async with connect(flags=0) as client:
        values = [0, 1, 2**32, 2**63, 2**64 - 1]
        client.send(b"".join(cc.ping(value) for value in values))
        for value in values:
            assert await client.expect(cc.PONG) == struct.pack("<Q", value)
        client.send(cc.frame(cc.PING, struct.pack("<Q", 77) + b"later fields"))
        assert await client.expect(cc.PONG) == struct.pack("<Q", 77)


async def test_frames_in_pieces(connect):
    """Section 3: frames are cut out of a stream of bytes, wherever its pieces end."""
    async with connect(greet=False) as client:
        for byte in cc.hello(0) + cc.ping(5) + cc.ping(6):
            client.send(bytes([byte]))
            await asyncio.sleep(0.002)
        assert struct.unpack("<Q", await client.expect(cc.PONG)) == (5,)
        assert struct.unpack("<Q", await client.expect(cc.PONG)) == (6,)


async def test_unknown_frames_are_skipped(connect):
    """Section 3: a frame of an unknown type is skipped, up to the greatest length."""
    async with connect(flags=0) as client:
        client.send(cc.frame(0x3F) + cc.frame(0x3F, b"abc") + cc.frame(0x00, b"x") + cc.ping(1))
        assert await client.expect(cc.PONG) == struct.pack("<Q", 1)
        client.send(cc.frame(0xF0, bytes(cc.MAX_CLIENT_FRAME)) + cc.ping(2))
        assert await client.expect(cc.PONG) == struct.pack("<Q", 2)
        assert [kind for kind, _ in client.frames] == [cc.WELCOME, cc.PONG, cc.PONG]


VIOLATIONS = {
    "PING before HELLO": (False, cc.ping(1)),
    "PAINT before HELLO": (False, cc.paint_frame(1, [(0, 0, 1)])),
    "HELLO too short": (False, cc.frame(cc.HELLO, b"\x01\x00\x03")),
    "HELLO with half a token": (False, cc.frame(cc.HELLO, struct.pack("<HHB", 1, 3, 9) + b"half")),
    "second HELLO": (True, cc.hello(0)),
    "PAINT too long": (True, struct.pack("<BI", cc.PAINT, cc.MAX_CLIENT_FRAME + 1)),
    "unknown type too long": (True, struct.pack("<BI", 0x3F, cc.MAX_CLIENT_FRAME + 1)),
    "4 GiB": (True, struct.pack("<BI", cc.REPAIR, 0xFFFFFFFF)),
    "PING too short": (True, cc.frame(cc.PING, bytes(7))),
    "PING empty": (True, cc.frame(cc.PING)),
    "VIEW too short": (True, cc.frame(cc.VIEW, bytes(11))),
    "PAINT without flags": (True, cc.frame(cc.PAINT, bytes(4))),
    "PAINT of half an entry": (True, cc.frame(cc.PAINT, bytes(5 + 5 + 3))),
    "REPAIR of half an entry": (True, cc.frame(cc.REPAIR, bytes(8 + 4))),
    "WELCOME from the client": (True, cc.frame(cc.WELCOME, bytes(40))),
    "PAINT_ACK from the client": (True, cc.frame(cc.PAINT_ACK, bytes(17))),
    "PONG from the client": (True, cc.frame(cc.PONG, bytes(8))),
    "STATS reply from the client": (True, cc.frame(cc.STATS_REPLY, bytes(48))),
    "NOTICE from the client": (True, cc.frame(cc.NOTICE, b"\x00hi")),
    "DATAGRAM from the client": (True, cc.frame(cc.DATAGRAM, cc.paint_datagram(1, [(0, 0, 1)]))),
}


@pytest.mark.parametrize("name", VIOLATIONS)
async def test_violation(connect, name):
    """Sections 3 and 5: each of these closes the connection with PROTOCOL_VIOLATION."""
    greet, data = VIOLATIONS[name]
    async with connect(flags=0, greet=greet) as client:
        client.send(data)
        terminated = await client.wait_terminated()
        assert terminated.frame_type is None  # an application close
        assert terminated.error_code == cc.CLOSE_PROTOCOL_VIOLATION


async def test_stats(connect):
    """Section 3: STATS counts pixels and connections, and its clocks do not go back."""
    async with connect(flags=0) as client, connect(flags=0):
        first = await client.stats()
        assert first.connections >= 2
        ack = await client.paint_acked([(0, 0, 0), (65535, 65535, 0)])
        assert (ack.applied, ack.rejected) == (1, 1)
        deadline = time.monotonic() + 3.0
        while True:
            last = await client.stats()
            if last.applied > first.applied and last.rejected > first.rejected:
                break
            assert time.monotonic() < deadline, (first, last)
            await asyncio.sleep(0.1)
        assert last.tick >= first.tick and last.uptime_ms >= first.uptime_ms
        assert last.commit >= ack.commit
        client.send(cc.frame(cc.STATS, b"trailing"))
        assert len(await client.expect(cc.STATS_REPLY)) >= 48


# ---- painting (sections 3 and 4) --------------------------------------------------------------


async def test_paint_by_datagram(connect):
    """Section 4: the diff that carries the pixel back is the confirmation."""
    async with connect() as client:
        await client.wait_snapshot()
        colour = other_colour(client, 0, 0)
        client.paint([(0, 0, colour)])
        await client.wait_for(lambda: client.mirror.pixel(0, 0) == colour)
        tile, offset = client.mirror.locate(0, 0)
        carried = [
            pixel
            for diff, _ in client.diffs
            for record in diff.records
            if record.tile == tile
            for pixel in record.pixels
        ]
        assert (offset, colour) in carried
        assert client.mirror.gaps == 0 and not client.framed


async def test_paint_datagram_of_200(connect, free_painting):
    """Section 4: up to 200 pixels in one datagram, all of which come back."""
    async with connect() as client:
        need_canvas(client, 200, 1)
        await client.wait_snapshot()
        pixels = [(x, 0, other_colour(client, x, 0)) for x in range(200)]
        client.paint(pixels)
        await client.wait_for(lambda: all(client.mirror.pixel(x, y) == c for x, y, c in pixels))


async def test_paint_by_frame(connect, free_painting):
    """Section 3: PAINT_ACK counts, names the first reason, and tells the commit."""
    async with connect() as client:
        await client.wait_snapshot()
        width, height = client.welcome.width, client.welcome.height
        colours = len(client.welcome.palette)
        first = (0, 0, other_colour(client, 0, 0))
        last = (width - 1, height - 1, other_colour(client, width - 1, height - 1))
        outside = [(x, y, 0) for x, y in ((width, 0), (0, height)) if x < 65536 and y < 65536]
        ack = await client.paint_acked([first])
        assert ack[1:4] == (1, 0, cc.REJECT_NONE)
        if outside:
            mixed = [first] + outside + [last]
            bad_colour = [(0, 0, colours)] if colours < 256 else []
            ack = await client.paint_acked(mixed + bad_colour)
            assert ack.applied == 2
            assert ack.rejected == len(outside) + len(bad_colour)
            assert ack.reason == cc.REJECT_OUTSIDE
        if colours < 256:
            ack = await client.paint_acked([(0, 0, colours)] + outside + [(0, 0, 255), first])
            assert (ack.applied, ack.rejected) == (1, len(outside) + 2)
            assert ack.reason == cc.REJECT_COLOUR
        await client.wait_for(lambda: client.mirror.pixel(0, 0) == first[2])
        x, y, colour = last
        if outside:
            await client.wait_for(lambda: client.mirror.pixel(x, y) == colour)


async def test_commit_grows(connect, free_painting):
    """Section 3: commit is the last applied pixel's position in the canvas's total order."""
    async with connect(flags=0) as one, connect(flags=0) as two:
        last = 0
        for turn in range(4):
            for client in (one, two):
                ack = await client.paint_acked([(0, 0, (turn + n) % 2) for n in range(3)])
                assert ack.applied == 3
                assert ack.commit >= last + 3
                last = ack.commit


async def test_paint_frame_without_pixels(connect):
    """Section 3: n may be 0: nothing is applied, and it is acknowledged."""
    async with connect(flags=0) as client:
        ack = await client.paint_acked([])
        assert ack[1:4] == (0, 0, cc.REJECT_NONE)
        assert await client.ping_pong(3) == 3


async def test_durable_acknowledgement(connect):
    """Section 3: PAINT flags bit 0 puts the acknowledgement off, but it comes."""
    async with connect(flags=0) as client:
        ack = await client.paint_acked([(0, 0, 1)], flags=1, timeout=10.0)
        assert (ack.applied, ack.rejected) == (1, 0)


async def test_frames_are_acknowledged_each(connect, free_painting):
    """Section 3: every PAINT has its own PAINT_ACK, with its seq."""
    async with connect(flags=0) as client:
        numbers = [7, 7, 0, 0xFFFFFFFF]  # seq is the client's own
        client.send(b"".join(cc.paint_frame(number, [(0, 0, 1)]) for number in numbers))
        acks = [cc.PaintAck.parse(await client.expect(cc.PAINT_ACK)) for _ in numbers]
        assert sorted(ack.seq for ack in acks) == sorted(numbers)
        assert all(ack.applied == 1 for ack in acks)


async def test_greatest_paint_frame(connect, free_painting):
    """Sections 3 and 4: a frame of 65,536 bytes; its diffs are split, and at most 1100 bytes."""
    async with connect() as client:
        need_canvas(client, 256, 128)
        await client.wait_snapshot()
        rng = random.Random(1)
        count = (cc.MAX_CLIENT_FRAME - 5) // 5
        pixels = random_pixels(rng, client, count, 128, 0, 256, 128)
        ack = await client.paint_acked(pixels, timeout=10.0)
        assert (ack.applied, ack.rejected, ack.reason) == (count, 0, 0)
        final = {(x, y): colour for x, y, colour in pixels}
        await client.wait_for(
            lambda: all(client.mirror.pixel(x, y) == c for (x, y), c in final.items()), 10.0
        )
        assert client.datagrams
        assert max(map(len, client.datagrams)) <= cc.MAX_SERVER_DATAGRAM


MALFORMED = {
    "cut short": cc.paint_datagram(1, [])[:5],
    "no pixels": cc.paint_datagram(1, []),
    "half an entry": cc.paint_datagram(1, [(0, 0, 1)])[:-2],
    "201 pixels": cc.paint_datagram(1, [(0, 0, 1)] * 201),
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_malformed_datagrams(connect, name):
    """Sections 4 and 5: the 100th malformed datagram closes the connection, the 99th does not."""
    async with connect(flags=0) as client:
        for _ in range(99):
            client.send_datagram(MALFORMED[name])
        await asyncio.sleep(0.3)
        assert await client.ping_pong(99) == 99
        await asyncio.sleep(0.7)  # longer than a close takes to be noticed
        assert client.terminated is None
        client.send_datagram(MALFORMED[name])
        terminated = await client.wait_terminated()
        assert terminated.frame_type is None
        assert terminated.error_code == cc.CLOSE_PROTOCOL_VIOLATION


async def test_unknown_datagrams_do_not_count(connect):
    """Section 4: datagrams of an unknown type are dropped, without limit."""
    async with connect() as client:
        await client.wait_snapshot()
        for number in range(150):
            client.send_datagram(bytes([0x20 + number % 64]) + bytes(number % 20))
        await asyncio.sleep(0.3)
        assert await client.ping_pong(150) == 150
        colour = other_colour(client, 1, 0) if client.welcome.width > 1 else 0
        client.paint([(min(1, client.welcome.width - 1), 0, colour)])
        await asyncio.sleep(0.7)
        assert await client.ping_pong(151) == 151
        assert client.terminated is None


async def test_paint_datagram_before_hello(connect):
    """Section 4: it counts as rejected, is not painted, and closes nothing."""
    async with connect() as watcher, connect(greet=False, flags=0) as client:
        await watcher.wait_snapshot()
        before = await watcher.stats()
        held = watcher.mirror.pixel(0, 0)
        colour = other_colour(watcher, 0, 0)
        client.paint([(0, 0, colour)] * 3)
        await asyncio.sleep(0.5)
        client.send(cc.hello(0) + cc.ping(4))
        assert await client.expect(cc.PONG) == struct.pack("<Q", 4)
        deadline = time.monotonic() + 3.0
        while (await watcher.stats()).rejected < before.rejected + 3:
            assert time.monotonic() < deadline, "the pixels were not counted as rejected"
            await asyncio.sleep(0.1)
        assert watcher.mirror.pixel(0, 0) == held
        client.paint([(0, 0, colour)])
        await watcher.wait_for(lambda: watcher.mirror.pixel(0, 0) == colour)


# ---- diffs, views and images (sections 3 and 4) -----------------------------------------------


async def test_snapshot_of_what_was_painted(connect, free_painting):
    """Section 4: one TILES stream of reason 0 brings everything that was painted."""
    async with connect() as painter:
        need_canvas(painter, 200, 200)
        await painter.wait_snapshot()
        rng = random.Random(2)
        pixels = random_pixels(rng, painter, 2000, 0, 0, 200, 200)
        await painter.paint_acked(pixels)
        await painter.wait_for(
            lambda: all(
                painter.mirror.pixel(x, y) == c
                for (x, y), c in {(x, y): c for x, y, c in pixels}.items()
            )
        )
        async with connect() as late:
            await late.wait_snapshot()
            await asyncio.sleep(0.3)
            kinds = [stream.reason for stream in late.streams.values()]
            assert kinds == [cc.REASON_SNAPSHOT]
            tiles = [image.tile for image in late.images]
            assert len(tiles) == len(set(tiles))
            await eventually(lambda: same(painter, late), 5.0, "the snapshot equals the mirror")
            assert_same(painter, late)


async def test_neither_flag(connect):
    """Section 3: with neither bit and no VIEW a client gets no images, diffs or VERSIONS."""
    async with connect(flags=0) as client, connect() as watcher:
        await watcher.wait_snapshot()
        colour = other_colour(watcher, 0, 0)
        assert (await client.paint_acked([(0, 0, colour)])).applied == 1
        await watcher.wait_for(lambda: watcher.mirror.pixel(0, 0) == colour)
        await watcher.wait_for(lambda: watcher.version_lists, 5.0, "VERSIONS")
        assert not (client.datagrams or client.framed or client.streams)


async def test_snapshot_without_diffs(connect):
    """Section 3: with bit 0 alone there is a snapshot, and nothing after it."""
    async with connect(flags=SNAPSHOT) as client:
        await client.wait_snapshot()
        colour = other_colour(client, 0, 0)
        assert (await client.paint_acked([(0, 0, colour)])).applied == 1
        await asyncio.sleep(1.0)
        assert not (client.datagrams or client.framed)
        assert len(client.streams) == 1


async def test_diffs_without_snapshot(connect):
    """Sections 3 and 4: with bit 1 alone a client starts from the first record that it sees."""
    async with connect(flags=DIFFS) as client, connect() as watcher:
        await watcher.wait_snapshot()
        colour = other_colour(watcher, 0, 0)
        assert (await watcher.paint_acked([(0, 0, colour)])).applied == 1
        await client.wait_for(lambda: client.diffs)
        assert client.mirror.pixel(0, 0) == colour
        assert client.mirror.gaps == 0 and not client.streams


async def test_view(connect, free_painting):
    """Section 3: tiles that come into view are sent as images, diffs are of tiles in view."""
    async with connect(flags=DIFFS) as client, connect() as painter:
        need_canvas(client, 192, 64)
        await painter.wait_snapshot()

        def seen(reason=cc.REASON_VIEW):
            return {image.tile for image in client.images if image.reason == reason}

        # half open, in pixels: this touches the tile at the origin only
        assert client.set_view(0, 0, 64, 64) == {0}
        await client.wait_for(lambda: seen() == {0})
        # the second touches one more tile, of which the first pixel column is enough
        client.images.clear()
        assert client.set_view(10, 10, 65, 20) == {1}
        await client.wait_for(lambda: seen() == {1})
        client.images.clear()
        assert client.set_view(64, 0, 128, 64) == set()
        assert await client.ping_pong(8) == 8
        await asyncio.sleep(0.3)
        assert seen() == set()
        # diffs are of tile 1 only
        mark = len(client.diffs)
        pixels = [(x, 3, other_colour(painter, x, 3)) for x in (3, 70, 140)]
        assert (await painter.paint_acked(pixels)).applied == 3
        await client.wait_for(lambda: client.mirror.pixel(70, 3) == pixels[1][2])
        await asyncio.sleep(0.3)
        tiles = {record.tile for diff, _ in client.diffs[mark:] for record in diff.records}
        assert tiles == {1}
        # the whole canvas: all tiles but the one in view come, with what was painted meanwhile
        entering = client.set_view(0, 0, 0, 0)
        assert entering == set(range(client.mirror.count)) - {1}
        await client.wait_for(lambda: seen() >= entering, 10.0, "images of the whole canvas")
        assert seen() == entering
        await painter.wait_for(lambda: painter.mirror.pixel(140, 3) == pixels[2][2])
        assert client.mirror.pixel(3, 3) == pixels[0][2]
        assert client.mirror.pixel(140, 3) == pixels[2][2]
        await eventually(lambda: same(client, painter), 5.0, "equal mirrors after VIEW")
        assert all(stream.reason == cc.REASON_VIEW for stream in client.streams.values())


async def test_view_without_diffs(connect):
    """Section 3: without bit 1 a VIEW brings images and no diffs."""
    async with connect(flags=0) as client:
        assert client.set_view(0, 0, 1, 1) == {0}
        await client.wait_for(lambda: [(i.reason, i.tile) for i in client.images] == [(1, 0)])
        colour = other_colour(client, 0, 0)
        assert (await client.paint_acked([(0, 0, colour)])).applied == 1
        await asyncio.sleep(0.5)
        assert not (client.datagrams or client.framed)


async def test_view_after_snapshot(connect):
    """Section 3: after a snapshot of the whole canvas a VIEW brings no image, and cuts diffs."""
    async with connect() as client:
        need_canvas(client, 128, 64)
        await client.wait_snapshot()
        assert client.set_view(0, 0, 64, 64) == set()
        assert await client.ping_pong(9) == 9
        mark = len(client.diffs)
        inside, outside = other_colour(client, 9, 9), other_colour(client, 100, 9)
        await client.paint_acked([(9, 9, inside), (100, 9, outside)])
        await client.wait_for(lambda: client.mirror.pixel(9, 9) == inside)
        await asyncio.sleep(0.3)
        tiles = {record.tile for diff, _ in client.diffs[mark:] for record in diff.records}
        assert tiles == {0}
        assert [stream.reason for stream in client.streams.values()] == [cc.REASON_SNAPSHOT]
        # the tile comes back into view with an image
        assert 1 in client.set_view(0, 0, 128, 64)
        await client.wait_for(lambda: client.mirror.pixel(100, 9) == outside)
        assert {image.tile for image in client.images if image.reason == cc.REASON_VIEW} == {1}


async def test_repair(connect):
    """Section 4: an image of every tile named, of a current version too; others are skipped."""
    async with connect(auto_repair=False) as client:
        await client.wait_snapshot()
        colour = other_colour(client, 0, 0)
        client.paint([(0, 0, colour)])
        await client.wait_for(lambda: client.mirror.pixel(0, 0) == colour)
        count = client.mirror.count
        tiles = sorted({0, 1 % count, count // 2, count - 1})
        held = [(tile, client.mirror.held(tile)) for tile in tiles]
        mark = len(client.images)
        client.send(cc.repair(held + [(count, 0), (0xFFFFFFFF, 0)]))
        client.send(cc.repair([]))
        await client.wait_for(lambda: len(client.images) >= mark + len(tiles))
        assert await client.ping_pong(10) == 10
        await asyncio.sleep(0.3)
        images = client.images[mark:]
        assert sorted(image.tile for image in images) == tiles
        assert all(image.reason == cc.REASON_REPAIR for image in images)
        for image in images:
            assert not cc.newer(client.mirror.held(image.tile), image.version)
            assert image.pixels == client.mirror.tile(image.tile)
        # a version that the client cannot have makes no difference
        mark = len(client.images)
        client.send(cc.repair([(0, 12345)]))
        await client.wait_for(lambda: len(client.images) > mark)
        assert client.images[mark].tile == 0


async def test_edge_tiles(connect, free_painting):
    """Section 2: offsets outside the canvas are never sent, and are 0 in images."""
    async with connect() as client:
        mirror = client.mirror
        corner = mirror.count - 1
        if not mirror.is_edge(corner):
            pytest.skip("the canvas is a whole number of tiles")
        await client.wait_snapshot()
        x0, y0 = mirror.origin(corner)
        colour = len(client.welcome.palette) - 1
        pixels = [
            (x, y, colour)
            for y in range(y0, client.welcome.height)
            for x in range(x0, client.welcome.width)
        ]
        assert (await client.paint_acked(pixels)).applied == len(pixels)
        await client.wait_for(lambda: all(mirror.pixel(x, y) == colour for x, y, _ in pixels))
        # of one colour all over: still 0 outside the canvas (the mirror checks every image)
        mark = len(client.images)
        client.send(cc.repair([(corner, mirror.held(corner))]))
        await client.wait_for(lambda: len(client.images) > mark)
        image = client.images[mark]
        assert image.tile == corner
        for offset, pixel in enumerate(image.pixels):
            assert pixel == (colour if mirror.inside(corner, offset) else 0)
        bottom = (client.welcome.width - 1, client.welcome.height, colour)
        if bottom[1] < 65536:
            ack = await client.paint_acked([bottom])
            assert (ack.applied, ack.reason) == (0, cc.REJECT_OUTSIDE)


@pytest.mark.parametrize("limit", [None, 1000])
async def test_without_datagrams(connect, limit, free_painting):
    """Sections 1 and 3: who offers no DATAGRAM, or a small one, gets the payloads as frames."""
    async with connect(max_datagram_frame_size=limit) as client, connect() as normal:
        need_canvas(client, 64, 64)
        await client.wait_snapshot()
        await normal.wait_snapshot()
        rng = random.Random(3)
        pixels = random_pixels(rng, client, 1500, 0, 0, 64, 64)
        pixels = [(0, 0, other_colour(client, 0, 0))] + pixels
        assert (await client.paint_acked(pixels)).applied == len(pixels)
        await client.wait_for(lambda: client.framed)
        await eventually(lambda: same(client, normal), 5.0, "the same canvas by frames")
        assert not client.datagrams and not normal.framed
        await client.wait_for(lambda: client.version_lists, 5.0, "VERSIONS by frame")
        assert not client.datagrams


async def test_same_view_same_bytes(connect, free_painting):
    """Section 4: clients with the same view get the same DIFF bytes."""
    async with connect() as one, connect() as two, connect(flags=0) as painter:
        need_canvas(one, 200, 200)
        await one.wait_snapshot()
        await two.wait_snapshot()
        marks = len(one.diffs), len(two.diffs)
        await asyncio.sleep(0.2)
        rng = random.Random(4)
        for _ in range(20):
            painter.paint(random_pixels(rng, one, 150, 0, 0, 200, 200))
            await asyncio.sleep(0.03)
        await asyncio.sleep(0.5)
        await eventually(lambda: same(one, two), 5.0, "equal mirrors")

        def by_tick(client, mark):
            ticks = defaultdict(list)
            for diff, payload in client.diffs[mark:]:
                ticks[diff.tick].append(payload)
            return {tick: sorted(payloads) for tick, payloads in ticks.items()}

        first, second = by_tick(one, marks[0]), by_tick(two, marks[1])
        assert len(first) >= 2
        assert first == second
        assert sorted(first) == list(first), "ticks come in order"


async def test_two_painters_and_a_late_joiner(connect, free_painting):
    """Section 4: whatever they painted and whenever they joined, all hold the same canvas."""
    async with connect() as one, connect() as two:
        need_canvas(one, 300, 300)
        await one.wait_snapshot()
        await two.wait_snapshot()
        rng = random.Random(5)

        async def work(client):
            for turn in range(25):
                pixels = random_pixels(rng, client, 100, 0, 0, 300, 300)
                if turn % 5 == 4:
                    assert (await client.paint_acked(pixels)).applied == 100
                else:
                    client.paint(pixels)
                await asyncio.sleep(0.03)

        tasks = [asyncio.create_task(work(client)) for client in (one, two)]
        await asyncio.sleep(0.4)
        async with connect() as late:  # while they paint
            await asyncio.gather(*tasks)
            await late.wait_snapshot()
            async with connect() as last:  # when they have painted
                await last.wait_snapshot()
                await asyncio.sleep(0.3)
                await eventually(lambda: same(one, two, late, last), 8.0, "equal mirrors")
                assert_same(one, two, late, last)
                assert len(one.mirror.painted()) >= 4


async def test_loss_is_repaired(connect, free_painting):
    """Section 4: gaps, VERSIONS and REPAIR make up for 30% of the DIFFs."""
    rng = random.Random(6)

    def lose(payload):
        return payload[0] == cc.DG_DIFF and rng.random() < 0.3

    async with connect() as painter, connect(drop=lose) as lossy:
        need_canvas(painter, 400, 200)
        await painter.wait_snapshot()
        await lossy.wait_snapshot()
        for _ in range(40):
            painter.paint(random_pixels(rng, painter, 60, 0, 0, 400, 200))
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.3)
        await eventually(lambda: same(painter, lossy), 10.0, "the lossy mirror catches up")
        assert_same(painter, lossy)
        assert lossy.mirror.gaps > 0 and lossy.mirror.repairs > 0


async def test_versions(connect):
    """Section 4: a lost last diff is noticed by VERSIONS, three of which name the tile."""
    deaf = [False]

    def lose(payload):
        return deaf[0] and payload[0] == cc.DG_DIFF

    async with connect(drop=lose) as client:
        await client.wait_snapshot()
        await asyncio.sleep(0.2)
        deaf[0] = True
        tile, _ = client.mirror.locate(0, 0)
        colour = other_colour(client, 0, 0)
        mark = len(client.version_lists)
        assert (await client.paint_acked([(0, 0, colour)])).applied == 1
        await client.wait_for(lambda: client.mirror.pixel(0, 0) == colour, 6.0, "repaired")
        assert client.mirror.repairs == 1 and client.mirror.gaps == 0
        final = client.mirror.held(tile)

        def rounds():
            """tick -> the tiles that the VERSIONS of this tick name, from the change on"""
            named = defaultdict(dict)
            for versions in client.version_lists[mark:]:
                named[versions.tick].update(versions.tiles)
            named = list(named.values())
            while named and named[0].get(tile) != final:
                named.pop(0)
            return named

        await client.wait_for(lambda: len(rounds()) >= 3, 8.0, "three VERSIONS")
        assert all(named.get(tile) == final for named in rounds()[:3])


async def test_byte_budget(connect, free_painting):
    """Sections 3 and 4: a client past the budget of its VIEW catches up."""
    async with connect() as normal, connect() as slow:
        need_canvas(normal, 256, 128)
        await normal.wait_snapshot()
        await slow.wait_snapshot()
        slow.set_view(0, 0, 0, 0, kbits=200)
        rng = random.Random(7)
        for _ in range(10):
            pixels = random_pixels(rng, normal, 1000, 0, 0, 256, 128)
            assert (await normal.paint_acked(pixels)).applied == len(pixels)
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.3)
        await eventually(lambda: same(normal, slow), 20.0, "the slow client catches up")
        assert_same(normal, slow)


# ---- closing (section 5) ----------------------------------------------------------------------


async def test_close_by_the_client(connect):
    """Sections 3 and 5: a client that closes with 0 no longer counts as a connection."""
    async with connect(flags=0) as client:
        async with connect(flags=0), connect(flags=0), connect(flags=0):
            during = (await client.stats()).connections
            assert during >= 4
        deadline = time.monotonic() + 5.0
        while (await client.stats()).connections > during - 3:
            assert time.monotonic() < deadline, "closed connections still count"
            await asyncio.sleep(0.1)


async def test_drain(connect, server_pid):
    """Section 5: on SIGTERM the server sends NOTICE with code 5, and closes with 5."""
    async with connect() as watcher, connect(flags=0) as painter:
        await watcher.wait_snapshot()
        os.kill(server_pid, signal.SIGTERM)
        for client in (watcher, painter):
            terminated = await client.wait_terminated(15.0)
            assert terminated.frame_type is None
            assert terminated.error_code == cc.CLOSE_DRAINING
            notices = [cc.Notice.parse(body) for kind, body in client.frames if kind == cc.NOTICE]
            assert [notice.code for notice in notices] == [cc.CLOSE_DRAINING]


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-q", *sys.argv[1:]]))
