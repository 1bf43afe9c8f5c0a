"""Frames on the byte stream.

A frame is seven magic bytes, one codec byte, a big-endian 64-bit body length, and the
body. There is no greeting, no checksum and no closing message. Anything unexpected ends
the connection; a decoder never looks for the next magic, because bytes that lost their
frame cannot be trusted to find it again.

The decoder offers its own memory for the next bytes (``get_buffer``), so that a long
body is received or decrypted straight into place. Memory for a body grows with what has
really arrived: a peer that announces 64 MiB and sends nothing costs nothing.

Source: recorded exchanges; the limits are those that a Go peer enforces.
"""

import struct
from typing import Final

import msgspec

from rpc25519_tools.errors import (
    BadMagicError,
    FrameTooLargeError,
    LocalProtocolError,
    RemoteProtocolError,
)
from rpc25519_tools.wire import codecs
from rpc25519_tools.wire.buffers import BufferPool
from rpc25519_tools.wire.codecs import Codec
from rpc25519_tools.wire.constants import (
    FRAME_HEADER_LEN,
    MAGIC,
    MAX_BODY_LEN,
    MAX_PLAIN_LEN,
)
from rpc25519_tools.wire.greenpack import Buffer
from rpc25519_tools.wire.message import Message
from rpc25519_tools.wire.message_packing import encode_message
from rpc25519_tools.wire.message_unpacking import decode_message
from rpc25519_tools.wire.outgoing import (
    UNCHECKED_HEADER_LEN,
    require_sendable,
    require_sendable_error,
    sendable,
)

#: Shorter rests of a body are received together with what follows them.
_DIRECT_FROM_LEN: Final = 16 * 1024
#: Payloads up to this length need no second look.
_SHORT_LEN: Final = 64 * 1024
#: Buffers up to this length are joined into one; longer ones are never copied.
_JOIN_UP_TO_LEN: Final = 16 * 1024

_HEADER: Final = struct.Struct(">7sBQ")
_HIGHEST_CODEC: Final = max(Codec)
_CODECS: Final = tuple(Codec(number) for number in range(_HIGHEST_CODEC + 1))
#: Frames up to this length are copied out of the received bytes.
_WHOLE_UP_TO_LEN: Final = 64 * 1024
#: The first two bytes of a TLS alert record: what a plain client hears from TLS.
_TLS_ALERT: Final = b"\x15\x03"
#: How the length begins that a pre-shared-key handshake begins with.
_TUNNEL_LENGTH: Final = bytes(5)


class Frame(msgspec.Struct, frozen=True):
    """One frame as it arrived: its codec and its still packed body."""

    codec: Codec
    body: Buffer


def encode_frame(message: Message, codec: Codec) -> list[Buffer]:
    """Encode ``message`` as one frame, as a list of buffers to be written in order.

    Args:
        message: the message; ``no_system_compression`` overrides ``codec`` with 7.
        codec: what packs the body.

    Raises:
        LocalProtocolError: the payload, the header or the packed body is over the
            peer's limit, or holds what cannot be sent.
    """
    if type(message.payload) is not bytes or len(message.payload) > _SHORT_LEN:
        message = sendable(message)
    if message.header.no_system_compression:
        codec = Codec.NONE_ONCE
    try:
        body = encode_message(message)
    except (AttributeError, TypeError, UnicodeEncodeError):
        _require_sendable(message)  # names what is no text
        raise
    if len(body[0]) > UNCHECKED_HEADER_LEN or message.error:
        _require_sendable(message)
    if codec not in (Codec.NONE, Codec.NONE_ONCE):
        plain = body[0] if len(body) == 1 else b"".join(body)
        body = [codecs.compress(codec, plain)]
    body_len = sum([len(piece) for piece in body])
    if body_len > MAX_BODY_LEN:
        raise LocalProtocolError(
            f"a message of {body_len} bytes is over the limit of {MAX_BODY_LEN}"
        )
    header = _HEADER.pack(MAGIC, codec, body_len)
    if body_len <= _JOIN_UP_TO_LEN:
        return [b"".join((header, *body))]
    if len(body[0]) <= _JOIN_UP_TO_LEN:
        return [header + bytes(body[0]), *body[1:]]
    return [header, *body]


def _require_sendable(message: Message) -> None:
    require_sendable(message.header)
    require_sendable_error(message.error)


def decode_frame(frame: Frame, max_plain_len: int = MAX_PLAIN_LEN) -> Message:
    """Unpack and decode the message in ``frame``.

    Raises:
        DecodeError: the body does not unpack, or holds no message.
        FrameTooLargeError: it unpacks to more than ``max_plain_len`` bytes.
    """
    if frame.codec in (Codec.NONE, Codec.NONE_ONCE):
        return decode_message(frame.body)
    return decode_message(
        codecs.decompress(frame.codec, frame.body, max_len=max_plain_len)
    )


class FrameDecoder:
    """Cut a byte stream into frames.

    Feed it either with ``receive_data``, or by filling the memory that ``get_buffer``
    returns and telling ``buffer_updated`` how much came. After an error the decoder
    refuses everything; the connection has to be closed.

    Args:
        scratch: memory for bytes that are not the inside of a long body. It is used
            only between ``get_buffer`` and ``buffer_updated``, so several decoders of
            one thread can share it.
        pool: where memory for bodies comes from; can be shared in the same way.
        max_body_len: most bytes of one body, as they come; never above the wire's own
            limit.
    """

    def __init__(
        self,
        scratch: bytearray,
        pool: BufferPool | None = None,
        *,
        max_body_len: int = MAX_BODY_LEN,
    ) -> None:
        self._max_body_len = min(max_body_len, MAX_BODY_LEN)
        self._whole_up_to_len = min(_WHOLE_UP_TO_LEN, self._max_body_len)
        self._scratch = memoryview(scratch)
        self._pool = BufferPool() if pool is None else pool
        self._partial_header = b""
        self._codec = Codec.NONE
        self._body: bytearray | None = None
        self._body_len = 0
        self._filled = 0
        self._direct = False
        self._failed = False

    @property
    def at_frame_boundary(self) -> bool:
        """Whether the bytes so far end exactly with a frame."""
        return self._body is None and not self._partial_header

    @property
    def partial_len(self) -> int:
        """Bytes of a body that has not come to its end yet."""
        return self._filled if self._body is not None else 0

    def get_buffer(self) -> memoryview:
        """Return memory (never empty) in which to place the next bytes."""
        if self._body is not None:
            remaining = self._body_len - self._filled
            if remaining >= _DIRECT_FROM_LEN:
                self._direct = True
                self._grow_body()
                return memoryview(self._body)[self._filled : self._body_len]
        self._direct = False
        return self._scratch

    def buffer_updated(self, count: int) -> list[Frame]:
        """Take the first ``count`` bytes of what ``get_buffer`` returned last.

        Raises:
            BadMagicError: no frame starts where one must start.
            FrameTooLargeError: a frame is longer than the limit.
        """
        if not self._direct:
            if self.at_frame_boundary and not self._failed:
                frame = self._whole_frame(self._scratch, 0, count)
                if frame is not None and FRAME_HEADER_LEN + len(frame.body) == count:
                    return [frame]
            return self.receive_data(self._scratch[:count])
        self._filled += count
        if self._filled < self._body_len:
            return []
        return [self._finish_body()]

    def receive_data(self, data: Buffer) -> list[Frame]:
        """Take the next bytes of the stream; return the frames that they complete.

        Raises:
            BadMagicError: no frame starts where one must start.
            FrameTooLargeError: a frame is longer than the limit.
        """
        if self._failed:
            raise RemoteProtocolError("the byte stream has already been given up")
        frames: list[Frame] = []
        view = memoryview(data)
        position = 0
        end = len(view)
        while position < end:
            if self._body is None and not self._partial_header:
                frame = self._whole_frame(view, position, end)
                if frame is not None:
                    frames.append(frame)
                    position += FRAME_HEADER_LEN + len(frame.body)
                    continue
            if self._body is not None:
                position += self._fill_body(view[position:])
            else:
                position = self._read_header(view, position)
            if self._body is not None and self._filled == self._body_len:
                frames.append(self._finish_body())
        return frames

    def _whole_frame(self, view: memoryview, position: int, end: int) -> Frame | None:
        """Cut out a short frame that is there in one piece, as most are; else None."""
        start = position + FRAME_HEADER_LEN
        if start > end:
            return None
        magic, codec, body_len = _HEADER.unpack_from(view, position)
        stop = start + body_len
        if (
            magic != MAGIC
            or codec > _HIGHEST_CODEC
            or body_len > self._whole_up_to_len
            or stop > end
        ):
            return None
        return Frame(_CODECS[codec], bytes(view[start:stop]))

    def _read_header(self, view: memoryview, position: int) -> int:
        """Read a frame header, or the part of it that is there."""
        missing = FRAME_HEADER_LEN - len(self._partial_header)
        header = self._partial_header + bytes(view[position : position + missing])
        position += min(missing, len(view) - position)
        if len(header) < FRAME_HEADER_LEN:
            # Bytes that cannot be a header are refused at once, not awaited.
            self._check_magic(header)
            self._partial_header = header
            return position
        self._partial_header = b""
        self._check_magic(header)
        _, codec, body_len = _HEADER.unpack(header)
        if body_len > self._max_body_len:
            self._failed = True
            raise FrameTooLargeError(
                f"the peer announces a message of {body_len} bytes; "
                f"the limit is {self._max_body_len}",
                limit=self._max_body_len,
                got=body_len,
            )
        self._codec = Codec(codec)
        self._body_len = body_len
        self._filled = 0
        self._body = self._pool.allocate_start(body_len)
        return position

    def _check_magic(self, header: bytes) -> None:
        if not MAGIC.startswith(header[: len(MAGIC)]):
            self._failed = True
            if header.startswith(_TLS_ALERT) or _TLS_ALERT.startswith(header):
                raise BadMagicError("the peer speaks TLS, not plain TCP (drop -tcp)")
            if header.startswith(_TUNNEL_LENGTH) or _TUNNEL_LENGTH.startswith(header):
                raise BadMagicError(
                    "the peer uses a pre-shared key (-psk), and this side does not"
                )
            raise BadMagicError("the peer does not speak this protocol (bad magic)")
        if len(header) > len(MAGIC) and header[len(MAGIC)] > _HIGHEST_CODEC:
            self._failed = True
            raise BadMagicError(
                f"the peer names codec {header[len(MAGIC)]}, which does not exist"
            )

    def _fill_body(self, view: memoryview) -> int:
        assert self._body is not None
        self._grow_body()
        room = min(len(self._body), self._body_len) - self._filled
        count = min(room, len(view))
        self._body[self._filled : self._filled + count] = view[:count]
        self._filled += count
        return count

    def _grow_body(self) -> None:
        """Give a body that has filled its memory twice as much, up to its length."""
        body = self._body
        assert body is not None
        if self._filled == len(body) and self._filled < self._body_len:
            grown = bytearray(min(2 * len(body), self._body_len))
            grown[: self._filled] = body
            self._body = grown

    def _finish_body(self) -> Frame:
        assert self._body is not None
        body: Buffer = self._body
        if len(body) > self._body_len:
            body = memoryview(body)[: self._body_len]
        frame = Frame(self._codec, body)
        self._body = None
        return frame
