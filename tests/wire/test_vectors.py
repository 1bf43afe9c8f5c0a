"""Every byte that Go peers were recorded to send, decoded and encoded again."""

import msgpack  # type: ignore[import-untyped]  # msgpack ships no types
import pytest

from rpc25519_tools.wire.codecs import Codec, codec_name
from rpc25519_tools.wire.constants import FRAME_HEADER_LEN, MAGIC
from rpc25519_tools.wire.framing import FrameDecoder, encode_frame
from rpc25519_tools.wire.greenpack import pack_str, unpack_object
from rpc25519_tools.wire.message_packing import encode_message
from rpc25519_tools.wire.message_unpacking import decode_message
from tests.rpc.flows import (
    DATA,
    DIRECTIONS,
    Direction,
    flow_names,
    header_as_indexed,
    index,
    jsonable,
    message_as_indexed,
    recorded,
    stream_of,
)

GREENPACK = {entry["file"]: entry for entry in index()["greenpack"]}

every_flow = pytest.mark.parametrize("name", flow_names())
every_direction = pytest.mark.parametrize("direction", DIRECTIONS)


def test_every_stored_file_is_in_the_index() -> None:
    flows = {f"{name}.{way}.bin" for name in flow_names() for way in DIRECTIONS}
    stored = {path.name for path in DATA.glob("*.bin")}
    assert stored == flows | set(GREENPACK)


@every_direction
@every_flow
def test_recorded_frames_decode_to_what_the_index_says(
    name: str, direction: Direction
) -> None:
    for one in recorded(name, direction):
        assert one.frame.codec == one.expected["codec"]
        assert codec_name(one.frame.codec) == one.expected["codec_name"]
        assert len(one.frame.body) == one.expected["body_len"]
        assert len(one.plain) == one.expected["plain_len"]
        assert message_as_indexed(one.message) == one.expected["message"]


@every_direction
@every_flow
def test_recorded_messages_encode_to_the_recorded_bytes(
    name: str, direction: Direction
) -> None:
    for one in recorded(name, direction):
        assert b"".join(encode_message(one.message)) == one.plain


@every_direction
@every_flow
def test_unpacked_recorded_frames_encode_to_the_recorded_frames(
    name: str, direction: Direction
) -> None:
    stream = b"".join(
        b"".join(encode_frame(one.message, one.frame.codec))
        for one in recorded(name, direction)
        if one.frame.codec in (Codec.NONE, Codec.NONE_ONCE)
    )
    raw = stream_of(name, direction)
    kept = b"".join(
        raw[at : at + FRAME_HEADER_LEN + one.expected["body_len"]]
        for one in recorded(name, direction)
        if one.frame.codec in (Codec.NONE, Codec.NONE_ONCE)
        for at in [one.expected["offset"] - _prelude_len(name, direction)]
    )
    assert stream == kept


def _prelude_len(name: str, direction: Direction) -> int:
    return (DATA / f"{name}.{direction}.bin").stat().st_size - len(
        stream_of(name, direction)
    )


@every_direction
@every_flow
def test_recorded_streams_give_the_same_frames_in_pieces(
    name: str, direction: Direction
) -> None:
    raw = stream_of(name, direction)
    decoder = FrameDecoder(bytearray(1 << 16))
    frames = [
        frame
        for start in range(0, len(raw), 997)
        for frame in decoder.receive_data(raw[start : start + 997])
    ]
    assert frames == [one.frame for one in recorded(name, direction)]
    assert decoder.at_frame_boundary


def _objects(data: bytes) -> list[tuple[bytes, object]]:
    """Return each object's own bytes, and the object."""
    unpacker = msgpack.Unpacker(max_buffer_size=0)
    unpacker.feed(data)
    found, start = [], 0
    for value in unpacker:
        found.append((data[start : unpacker.tell()], value))
        start = unpacker.tell()
    return found


@pytest.mark.parametrize("file", GREENPACK)
def test_any_greenpack_object_decodes_to_what_the_index_says(file: str) -> None:
    raw = (DATA / file).read_bytes()
    values = [jsonable(unpack_object(one)) for one, _ in _objects(raw)]
    assert values == GREENPACK[file]["objects"]


@pytest.mark.parametrize(
    "file", ["gp-message-empty.bin", "gp-message-full.bin", "gp-lengths.bin"]
)
def test_greenpack_messages_decode_and_encode_to_the_same_bytes(file: str) -> None:
    raw = (DATA / file).read_bytes()
    for (one, _), entry in zip(_objects(raw), GREENPACK[file]["objects"], strict=True):
        message = decode_message(one)
        assert message_as_indexed(message) == entry
        assert b"".join(encode_message(message)) == one


def test_greenpack_integers_decode_and_encode_to_the_same_bytes() -> None:
    raw = (DATA / "gp-ints.bin").read_bytes()
    entries = GREENPACK["gp-ints.bin"]["objects"]
    for (one, _), entry in zip(_objects(raw), entries, strict=True):
        body = b"\x81" + pack_str("HDR_zid00_rct") + one
        message = decode_message(body)
        assert header_as_indexed(message.header) == entry
        assert b"".join(encode_message(message)) == body


def test_a_keep_alive_is_the_smallest_message_on_the_wire() -> None:
    first = recorded("keepalive", "c2s")[0]
    assert len(first.plain) == 31
    frame = b"".join(encode_frame(first.message, Codec.NONE))
    assert frame == MAGIC + bytes((0,)) + (31).to_bytes(8, "big") + first.plain
