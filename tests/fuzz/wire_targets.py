"""Fuzz targets: frames, messages, packed bodies, records, calls, HTTP heads."""

import functools
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from rpc25519_tools import greenpack
from rpc25519_tools.errors import (
    DecodeError,
    HandshakeError,
    RemoteProtocolError,
    UnsafePathError,
)
from rpc25519_tools.files.jail import split_remote_name
from rpc25519_tools.rpc.calls import CallKind
from rpc25519_tools.rpc.client_core import ClientCore
from rpc25519_tools.rpc.server_core import CallStarted, ServerCore
from rpc25519_tools.transport.http_connect import (
    HeadReader,
    judge_answer,
    judge_request,
)
from rpc25519_tools.wire import message_unpacking, s2
from rpc25519_tools.wire.codecs import Codec, compress, decompress
from rpc25519_tools.wire.framing import FrameDecoder, decode_frame
from rpc25519_tools.wire.greenpack import unpack_object
from rpc25519_tools.wire.message import Message
from rpc25519_tools.wire.message_packing import encode_message
from rpc25519_tools.wire.message_unpacking import decode_message
from rpc25519_tools.wire.netrpc import decode_request, decode_response
from tests.fuzz.grammars import (
    FRAMES,
    GREENPACK,
    add_s2_elements,
    change_s2_chunk,
    mend_lz4_header,
    repackers,
)
from tests.fuzz.mutators import BYTES, TEXT
from tests.fuzz.target import Target
from tests.rpc.flows import flow_names, plain_of, recorded, stream_of
from tests.wire.go_structs import TYPES, entries
from tests.wire.record_samples import SAMPLES

DATA = Path(__file__).parent.parent / "data"
#: The most that a body may unpack to here; bombs are then cheap to refuse.
PLAIN_LEN = 256 * 1024
#: Longer inputs say nothing that shorter ones do not.
SEED_LEN = 32 * 1024

_SCRATCH = bytearray(16 * 1024)


def decode_stream(data: bytes) -> list[Message]:
    """Decode what comes in one piece; the same bytes in two must give the same."""
    frames = FrameDecoder(_SCRATCH).receive_data(data)
    pieces = FrameDecoder(_SCRATCH)
    cuts = (0, len(data) // 2, len(data))
    again = [
        frame
        for start, end in pairwise(cuts)
        for frame in pieces.receive_data(data[start:end])
    ]
    assert [(one.codec, bytes(one.body)) for one in frames] == [
        (one.codec, bytes(one.body)) for one in again
    ]
    return [decode_frame(frame, PLAIN_LEN) for frame in frames]


def run_frames(data: bytes) -> None:
    for message in decode_stream(data):
        _check_message(message)


def run_message(data: bytes) -> None:
    """Decode; the short cut of usual messages must say what the long way says."""
    usual = message_unpacking._usual_message(data)
    if usual is not None:
        assert message_unpacking._message_of(unpack_object(data)) == usual
    _check_message(decode_message(data))


def _check_message(message: Message) -> None:
    """Whatever was decoded can be encoded, and says the same then."""
    again = decode_message(b"".join(encode_message(message)))
    assert again.header == message.header
    assert bytes(again.payload) == bytes(message.payload)
    assert again.error == message.error


def run_codec(codec: Codec, data: bytes) -> None:
    plain = bytes(decompress(codec, data, max_len=PLAIN_LEN))
    assert len(plain) <= PLAIN_LEN
    if plain:
        packed = compress(codec, plain)
        assert bytes(decompress(codec, packed, max_len=len(plain))) == plain


def run_s2_block(data: bytes) -> None:
    assert len(s2.decode_block(data, max_len=PLAIN_LEN)) <= PLAIN_LEN


_TYPES = (*(type(sample) for sample in SAMPLES.values()), *TYPES.values())


def run_record(data: bytes) -> None:
    """The first byte chooses the type."""
    type_ = _TYPES[data[0] % len(_TYPES)] if data else _TYPES[0]
    value = greenpack.decode(type_, data[1:])
    packed = greenpack.encode(value, type_)
    # Not compared as values: a NaN differs from itself.
    assert greenpack.encode(greenpack.decode(type_, packed), type_) == packed


def run_net_rpc(data: bytes) -> None:
    refusals = 0
    for decode in (decode_request, decode_response):
        try:
            decode(data)
        except DecodeError:
            refusals += 1
    if refusals == 2:
        raise DecodeError("neither a request nor a response")


def run_server_core(data: bytes) -> None:
    """Feed messages to a server, which answers each call as it can."""
    core = ServerCore(
        local="tcp://127.0.0.1:1",
        remote="tcp://127.0.0.1:2",
        default_codec=Codec.S2,
        offers=lambda _, name: not name.startswith("no"),
    )
    for message in decode_stream(data):
        event = core.receive(message, Codec.S2, now_ns=1)
        if isinstance(event, CallStarted) and event.call.kind is CallKind.RPC:
            answer = core.finish(
                event.call, now_ns=2, payload=b"", args={}, error="", subject=""
            )
            if answer is not None:
                _check_message(answer)


def run_client_core(data: bytes) -> None:
    """Feed messages to a client that has one call of each kind open."""
    core = ClientCore(
        local="tcp://127.0.0.1:2", remote="tcp://127.0.0.1:1", random_bytes=bytes
    )
    messages = decode_stream(data)
    ids = list(dict.fromkeys(one.header.call_id for one in messages))
    for call_id, kind in zip(ids, CallKind, strict=False):
        if call_id:
            core.start(kind, "anything", now_ns=1, call_id=call_id)
    for message in messages:
        core.receive(message)


def run_http_head(data: bytes) -> None:
    refusals = []
    for side, judge in (("server", judge_request), ("client", judge_answer)):
        outcomes = []
        for cut in (len(data), len(data) // 2):
            reader = HeadReader("server" if side == "server" else "client")
            try:
                head = reader.receive_data(data[:cut])
                if head is None and cut < len(data):
                    head = reader.receive_data(data[cut:])
                if head is not None:
                    judge(head)
                outcomes.append((True, str(head and head.first_line)))
            except HandshakeError as exc:
                outcomes.append((False, str(exc)))
        # How the bytes are cut must not matter.
        assert outcomes[0] == outcomes[1], outcomes
        refusals += [text for taken, text in outcomes[:1] if not taken]
    if len(refusals) == 2:
        raise HandshakeError("; ".join(refusals))


def run_remote_name(data: bytes) -> None:
    parts = split_remote_name(data.decode("utf-8", "surrogateescape"))
    assert parts
    for part in parts:
        assert part not in (b"", b".", b"..")
        assert not set(part) & {0, 0x2F}


# Seeds


@functools.cache
def _streams() -> tuple[bytes, ...]:
    both = ((name, way) for name in flow_names() for way in ("c2s", "s2c"))
    streams = [stream_of(name, "c2s" if way == "c2s" else "s2c") for name, way in both]
    return tuple({data: None for data in streams if 0 < len(data) <= SEED_LEN})


@functools.cache
def _plain_messages() -> tuple[bytes, ...]:
    plains = [
        plain_of(one.frame)
        for name in flow_names()
        for way in ("c2s", "s2c")
        for one in recorded(name, "c2s" if way == "c2s" else "s2c")
    ]
    return tuple({data: None for data in plains if len(data) <= SEED_LEN})


def _long_messages() -> list[bytes]:
    """Messages too long to be built whole, in usual and in unusual order."""
    padding = b"\xc6" + (70_000).to_bytes(4, "big") + bytes(70_000)
    longs = []
    for plain in _plain_messages()[:40]:
        if plain[0] & 0xF0 == 0x80 and plain[0] < 0x8F:
            more = bytes((plain[0] + 1,))
            longs.append(more + plain[1:] + b"\xa3pad" + padding)
            longs.append(more + b"\xa3pad" + padding + plain[1:])
            longs.append(more + plain[1:] + b"\xb1JobSerz_zid01_bin" + padding)
    return longs


def _data(pattern: str) -> list[bytes]:
    found = [path.read_bytes() for path in sorted((DATA / "wire").glob(pattern))]
    return [data for data in found if len(data) <= SEED_LEN]


def _record_seeds() -> list[bytes]:
    seeds = [
        bytes((number,)) + greenpack.encode(sample)
        for number, sample in enumerate(SAMPLES.values())
    ]
    first = len(seeds)
    names = list(TYPES)
    for entry in entries():
        number = bytes((first + names.index(entry["type"]),))
        seeds += [number + bytes.fromhex(entry[form]) for form in ("marshal", "stream")]
    return [seed for seed in seeds if len(seed) <= SEED_LEN]


def _net_rpc_seeds() -> list[bytes]:
    return [
        bytes(one.message.payload)
        for name in flow_names()
        if name.startswith("netrpc")
        for way in ("c2s", "s2c")
        for one in recorded(name, "c2s" if way == "c2s" else "s2c")
    ]


def _http_seeds() -> list[bytes]:
    found = sorted((DATA / "wire" / "flows").glob("http-connect*.bin"))
    return [path.read_bytes()[:2000] for path in found] + [
        b"CONNECT /_goRPC_ HTTP/1.0\r\n\r\n",
        b"HTTP/1.0 200 Connected to Go RPC\n\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\n",
    ]


def _name_seeds() -> list[bytes]:
    return [b"a.txt", b"a/b/c", b"../x", b"/etc/passwd", b"a//b", b"./a", b"a/../b"]


def _codec_target(name: str, codec: Codec, pattern: str, *more: str) -> Target:
    grammar = {
        Codec.S2: (change_s2_chunk,) * 4,
        Codec.LZ4: (mend_lz4_header,) * 3,
    }.get(codec, ())

    def seeds() -> list[bytes]:
        found = [data for glob in (pattern, *more) for data in _data(glob)]
        samples = (b"a", bytes(3000), bytes(range(256)) * 4)
        return found + [bytes(compress(codec, sample)) for sample in samples]

    return Target(
        name=name,
        run=functools.partial(run_codec, codec),
        seeds=seeds,
        mutators=(*grammar, *repackers(codec), *BYTES, *BYTES),
        allowed=(RemoteProtocolError,),
    )


def _target(
    name: str,
    run: Callable[[bytes], None],
    seeds: Callable[[], "list[bytes] | tuple[bytes, ...]"],
    **more: object,
) -> Target:
    settings = {"allowed": (RemoteProtocolError,), **more}
    return Target(name=name, run=run, seeds=seeds, **settings)  # type: ignore[arg-type]


TARGETS = (
    _target("frames", run_frames, _streams, mutators=FRAMES),
    _target("message", run_message, _plain_messages, mutators=GREENPACK),
    _target(
        "long-message", run_message, _long_messages, mutators=GREENPACK, max_len=200_000
    ),
    _codec_target(
        "s2", Codec.S2, "codec-s2*.bin", "s2-stream-*.bin", "s2-snappy-*.bin"
    ),
    _codec_target("lz4", Codec.LZ4, "codec-*lz4*.bin"),
    _codec_target("zstd", Codec.ZSTD_03, "codec-*zstd*.bin"),
    _target(
        "s2-block",
        run_s2_block,
        lambda: [
            d for glob in ("block", "better", "best") for d in _data(f"s2-{glob}-*")
        ],
        mutators=(*(add_s2_elements,) * 4, *BYTES),
    ),
    _target("record", run_record, _record_seeds, mutators=GREENPACK),
    _target("net-rpc", run_net_rpc, _net_rpc_seeds, mutators=GREENPACK),
    _target("server-core", run_server_core, _streams, mutators=FRAMES),
    _target("client-core", run_client_core, _streams, mutators=FRAMES),
    _target(
        "http-head",
        run_http_head,
        _http_seeds,
        mutators=TEXT,
        allowed=(HandshakeError,),
    ),
    _target(
        "remote-name",
        run_remote_name,
        _name_seeds,
        mutators=TEXT,
        allowed=(UnsafePathError,),
    ),
)
