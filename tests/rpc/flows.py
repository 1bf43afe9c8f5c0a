"""The recorded exchanges of tests/data/wire/flows, and how they are compared."""

import base64
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import msgpack  # type: ignore[import-untyped]  # msgpack ships no types
from blake3 import blake3

from rpc25519_tools.wire.codecs import decompress
from rpc25519_tools.wire.constants import MAX_PLAIN_LEN
from rpc25519_tools.wire.framing import Frame, FrameDecoder, decode_frame
from rpc25519_tools.wire.greenpack import pack_time
from rpc25519_tools.wire.message import Header, Message

DATA = Path(__file__).parent.parent / "data" / "wire" / "flows"

Direction = Literal["c2s", "s2c"]
DIRECTIONS: tuple[Direction, Direction] = ("c2s", "s2c")


@cache
def index() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((DATA / "index.json").read_text())
    return loaded


def flow_names() -> list[str]:
    return [exchange["name"] for exchange in index()["exchanges"]]


@cache
def exchange(name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(e for e in index()["exchanges"] if e["name"] == name)
    return found


def stream_of(name: str, direction: Direction) -> bytes:
    """Return the recorded bytes after the HTTP prelude, if there is one."""
    data = (DATA / f"{name}.{direction}.bin").read_bytes()
    prelude = base64.b64decode(exchange(name)[direction].get("prelude_b64", ""))
    assert data.startswith(prelude)
    return data[len(prelude) :]


@dataclass(frozen=True)
class Recorded:
    """One recorded frame."""

    frame: Frame
    plain: bytes
    message: Message
    expected: dict[str, Any]


@cache
def recorded(name: str, direction: Direction) -> list[Recorded]:
    """Return all frames of one direction."""
    frames = FrameDecoder(bytearray(1 << 16)).receive_data(stream_of(name, direction))
    expected = exchange(name)[direction]["frames"]
    assert len(frames) == len(expected)
    return [
        Recorded(frame, plain_of(frame), decode_frame(frame), entry)
        for frame, entry in zip(frames, expected, strict=True)
    ]


def plain_of(frame: Frame) -> bytes:
    return bytes(decompress(frame.codec, frame.body, max_len=MAX_PLAIN_LEN))


def jsonable(value: object) -> object:
    """Return a decoded msgpack value in the form of the index."""
    if isinstance(value, bytes | bytearray | memoryview):
        if len(value) <= 64:
            return {"b64": base64.b64encode(value).decode()}
        return {"len": len(value), "blake3": blake3(value).hexdigest()}
    if isinstance(value, msgpack.ExtType):
        assert value.code == 5
        seconds, nanoseconds = value.data[:8], value.data[8:]
        return {
            "sec": int.from_bytes(seconds, "big", signed=True),
            "nsec": int.from_bytes(nanoseconds, "big", signed=True),
        }
    if isinstance(value, dict):
        return {key: jsonable(member) for key, member in value.items()}
    if isinstance(value, tuple):  # a time, as unpack_object gives it
        return {"sec": value[0], "nsec": value[1]}
    if isinstance(value, list):
        return [jsonable(member) for member in value]
    return value


def _time(ns: int | None) -> object:
    if ns is None:
        return None
    ext = pack_time(ns)
    return jsonable(msgpack.ExtType(5, ext[3:]))


def message_as_indexed(message: Message) -> dict[str, object]:
    """Return what the index would say about ``message``."""
    header = message.header
    members = {
        "HDR_zid00_rct": header_as_indexed(header),
        "JobSerz_zid01_bin": jsonable(message.payload) if message.payload else None,
        "JobErrs_zid02_str": message.error or None,
    }
    return {key: value for key, value in members.items() if value is not None}


def header_as_indexed(header: Header) -> dict[str, object]:
    members = {
        "Created_zid00_tim": _time(header.created_ns),
        "From_zid01_str": header.sender,
        "To_zid02_str": header.recipient,
        "Subject_zid03_str": header.subject,
        "Seqno_zid04_u64": header.seqno,
        "Typ_zid05_rct": int(header.call_type),
        "CallID_zid06_str": header.call_id,
        "Serial_zid07_i64": header.serial,
        "LocalRecvTm_zid08_tim": _time(header.local_recv_ns),
        "Deadline_zid09_tim": _time(header.deadline_ns),
        "StreamPart_zid10_i64": header.stream_part,
        "ServiceName_zid11_str": header.service_name,
        "Args_zid12_map": dict(header.args),
        "NoSystemCompression_zid13_boo": header.no_system_compression,
    }
    return {key: value for key, value in members.items() if value}
