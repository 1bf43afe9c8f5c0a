"""Frames in every segmentation, hostile headers, and what memory they may take."""

import contextlib
import random
import tracemalloc
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpc25519_tools.errors import (
    BadMagicError,
    DecodeError,
    FrameTooLargeError,
    LocalProtocolError,
    RemoteProtocolError,
)
from rpc25519_tools.wire.codecs import Codec, compress
from rpc25519_tools.wire.constants import (
    FRAME_HEADER_LEN,
    MAGIC,
    MAX_BODY_LEN,
    MAX_PAYLOAD_LEN,
    MAX_PLAIN_LEN,
    MIB,
)
from rpc25519_tools.wire.framing import (
    Frame,
    FrameDecoder,
    decode_frame,
    encode_frame,
)
from rpc25519_tools.wire.message import Header, Message
from rpc25519_tools.wire.message_packing import encode_message

Pieces = Iterator[bytes]
Feed = Callable[[FrameDecoder, Pieces], list[Frame]]


def new_decoder(scratch_len: int = 64 * 1024) -> FrameDecoder:
    return FrameDecoder(bytearray(scratch_len))


def frame_bytes(body: bytes, codec: int = 0) -> bytes:
    return MAGIC + bytes((codec,)) + len(body).to_bytes(8, "big") + body


def feed_data(decoder: FrameDecoder, pieces: Pieces) -> list[Frame]:
    return [frame for piece in pieces for frame in decoder.receive_data(piece)]


def feed_memory(decoder: FrameDecoder, pieces: Pieces) -> list[Frame]:
    """Fill the decoder's own memory, as a transport does."""
    frames: list[Frame] = []
    for piece in pieces:
        while piece:
            memory = decoder.get_buffer()
            assert len(memory) > 0
            count = min(len(memory), len(piece))
            memory[:count] = piece[:count]
            frames += decoder.buffer_updated(count)
            piece = piece[count:]  # noqa: PLW2901  # what did not fit goes next
    return frames


both_feeds = pytest.mark.parametrize("feed", [feed_data, feed_memory])


def whole(data: bytes) -> Pieces:
    yield data


def bytewise(data: bytes) -> Pieces:
    for at in range(len(data)):
        yield data[at : at + 1]


def random_cuts(data: bytes, seed: int) -> Pieces:
    rng = random.Random(seed)
    at = 0
    while at < len(data):
        step = rng.choice((1, 7, 8, 15, 16, 17, 1000, 16_384, 70_000, 300_000))
        yield data[at : at + step]
        at += step


BODIES: list[bytes] = [
    b"",
    b"x",
    bytes(range(256)),
    b"",
    random.Random(1).randbytes(16_383),
    random.Random(2).randbytes(16_384),
    b"y",
    random.Random(3).randbytes(100_000),
]
CODECS = [Codec(n % 8) for n in range(len(BODIES))]
FRAMES = [Frame(codec, body) for codec, body in zip(CODECS, BODIES, strict=True)]
STREAM = b"".join(frame_bytes(bytes(one.body), one.codec) for one in FRAMES)


@both_feeds
def test_frames_arrive_from_a_whole_stream(feed: Feed) -> None:
    decoder = new_decoder()
    assert feed(decoder, whole(STREAM)) == FRAMES
    assert decoder.at_frame_boundary


@both_feeds
def test_frames_arrive_one_byte_at_a_time(feed: Feed) -> None:
    decoder = new_decoder()
    assert feed(decoder, bytewise(STREAM)) == FRAMES
    assert decoder.at_frame_boundary


@both_feeds
@pytest.mark.parametrize("scratch_len", [1, 16, 17, 5000, 256 * 1024])
@pytest.mark.parametrize("seed", range(4))
def test_frames_arrive_in_random_pieces(
    feed: Feed, scratch_len: int, seed: int
) -> None:
    decoder = new_decoder(scratch_len)
    assert feed(decoder, random_cuts(STREAM, seed)) == FRAMES
    assert decoder.at_frame_boundary


@both_feeds
@pytest.mark.parametrize("seed", range(3))
def test_bodies_of_several_mib_arrive_in_random_pieces(feed: Feed, seed: int) -> None:
    lengths = (MIB - 1, MIB + 16 * 1024, MIB + 16 * 1024 + 1, 5 * MIB)
    bodies = [random.Random(n).randbytes(length) for n, length in enumerate(lengths)]
    stream = b"".join(map(frame_bytes, bodies))
    decoder = new_decoder()
    frames = feed(decoder, random_cuts(stream, seed))
    assert [frame.body for frame in frames] == bodies


@given(st.lists(st.binary(max_size=50), max_size=5), st.lists(st.integers(1, 40)))
@settings(max_examples=100)
def test_any_bodies_in_any_pieces_arrive(bodies: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(map(frame_bytes, bodies))
    pieces, at = [], 0
    for cut in [*cuts, len(stream) + 1]:
        pieces.append(stream[at : at + cut])
        at += cut
    for feed in (feed_data, feed_memory):
        frames = feed(new_decoder(8), iter(pieces))
        assert [frame.body for frame in frames] == bodies


def test_a_long_body_is_received_straight_into_its_place() -> None:
    decoder = new_decoder(1024)
    body = random.Random(5).randbytes(300_000)
    stream = frame_bytes(body)
    assert feed_memory(decoder, whole(stream[:20])) == []
    assert len(decoder.get_buffer()) == len(body) - 4
    assert feed_memory(decoder, whole(stream[20:])) == [Frame(Codec.NONE, body)]


def test_the_rest_of_a_body_comes_together_with_what_follows() -> None:
    decoder = new_decoder(64 * 1024)
    stream = frame_bytes(b"a" * 20_000) + frame_bytes(b"b" * 10)
    feed_memory(decoder, whole(stream[:10_000]))
    assert len(decoder.get_buffer()) == 64 * 1024
    frames = feed_memory(decoder, whole(stream[10_000:]))
    assert [bytes(frame.body) for frame in frames] == [b"a" * 20_000, b"b" * 10]


def test_decoders_of_one_thread_may_share_their_scratch() -> None:
    scratch = bytearray(100)
    one, two = FrameDecoder(scratch), FrameDecoder(scratch)
    frames: list[list[Frame]] = [[], []]
    for first, second in zip(
        bytewise(frame_bytes(b"first")), bytewise(frame_bytes(b"2econd")), strict=False
    ):
        frames[0] += feed_memory(one, whole(first))
        frames[1] += feed_memory(two, whole(second))
    frames[1] += feed_memory(two, whole(b"d"))
    assert frames == [[Frame(Codec.NONE, b"first")], [Frame(Codec.NONE, b"2econd")]]


@both_feeds
def test_truncated_anywhere_no_more_than_the_whole_frames_arrive(feed: Feed) -> None:
    stream = frame_bytes(b"first") + frame_bytes(b"second")
    first_len = FRAME_HEADER_LEN + 5
    for length in range(len(stream) + 1):
        decoder = new_decoder()
        frames = feed(decoder, whole(stream[:length]))
        assert len(frames) == (length >= first_len) + (length == len(stream))
        assert decoder.at_frame_boundary == (length in (0, first_len, len(stream)))


# What is no frame.


@both_feeds
@pytest.mark.parametrize("pieces", [whole, bytewise])
@pytest.mark.parametrize("at", range(len(MAGIC)))
def test_a_wrong_magic_byte_ends_the_stream(
    feed: Feed, pieces: Callable[[bytes], Pieces], at: int
) -> None:
    stream = bytearray(frame_bytes(b"good") + frame_bytes(b"bad"))
    stream[20 + at] ^= 0x01
    with pytest.raises(BadMagicError, match="bad magic"):
        feed(new_decoder(), pieces(bytes(stream)))


@pytest.mark.parametrize("at", range(len(MAGIC)))
def test_a_wrong_magic_byte_is_noticed_as_soon_as_it_comes(at: int) -> None:
    decoder = new_decoder()
    assert decoder.receive_data(MAGIC[:at]) == []
    with pytest.raises(BadMagicError):
        decoder.receive_data(bytes((MAGIC[at] ^ 0x80,)))


@both_feeds
@pytest.mark.parametrize("pieces", [whole, bytewise])
@pytest.mark.parametrize("codec", [8, 9, 127, 128, 255])
def test_a_codec_that_does_not_exist_ends_the_stream(
    feed: Feed, pieces: Callable[[bytes], Pieces], codec: int
) -> None:
    with pytest.raises(BadMagicError, match=f"codec {codec}, which does not exist"):
        feed(new_decoder(), pieces(frame_bytes(b"", codec)))


def test_every_codec_byte_above_seven_is_refused() -> None:
    for codec in range(8, 256):
        decoder = new_decoder()
        with pytest.raises(BadMagicError):
            decoder.receive_data(MAGIC + bytes((codec,)))


@pytest.mark.parametrize("alert", [b"\x15", b"\x15\x03", b"\x15\x03\x03\x00\x02\x02F"])
def test_a_tls_alert_is_recognized(alert: bytes) -> None:
    with pytest.raises(BadMagicError, match="speaks TLS"):
        new_decoder().receive_data(alert)


@both_feeds
@pytest.mark.parametrize("pieces", [whole, bytewise])
@pytest.mark.parametrize("announced", [MAX_BODY_LEN + 1, 2**32, 2**63, 2**64 - 1])
def test_a_frame_over_the_limit_ends_the_stream(
    feed: Feed, pieces: Callable[[bytes], Pieces], announced: int
) -> None:
    header = MAGIC + b"\x00" + announced.to_bytes(8, "big")
    with pytest.raises(FrameTooLargeError) as caught:
        feed(new_decoder(), pieces(header))
    assert (caught.value.limit, caught.value.got) == (MAX_BODY_LEN, announced)


@pytest.mark.parametrize(
    "bad", [b"junk", frame_bytes(b"", 8), MAGIC + b"\0" + b"\xff" * 8]
)
def test_a_stream_that_has_ended_stays_ended(bad: bytes) -> None:
    decoder = new_decoder()
    with pytest.raises(RemoteProtocolError):
        decoder.receive_data(bad)
    with pytest.raises(RemoteProtocolError, match="given up"):
        decoder.receive_data(frame_bytes(b"good"))
    with pytest.raises(RemoteProtocolError, match="given up"):
        feed_memory(decoder, whole(frame_bytes(b"good")))


@given(st.binary(max_size=100))
def test_any_bytes_are_frames_or_refused(data: bytes) -> None:
    for feed in (feed_data, feed_memory):
        try:
            frames = feed(new_decoder(16), bytewise(data))
        except RemoteProtocolError:
            continue
        assert all(data.startswith(MAGIC) for _ in frames)


def _traced_peak(action: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        kept = action()
        del kept
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_an_announced_body_costs_little_until_it_comes() -> None:
    header = MAGIC + b"\x00" + MAX_BODY_LEN.to_bytes(8, "big")

    def announce() -> list[FrameDecoder]:
        decoders = [new_decoder(64) for _ in range(8)]
        for decoder in decoders:
            assert feed_memory(decoder, whole(header)) == []
            assert len(decoder.get_buffer()) > 0
        return decoders

    assert _traced_peak(announce) < 8 * (MIB + 64 * 1024)


def test_memory_for_a_body_grows_with_what_has_come() -> None:
    header = MAGIC + b"\x00" + MAX_BODY_LEN.to_bytes(8, "big")
    decoder = new_decoder(64)
    sent = 3 * MIB
    piece = bytes(MIB // 4)

    def receive() -> None:
        feed_memory(decoder, whole(header))
        for _ in range(sent // len(piece)):
            feed_memory(decoder, whole(piece))

    assert _traced_peak(receive) < 3 * sent


def test_the_longest_body_is_taken() -> None:
    decoder = new_decoder()
    frames = decoder.receive_data(
        MAGIC + b"\x00" + MAX_BODY_LEN.to_bytes(8, "big") + bytes(MAX_BODY_LEN)
    )
    assert [len(frame.body) for frame in frames] == [MAX_BODY_LEN]


# From messages to frames and back.

SHORT = Message(header=Header(call_type=1, service_name="s"), payload=b"payload")


def joined(message: Message, codec: Codec) -> bytes:
    return b"".join(encode_frame(message, codec))


@pytest.mark.parametrize("codec", Codec)
@pytest.mark.parametrize("payload_len", [0, 100, 17_000, 200_000])
@pytest.mark.parametrize("header_len", [0, 20_000])
def test_messages_come_back_from_frames(
    codec: Codec, payload_len: int, header_len: int
) -> None:
    message = Message(
        header=Header(call_type=1, sender="s" * header_len),
        payload=random.Random(1).randbytes(payload_len),
        error="" if payload_len % 200 else "an error",
    )
    (frame,) = new_decoder().receive_data(joined(message, codec))
    assert frame.codec is codec
    assert decode_frame(frame) == message


def test_a_short_frame_is_one_buffer() -> None:
    assert len(encode_frame(SHORT, Codec.NONE)) == 1
    assert len(encode_frame(SHORT, Codec.S2)) == 1


def test_a_long_payload_is_not_copied_into_its_frame() -> None:
    payload = bytes(100_000)
    message = Message(header=Header(call_type=1), payload=payload)
    assert any(buffer is payload for buffer in encode_frame(message, Codec.NONE))


@pytest.mark.parametrize("codec", Codec)
def test_the_header_can_ask_for_no_compression_of_one_message(codec: Codec) -> None:
    message = Message(header=Header(no_system_compression=True), payload=b"p" * 1000)
    (frame,) = new_decoder().receive_data(joined(message, codec))
    assert frame.codec is Codec.NONE_ONCE
    assert decode_frame(frame) == message


def test_the_codec_byte_alone_tells_how_a_body_is_packed() -> None:
    message = Message(header=Header(no_system_compression=True), payload=b"p" * 1000)
    body = compress(Codec.S2, b"".join(encode_message(message)))
    assert decode_frame(Frame(Codec.S2, body)) == message


@pytest.mark.parametrize("codec", [Codec.NONE, Codec.ZSTD_03])
def test_a_payload_over_the_limit_is_our_own_fault(codec: Codec) -> None:
    longest = Message(header=Header(), payload=memoryview(bytes(MAX_PAYLOAD_LEN)))
    encode_frame(longest, codec)
    too_long = Message(header=Header(), payload=memoryview(bytes(MAX_PAYLOAD_LEN + 1)))
    with pytest.raises(LocalProtocolError, match="does not fit"):
        encode_frame(too_long, codec)


def test_a_frame_over_the_limit_is_our_own_fault() -> None:
    message = Message(
        header=Header(sender="s" * 2000), payload=memoryview(bytes(MAX_PAYLOAD_LEN))
    )
    with pytest.raises(LocalProtocolError, match=f"limit of {MAX_BODY_LEN}"):
        encode_frame(message, Codec.NONE)


@pytest.mark.parametrize("codec", Codec)
def test_an_empty_body_is_no_message(codec: Codec) -> None:
    (frame,) = new_decoder().receive_data(frame_bytes(b"", codec))
    with pytest.raises(DecodeError):
        decode_frame(frame)


@pytest.mark.parametrize("codec", Codec)
def test_a_damaged_body_is_refused_or_decoded(codec: Codec) -> None:
    rng = random.Random(int(codec))
    text = Message(header=Header(call_type=1), payload=b"some text, " * 50)
    packed = bytearray(compress(codec, b"".join(encode_message(text))))
    for _ in range(150):
        damaged = bytearray(packed)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        with contextlib.suppress(DecodeError, FrameTooLargeError):
            decode_frame(Frame(codec, damaged), MIB)


@pytest.mark.parametrize("codec", [Codec.S2, Codec.LZ4, Codec.ZSTD_03])
def test_a_body_that_unpacks_to_too_much_is_refused(codec: Codec) -> None:
    bomb = compress(codec, bytes(MAX_PLAIN_LEN + 1))
    with pytest.raises(FrameTooLargeError):
        decode_frame(Frame(codec, bomb))


def test_a_smaller_limit_for_unpacking_can_be_asked_for() -> None:
    (frame,) = new_decoder().receive_data(joined(SHORT, Codec.LZ4))
    assert decode_frame(frame, max_plain_len=1000) == SHORT
    with pytest.raises(FrameTooLargeError):
        decode_frame(frame, max_plain_len=10)
