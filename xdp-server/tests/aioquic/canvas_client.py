"""A small client of canvas/1 on aioquic, written from PROTOCOL.md.

The sections named in the comments are those of that page. The client is strict: whatever the
server sends that the page does not allow is kept in `CanvasClient.error` and raised by the next
`wait_for`, or when the connection's `async with` block ends.
"""

import asyncio
import itertools
import socket
import ssl
import struct
import time
import zlib
from collections import defaultdict, deque
from contextlib import asynccontextmanager
from typing import Callable, NamedTuple

from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.buffer import Buffer
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicProtocolVersion, pull_quic_transport_parameters
from aioquic.tls import ExtensionType

ALPN = "canvas/1"
TILE_SIDE = 64
TILE_BYTES = TILE_SIDE * TILE_SIDE
MAX_CLIENT_FRAME = 65_536
MAX_PAINT_DATAGRAM = 200
MAX_SERVER_DATAGRAM = 1100
REPAIR_INTERVAL = 1.0

# HELLO flags
SNAPSHOT = 1
DIFFS = 2

# control frames, client to server
HELLO, VIEW, PAINT, REPAIR, PING, STATS = 0x01, 0x02, 0x03, 0x04, 0x05, 0x06
# control frames, server to client
WELCOME, PAINT_ACK, PONG, STATS_REPLY, NOTICE, DATAGRAM = 0x41, 0x43, 0x45, 0x46, 0x47, 0x48
# datagram payloads
DG_PAINT, DG_DIFF, DG_VERSIONS = 0x01, 0x81, 0x82
# kinds of server unidirectional streams, and reasons of TILES
STREAM_TILES = 0x01
REASON_SNAPSHOT, REASON_VIEW, REASON_REPAIR = 0, 1, 2

REJECT_NONE, REJECT_OUTSIDE, REJECT_COLOUR, REJECT_LIMIT, REJECT_FORBIDDEN = 0, 1, 2, 3, 4
CLOSE_OK, CLOSE_PROTOCOL_VIOLATION, CLOSE_DRAINING = 0, 1, 5


class WireError(Exception):
    """The server sent something that the page does not allow."""


def require(condition, message):
    if not condition:
        raise WireError(message)


# ---- what the client sends (sections 3 and 4) -------------------------------------------------


def frame(kind: int, body: bytes = b"") -> bytes:
    return struct.pack("<BI", kind, len(body)) + body


def hello(flags: int, token: bytes = b"", version: int = 1) -> bytes:
    return frame(HELLO, struct.pack("<HHB", version, flags, len(token)) + token)


def view(x0: int, y0: int, x1: int, y1: int, kbits: int = 0) -> bytes:
    return frame(VIEW, struct.pack("<HHHHI", x0, y0, x1, y1, kbits))


def entries(pixels) -> bytes:
    return b"".join(struct.pack("<HHB", x, y, colour) for x, y, colour in pixels)


def paint_frame(seq: int, pixels, flags: int = 0) -> bytes:
    return frame(PAINT, struct.pack("<IB", seq, flags) + entries(pixels))


def paint_datagram(seq: int, pixels) -> bytes:
    return struct.pack("<BBI", DG_PAINT, 0, seq) + entries(pixels)


def repair(tiles) -> bytes:
    return frame(REPAIR, b"".join(struct.pack("<II", tile, version) for tile, version in tiles))


def ping(value: int) -> bytes:
    return frame(PING, struct.pack("<Q", value))


def stats() -> bytes:
    return frame(STATS)


# ---- what the server sends --------------------------------------------------------------------


class Welcome(NamedTuple):
    version: int
    client_id: int
    width: int
    height: int
    tile_side: int
    tick_ms: int
    cooldown_ms: int
    palette: tuple

    @classmethod
    def parse(cls, body: bytes) -> "Welcome":
        head = struct.Struct("<HQHHHHIB")
        require(len(body) >= head.size, "WELCOME is too short")
        *fields, last_entry = head.unpack_from(body)
        count = last_entry + 1
        require(len(body) >= head.size + 3 * count, "WELCOME's palette is cut short")
        colours = tuple(struct.iter_unpack("<BBB", body[head.size : head.size + 3 * count]))
        return cls(*fields, colours)


class PaintAck(NamedTuple):
    seq: int
    applied: int
    rejected: int
    reason: int
    commit: int

    @classmethod
    def parse(cls, body: bytes) -> "PaintAck":
        require(len(body) >= 17, "PAINT_ACK is too short")
        return cls(*struct.unpack_from("<IHHBQ", body))


class Stats(NamedTuple):
    applied: int
    rejected: int
    connections: int
    tick: int
    uptime_ms: int
    commit: int

    @classmethod
    def parse(cls, body: bytes) -> "Stats":
        require(len(body) >= 48, "STATS is too short")
        return cls(*struct.unpack_from("<6Q", body))


class Notice(NamedTuple):
    code: int
    text: str

    @classmethod
    def parse(cls, body: bytes) -> "Notice":
        require(len(body) >= 1, "NOTICE is empty")
        return cls(body[0], body[1:].decode("utf-8"))


class Record(NamedTuple):
    tile: int
    version: int
    encoding: int
    pixels: tuple  # (offset, colour), ...


class Diff(NamedTuple):
    tick: int
    records: tuple

    @classmethod
    def parse(cls, payload: bytes) -> "Diff":
        require(len(payload) >= 6 and payload[0] == DG_DIFF, "not a DIFF")
        require(payload[1] == 0, "DIFF flags are not 0")
        (tick,) = struct.unpack_from("<I", payload, 2)
        records = []
        at = 6
        while at < len(payload):
            require(at + 11 <= len(payload), "a record's head is cut short")
            tile, version, encoding, count = struct.unpack_from("<IIBH", payload, at)
            at += 11
            if encoding == 0:
                size = 3 * count
                require(at + size <= len(payload), "a list record is cut short")
                pixels = tuple(struct.iter_unpack("<HB", payload[at : at + size]))
            elif encoding == 1:
                size = 512 + count
                require(at + size <= len(payload), "a bitmap record is cut short")
                bits = int.from_bytes(payload[at : at + 512], "little")
                require(bits.bit_count() == count, "a bitmap's bits are not count")
                offsets = [offset for offset in range(TILE_BYTES) if bits >> offset & 1]
                pixels = tuple(zip(offsets, payload[at + 512 : at + size]))
            else:
                raise WireError(f"record encoding {encoding}")
            at += size
            offsets = [offset for offset, _ in pixels]
            require(count >= 1, "a record of no pixels")
            require(max(offsets) < TILE_BYTES, "an offset outside the tile")
            require(len(set(offsets)) == count, "a record holds a pixel twice")
            records.append(Record(tile, version, encoding, pixels))
        return cls(tick, tuple(records))


class Versions(NamedTuple):
    tick: int
    tiles: tuple  # (tile, version), ...

    @classmethod
    def parse(cls, payload: bytes) -> "Versions":
        require(len(payload) >= 6 and payload[0] == DG_VERSIONS, "not a VERSIONS")
        require(payload[1] == 0, "VERSIONS flags are not 0")
        require((len(payload) - 6) % 8 == 0, "VERSIONS is not a whole number of entries")
        (tick,) = struct.unpack_from("<I", payload, 2)
        return cls(tick, tuple(struct.iter_unpack("<II", payload[6:])))


class Image(NamedTuple):
    reason: int
    tile: int
    version: int
    encoding: int
    pixels: bytes


def inflate(body: bytes) -> bytes:
    """Raw DEFLATE of exactly one tile."""
    decoder = zlib.decompressobj(wbits=-15)
    try:
        pixels = decoder.decompress(body, TILE_BYTES + 1)
    except zlib.error as error:
        raise WireError(f"bad DEFLATE: {error}") from None
    require(decoder.eof and not decoder.unused_data, "DEFLATE does not end with the body")
    return pixels


class FrameReader:
    """Cuts the control stream into frames."""

    def __init__(self):
        self.buffer = bytearray()

    def feed(self, data: bytes):
        self.buffer += data
        while len(self.buffer) >= 5:
            kind, length = struct.unpack_from("<BI", self.buffer)
            if len(self.buffer) < 5 + length:
                return
            body = bytes(self.buffer[5 : 5 + length])
            del self.buffer[: 5 + length]
            yield kind, body


class TilesReader:
    """Cuts one server unidirectional stream into tile images, as they come."""

    def __init__(self):
        self.buffer = bytearray()
        self.received = 0
        self.images = 0
        self.kind = None
        self.reason = None
        self.ended = False

    def feed(self, data: bytes, end: bool):
        self.buffer += data
        self.received += len(data)
        if self.kind is None and self.buffer:
            self.kind = self.buffer[0]
        if self.kind not in (None, STREAM_TILES):
            self.buffer.clear()  # another kind of stream: not ours to judge
        elif self.reason is None and len(self.buffer) >= 2:
            self.reason = self.buffer[1]
            require(self.reason <= REASON_REPAIR, f"TILES reason {self.reason}")
            del self.buffer[:2]
        if self.reason is not None:
            yield from self._images()
        if end:
            self.ended = True
            require(not self.buffer, "a stream ends in the middle of an image")

    def _images(self):
        while len(self.buffer) >= 13:
            tile, version, encoding, length = struct.unpack_from("<IIBI", self.buffer)
            require(encoding <= 2, f"image encoding {encoding}")
            require(length <= 2 * TILE_BYTES, f"an image of {length} bytes")
            if len(self.buffer) < 13 + length:
                return
            body = bytes(self.buffer[13 : 13 + length])
            del self.buffer[: 13 + length]
            if encoding == 0:
                pixels = body
            elif encoding == 1:
                require(length == 1, "a uniform image of more than a byte")
                pixels = body * TILE_BYTES
            else:
                pixels = inflate(body)
            require(len(pixels) == TILE_BYTES, f"an image of {len(pixels)} pixels")
            self.images += 1
            yield Image(self.reason, tile, version, encoding, pixels)


# ---- the mirror (section 4) -------------------------------------------------------------------


def newer(a: int, b: int) -> bool:
    """Whether version a is newer than version b: RFC 1982, 32 bits."""
    return a != b and (a - b) & 0xFFFFFFFF < 0x80000000


class Mirror:
    """The client's copy of the canvas, kept by the rules of section 4."""

    def __init__(self, width: int, height: int, snapshot: bool):
        self.width = width
        self.height = height
        self.columns = -(-width // TILE_SIDE)
        self.rows = -(-height // TILE_SIDE)
        self.count = self.columns * self.rows
        self.tiles: dict[int, bytearray] = {}
        self.versions: dict[int, int] = {}
        self.in_view: set[int] | None = None  # None: no VIEW was sent, the whole canvas
        self.has_snapshot = snapshot  # asked for: without it and a VIEW there is no baseline
        self.snapshot_pending = snapshot
        self.waiting: set[int] = set()  # a view's or a repair's image has not come
        self.settled: set[int] = set()  # images that came while the snapshot had not ended
        self.kept: dict[int, list[Record]] = defaultdict(list)
        self.owed: set[int] = set()  # tiles to name in a REPAIR
        self.asked: dict[int, float] = {}  # when they were named last
        self.gaps = 0
        self.repairs = 0

    # where things are

    def locate(self, x: int, y: int) -> tuple[int, int]:
        """The tile and the offset of a pixel."""
        tile = y // TILE_SIDE * self.columns + x // TILE_SIDE
        return tile, y % TILE_SIDE * TILE_SIDE + x % TILE_SIDE

    def origin(self, tile: int) -> tuple[int, int]:
        row, column = divmod(tile, self.columns)
        return column * TILE_SIDE, row * TILE_SIDE

    def inside(self, tile: int, offset: int) -> bool:
        x, y = self.origin(tile)
        row, column = divmod(offset, TILE_SIDE)
        return x + column < self.width and y + row < self.height

    def is_edge(self, tile: int) -> bool:
        return not self.inside(tile, TILE_BYTES - 1)

    def tiles_of(self, x0: int, y0: int, x1: int, y1: int) -> set[int]:
        """The tiles that a view touches (half open; all four 0: the whole canvas)."""
        if (x0, y0, x1, y1) == (0, 0, 0, 0):
            x1, y1 = self.width, self.height
        columns = range(x0 // TILE_SIDE, -(-min(x1, self.width) // TILE_SIDE))
        rows = range(y0 // TILE_SIDE, -(-min(y1, self.height) // TILE_SIDE))
        return {row * self.columns + column for row in rows for column in columns}

    # what it holds

    def held(self, tile: int) -> int | None:
        """The version held, or None for a tile of which nothing has come yet."""
        left_out = self.has_snapshot and not self.snapshot_pending  # so it is at version 0
        return self.versions.get(tile, 0 if left_out else None)

    def tile(self, tile: int) -> bytes:
        return bytes(self.tiles.get(tile, bytes(TILE_BYTES)))

    def pixel(self, x: int, y: int) -> int:
        tile, offset = self.locate(x, y)
        held = self.tiles.get(tile)
        return held[offset] if held else 0

    def painted(self) -> dict[int, bytes]:
        """The tiles that are not all 0: what two mirrors are compared by."""
        return {tile: bytes(pixels) for tile, pixels in self.tiles.items() if any(pixels)}

    def grown(self) -> dict[int, int]:
        return {tile: version for tile, version in self.versions.items() if version}

    def is_waiting(self, tile: int) -> bool:
        if tile in self.waiting:
            return True
        return self.snapshot_pending and tile not in self.settled

    def watches(self, tile: int) -> bool:
        return self.in_view is None or tile in self.in_view

    @property
    def quiet(self) -> bool:
        return not (self.snapshot_pending or self.waiting or self.owed)

    # what happens to it

    def set_view(self, x0: int, y0: int, x1: int, y1: int) -> set[int]:
        """Returns the tiles that come into view, whose images are awaited from now on."""
        tiles = self.tiles_of(x0, y0, x1, y1)
        if self.in_view is not None:
            entering = tiles - self.in_view
        else:
            entering = set() if self.has_snapshot else set(tiles)
        self.in_view = tiles
        self.waiting = (self.waiting & tiles) | entering
        self.owed &= tiles
        for tile in list(self.kept):
            if tile not in tiles:
                del self.kept[tile]
        return entering

    def on_record(self, record: Record) -> None:
        tile = record.tile
        require(tile < self.count, f"a record of tile {tile}")
        if self.is_edge(tile):
            for offset, _ in record.pixels:
                require(self.inside(tile, offset), f"offset {offset} of tile {tile} is outside")
        if not self.watches(tile):
            return
        if self.is_waiting(tile):
            self.kept[tile].append(record)
            return
        held = self.held(tile)
        if held is not None and not newer(record.version, held):
            return
        pixels = self.tiles.setdefault(tile, bytearray(TILE_BYTES))
        for offset, colour in record.pixels:
            pixels[offset] = colour
        self.versions[tile] = record.version
        if held is not None and record.version != (held + 1) & 0xFFFFFFFF:
            self.gaps += 1
            self.owed.add(tile)

    def on_versions(self, tiles) -> None:
        for tile, version in tiles:
            require(tile < self.count, f"VERSIONS names tile {tile}")
            if not self.watches(tile) or self.is_waiting(tile):
                continue
            held = self.held(tile)
            if held is not None and newer(version, held):
                self.owed.add(tile)

    def on_image(self, image: Image) -> None:
        tile = image.tile
        require(tile < self.count, f"an image of tile {tile}")
        if self.is_edge(tile):
            for offset, colour in enumerate(image.pixels):
                if colour:
                    require(self.inside(tile, offset), f"tile {tile} is not 0 at {offset}")
        awaited = self.is_waiting(tile)
        held = self.held(tile)
        if not awaited and held is not None and not newer(image.version, held):
            return
        self.tiles[tile] = bytearray(image.pixels)
        self.versions[tile] = image.version
        self.waiting.discard(tile)
        self.owed.discard(tile)
        if self.snapshot_pending:
            self.settled.add(tile)
        if awaited:
            self._replay(tile)

    def on_snapshot_end(self) -> None:
        self.snapshot_pending = False
        for tile in list(self.kept):
            if tile not in self.waiting:
                self.versions.setdefault(tile, 0)
                self._replay(tile)
        self.settled.clear()

    def _replay(self, tile: int) -> None:
        records = self.kept.pop(tile, [])
        base = self.versions[tile]
        records.sort(key=lambda record: (record.version - base + 0x80000000) & 0xFFFFFFFF)
        for record in records:
            self.on_record(record)

    def take_repairs(self, now: float) -> list[tuple[int, int]]:
        """The tiles to ask for now, each no more often than once a second."""
        due = [
            tile
            for tile in sorted(self.owed)
            if now - self.asked.get(tile, -REPAIR_INTERVAL) >= REPAIR_INTERVAL
        ]
        for tile in due:
            self.owed.discard(tile)
            self.asked[tile] = now
            self.waiting.add(tile)
            self.repairs += 1
        return [(tile, self.held(tile) or 0) for tile in due]


# ---- the connection (sections 1, 3, 4 and 5) --------------------------------------------------


class CanvasClient(QuicConnectionProtocol):
    CONTROL = 0  # the first bidirectional stream

    def __init__(self, quic: QuicConnection, address, family, flags: int):
        super().__init__(quic)
        self.address = address
        self.family = family
        self.flags = flags
        self.drop: Callable[[bytes], bool] = lambda payload: False  # simulated loss
        self.auto_repair = True
        self.welcome: Welcome | None = None
        self.mirror: Mirror | None = None
        self.frames: list[tuple[int, bytes]] = []
        self.inbox: dict[int, deque] = defaultdict(deque)
        self.datagrams: list[bytes] = []  # payloads that came as datagrams
        self.framed: list[bytes] = []  # payloads that came on the control stream
        self.diffs: list[tuple[Diff, bytes]] = []
        self.version_lists: list[Versions] = []
        self.streams: dict[int, TilesReader] = {}
        self.images: list[Image] = []
        self.terminated: events.ConnectionTerminated | None = None
        self.alpn: str | None = None
        self.error: Exception | None = None
        self._reader = FrameReader()
        self._early: deque = deque()
        self._changed = asyncio.Event()
        self._sequence = itertools.count(1)

    # waiting

    async def wait_for(self, condition: Callable, timeout: float = 5.0, what: str = ""):
        """Wait until condition() is true, and return what it returned."""
        deadline = self._loop.time() + timeout
        while True:
            if self.error is not None:
                raise self.error
            result = condition()
            if result:
                return result
            left = deadline - self._loop.time()
            if self.terminated is not None:
                raise ConnectionError(f"waiting for {what or condition}: {self.terminated}")
            if left <= 0:
                raise TimeoutError(f"nothing came in {timeout} s: {what or condition}")
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), min(left, 0.25))
            except asyncio.TimeoutError:
                pass

    async def expect(self, kind: int, timeout: float = 5.0) -> bytes:
        """The body of the next control frame of this type."""
        await self.wait_for(lambda: self.inbox[kind], timeout, f"frame {kind:#x}")
        return self.inbox[kind].popleft()

    async def wait_terminated(self, timeout: float = 5.0) -> events.ConnectionTerminated:
        await self.wait_for(lambda: self.terminated, timeout, "the close")
        return self.terminated

    async def wait_snapshot(self, timeout: float = 5.0) -> None:
        await self.wait_for(lambda: not self.mirror.snapshot_pending, timeout, "the snapshot")

    # sending

    def send(self, data: bytes) -> None:
        """Bytes of the control stream."""
        self._quic.send_stream_data(self.CONTROL, data)
        self.transmit()

    def send_datagram(self, *payloads: bytes) -> None:
        for payload in payloads:
            self._quic.send_datagram_frame(payload)
        self.transmit()

    def paint(self, pixels) -> None:
        """Unacknowledged, by datagrams."""
        pixels = list(pixels)
        for start in range(0, len(pixels), MAX_PAINT_DATAGRAM):
            part = pixels[start : start + MAX_PAINT_DATAGRAM]
            self.send_datagram(paint_datagram(next(self._sequence), part))

    async def paint_acked(self, pixels, flags: int = 0, timeout: float = 5.0) -> PaintAck:
        """By one frame; its acknowledgement."""
        sequence = next(self._sequence)
        self.send(paint_frame(sequence, pixels, flags))
        ack = PaintAck.parse(await self.expect(PAINT_ACK, timeout))
        require(ack.seq == sequence, f"PAINT_ACK of {ack.seq}, not of {sequence}")
        return ack

    async def ping_pong(self, value: int = 0x0123456789ABCDEF) -> int:
        self.send(ping(value))
        return struct.unpack_from("<Q", await self.expect(PONG))[0]

    async def stats(self) -> Stats:
        self.send(stats())
        return Stats.parse(await self.expect(STATS_REPLY))

    def set_view(self, x0: int, y0: int, x1: int, y1: int, kbits: int = 0) -> set[int]:
        self.send(view(x0, y0, x1, y1, kbits))
        return self.mirror.set_view(x0, y0, x1, y1)

    def flush_repairs(self) -> None:
        if self.mirror is not None and self.auto_repair and self.terminated is None:
            due = self.mirror.take_repairs(time.monotonic())
            for start in range(0, len(due), 8000):
                self.send(repair(due[start : start + 8000]))

    async def rebind(self) -> tuple:
        """Go on from another local port, as behind a NAT that forgot us."""
        old = self._transport
        before = old.get_extra_info("sockname")
        await self._bind()
        old.close()
        return before, self._transport.get_extra_info("sockname")

    async def _bind(self) -> None:
        any_address = "::" if self.family == socket.AF_INET6 else "0.0.0.0"
        transport, _ = await self._loop.create_datagram_endpoint(
            lambda: self, family=self.family, local_addr=(any_address, 0)
        )
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)

    def shutdown(self) -> None:
        """Close with code 0, without waiting for the draining period."""
        self.close(CLOSE_OK)
        if self._timer is not None:
            self._timer.cancel()
        self._transport.close()

    # facts about the server's side

    @property
    def quic(self) -> QuicConnection:
        return self._quic

    def transport_parameters(self):
        for kind, data in self._quic.tls.received_extensions:
            if kind == ExtensionType.QUIC_TRANSPORT_PARAMETERS:
                return pull_quic_transport_parameters(Buffer(data=data))
        raise WireError("no transport parameters")

    def server_connection_ids(self) -> list[bytes]:
        spare = [issued.cid for issued in self._quic._peer_cid_available]
        return [self._quic._peer_cid.cid] + spare

    # receiving

    def quic_event_received(self, event: events.QuicEvent) -> None:
        try:
            self._handle(event)
            self.flush_repairs()
        except Exception as error:  # kept for whoever waits
            if self.error is None:
                self.error = error
        self._changed.set()

    def _handle(self, event: events.QuicEvent) -> None:
        if isinstance(event, events.StreamDataReceived):
            if event.stream_id == self.CONTROL:
                for kind, body in self._reader.feed(event.data):
                    self._on_frame(kind, body)
                require(not event.end_stream or not self._reader.buffer, "half a frame at the end")
            elif event.stream_id & 3 == 3:
                self._when_welcome(self._on_tiles, event)
            else:
                raise WireError(f"the server opened stream {event.stream_id}")
        elif isinstance(event, events.DatagramFrameReceived):
            self.datagrams.append(event.data)
            self._when_welcome(self._on_payload, event.data)
        elif isinstance(event, events.ProtocolNegotiated):
            self.alpn = event.alpn_protocol
        elif isinstance(event, events.ConnectionTerminated):
            self.terminated = event

    def _when_welcome(self, handler, argument) -> None:
        """Streams and datagrams are not ordered with the control stream."""
        if self.welcome is None:
            self._early.append((handler, argument))
        else:
            handler(argument)

    def _on_frame(self, kind: int, body: bytes) -> None:
        self.frames.append((kind, body))
        if kind == DATAGRAM:
            self.framed.append(body)
            self._when_welcome(self._on_payload, body)
            return
        self.inbox[kind].append(body)
        if kind == WELCOME:
            require(self.welcome is None, "a second WELCOME")
            self.welcome = Welcome.parse(body)
            self.mirror = Mirror(
                self.welcome.width, self.welcome.height, bool(self.flags & SNAPSHOT)
            )
            while self._early:
                handler, argument = self._early.popleft()
                handler(argument)

    def _on_payload(self, payload: bytes) -> None:
        require(payload, "an empty datagram")
        require(len(payload) <= MAX_SERVER_DATAGRAM, f"a payload of {len(payload)} bytes")
        if payload[0] == DG_DIFF:
            diff = Diff.parse(payload)
            self.diffs.append((diff, payload))
            if not self.drop(payload):
                for record in diff.records:
                    self.mirror.on_record(record)
        elif payload[0] == DG_VERSIONS:
            versions = Versions.parse(payload)
            self.version_lists.append(versions)
            if not self.drop(payload):
                self.mirror.on_versions(versions.tiles)

    def _on_tiles(self, event: events.StreamDataReceived) -> None:
        reader = self.streams.setdefault(event.stream_id, TilesReader())
        for image in reader.feed(event.data, event.end_stream):
            self.images.append(image)
            self.mirror.on_image(image)
        if reader.ended and reader.reason == REASON_SNAPSHOT:
            require(self.mirror.snapshot_pending, "a snapshot that nobody asked for, or a second")
            self.mirror.on_snapshot_end()


@asynccontextmanager
async def connect(
    host: str,
    port: int,
    *,
    flags: int = SNAPSHOT | DIFFS,
    token: bytes = b"",
    greet: bool = True,
    alpn=(ALPN,),
    max_datagram_frame_size: int | None = 65_535,
    drop: Callable[[bytes], bool] | None = None,
    auto_repair: bool = True,
    handshake: bool = True,
):
    """A connection that has been welcomed (or, with greet=False, that has sent nothing yet).

    Certificates are not checked: the page leaves them to the deployment.
    """
    loop = asyncio.get_running_loop()
    infos = await loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    family, _, _, _, address = infos[0]
    quic = QuicConnection(
        configuration=QuicConfiguration(
            alpn_protocols=list(alpn),
            idle_timeout=30.0,
            is_client=True,
            max_datagram_frame_size=max_datagram_frame_size,
            server_name="localhost",
            supported_versions=[QuicProtocolVersion.VERSION_1],
            verify_mode=ssl.CERT_NONE,
        )
    )
    client = CanvasClient(quic, address, family, flags)
    client.auto_repair = auto_repair
    if drop is not None:
        client.drop = drop
    await client._bind()
    ticker = asyncio.create_task(_tick(client))
    try:
        client.connect(address)
        if handshake:
            await asyncio.wait_for(client.wait_connected(), 5.0)
        if handshake and greet:
            client.send(hello(flags, token))
            await client.wait_for(lambda: client.welcome, what="WELCOME")
        yield client
        if client.error is not None:
            raise client.error
    finally:
        ticker.cancel()
        client.shutdown()


async def _tick(client: CanvasClient) -> None:
    """REPAIRs that had to wait for their second to pass."""
    while client.terminated is None:
        await asyncio.sleep(0.1)
        client.flush_repairs()
