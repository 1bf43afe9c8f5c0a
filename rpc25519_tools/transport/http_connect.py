r"""HTTP CONNECT in front of the frames, on plain TCP (WIRE.md, 5.12).

The client sends ``CONNECT /_goRPC_ HTTP/1.0\n\n`` and waits; the server answers
``HTTP/1.0 200 Connected to Go RPC\n\n``; frames follow. Both sides must be set to it.

``HeadReader``, ``judge_request`` and ``judge_answer`` are pure. HttpConnectTransport
moves their bytes, and is plain TCP once the connection is open.
"""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Literal

from rpc25519_tools.errors import HandshakeCutError, HandshakeError
from rpc25519_tools.transport.base import Accept, scratch_buffer
from rpc25519_tools.transport.tcp import TcpTransport
from rpc25519_tools.wire.constants import MAGIC

#: What a client sends: bare newlines and no headers, as Go programs do.
REQUEST: Final = b"CONNECT /_goRPC_ HTTP/1.0\n\n"
#: What a server answers, and what Go clients compare its status text with.
ANSWER: Final = b"HTTP/1.0 200 Connected to Go RPC\n\n"

#: Longest head that is read, its empty line included. A browser's is about 1 KiB.
MAX_HEAD_LEN: Final = 8 * 1024

#: A Go client reads the answer through a buffer that it then throws away: frames that
#: arrive together with the answer are lost to it. So a server counts the connection as
#: open, and may push, only when the client has sent a byte after its head, which it
#: does after reading the answer, or else after this time in seconds.
OPEN_DELAY_S: Final = 0.1

_PATH: Final = b"/_goRPC_"
_STATUS: Final = "200 Connected to Go RPC"

#: How peers begin that are not set to HTTP CONNECT: a frame, and the records of TLS
#: (RFC 8446, 5.1) that can come first, an alert and a handshake.
_FRAMES: Final = "frames"
_TLS: Final = "TLS"
_OTHER_BEGINNINGS: Final = {MAGIC: _FRAMES, b"\x15\x03": _TLS, b"\x16\x03": _TLS}

_PRINTABLE: Final = re.compile(rb"[ -~]*")
_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_FIRST_LINE: Final = {
    "server": re.compile(_TOKEN + rb" [!-~]+ HTTP/1\.[0-9]"),
    "client": re.compile(rb"HTTP/1\.[0-9] +[0-9]{3}( .*)?"),
}
_HEADER_LINE: Final = re.compile(_TOKEN + rb":[\t -~\x80-\xff]*")
#: Characters of a peer's first line that an error repeats.
_SHOWN_LEN: Final = 60

Side = Literal["client", "server"]


def _error_answer(status: str, body: str) -> bytes:
    return (
        f"HTTP/1.0 {status}\r\n"
        "Content-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Connection: close\r\n"
        f"\r\n{body}"
    ).encode()


# A client that is set to something else gets one of these, too: what is no frame and
# no TLS tells it that it is wrong here.
_BAD_REQUEST: Final = _error_answer("400 Bad Request", "400 bad request\n")
_NOT_FOUND: Final = _error_answer("404 Not Found", "404 page not found\n")
_NOT_ALLOWED: Final = _error_answer("405 Method Not Allowed", "405 must CONNECT\n")


@dataclass(frozen=True, slots=True)
class Head:
    """A complete head.

    Attributes:
        first_line: the request or status line, printable ASCII, without its end.
        rest: what came behind the head; it belongs to the frames.
    """

    first_line: str
    rest: bytes


class HeadReader:
    r"""Find the end of a peer's HTTP head, and check its form.

    Lines end with ``\n`` or ``\r\n``. What comes of some bytes does not depend on how
    they are cut into pieces.

    Args:
        side: which end of the connection we are: a server reads requests.
    """

    def __init__(self, side: Side) -> None:
        self._first_line_form = _FIRST_LINE[side]
        self._other = "server" if side == "client" else "client"
        self._data = bytearray()
        self._first_line: str | None = None
        #: How much of the first line is known to be printable.
        self._printable_len = 0
        #: Where the line begins that is not complete yet.
        self._line_start = 0

    @property
    def has_data(self) -> bool:
        """Whether anything has come."""
        return bool(self._data)

    def receive_data(self, data: bytes) -> Head | None:
        """Take the next bytes; return the head when it is complete.

        Raises:
            HandshakeError: this is no HTTP head, or it is over MAX_HEAD_LEN bytes long.
        """
        searched = len(self._data)
        taken = min(len(data), MAX_HEAD_LEN - searched)
        self._data += data[:taken]
        if self._first_line is None:
            self._check_first_bytes()
        while (end := self._data.find(b"\n", max(searched, self._line_start))) >= 0:
            line = bytes(self._data[self._line_start : end]).removesuffix(b"\r")
            self._line_start = end + 1
            if self._first_line is None:
                self._first_line = self._checked_first_line(line)
            elif not line:
                behind = bytes(self._data[self._line_start :]) + data[taken:]
                return Head(self._first_line, behind)
            elif not _HEADER_LINE.fullmatch(line):
                raise HandshakeError(
                    f"the {self._other} sent a malformed HTTP header instead of "
                    "HTTP CONNECT"
                )
        if len(self._data) == MAX_HEAD_LEN:
            raise HandshakeError(
                f"the {self._other} sent an HTTP head of more than {MAX_HEAD_LEN} bytes"
            )
        return None

    def _check_first_bytes(self) -> None:
        """Refuse what cannot become a first line as soon as it is seen."""
        # The first bytes of other protocols may have to wait for the next ones.
        for beginning, kind in _OTHER_BEGINNINGS.items():
            if self._data.startswith(beginning):
                raise self._speaks(kind)
            if beginning.startswith(self._data):
                return
        match = _PRINTABLE.match(self._data, self._printable_len)
        assert match is not None
        self._printable_len = match.end()
        following = self._data[match.end() : match.end() + 2]
        if not (b"\r\n".startswith(following) or following.startswith(b"\n")):
            raise self._is_no_http(bytes(self._data[: match.end()]))

    def _checked_first_line(self, line: bytes) -> str:
        if not self._first_line_form.fullmatch(line):
            raise self._is_no_http(line)
        return line.decode("ascii")

    def _speaks(self, kind: str) -> HandshakeError:
        if kind == _TLS:
            return HandshakeError(
                f"the {self._other} speaks TLS, and this side HTTP CONNECT on plain TCP"
            )
        return HandshakeError(
            f"the {self._other} sent frames right away: it does not use HTTP CONNECT"
        )

    def _is_no_http(self, text: bytes) -> HandshakeError:
        """Describe a peer by the printable bytes that it sent first."""
        sent = f" (it sent {_shown(text.decode('ascii'))})" if text else ""
        return HandshakeError(f"the {self._other} does not speak HTTP CONNECT{sent}")


def _shown(text: str) -> str:
    """Quote printable text, in part if it is long."""
    return repr(text if len(text) <= _SHOWN_LEN else text[:_SHOWN_LEN] + "...")


def judge_request(head: Head) -> tuple[bytes, HandshakeError | None]:
    """Return the answer to a client's head, and why it is refused, if it is.

    As in Go programs the path counts first: another one is 404 whatever the method.
    """
    method, path, _ = head.first_line.encode().split(b" ")
    if path == _PATH and method == b"CONNECT":
        return ANSWER, None
    error = HandshakeError(
        f"the client sent {_shown(head.first_line)} instead of HTTP CONNECT "
        "(is it a web browser?)"
    )
    return _NOT_ALLOWED if path == _PATH else _NOT_FOUND, error


def judge_answer(head: Head) -> None:
    """Check a server's head.

    Raises:
        HandshakeError: the server declines.
    """
    status = head.first_line.partition(" ")[2].lstrip(" ")
    if status != _STATUS:
        raise HandshakeError(
            "the server does not speak HTTP CONNECT "
            f"(status {status[:_SHOWN_LEN].rstrip()})"
        )


class _State(Enum):
    HEAD_AWAITED = auto()
    #: A server's answer is out; see OPEN_DELAY_S.
    CLIENT_AWAITED = auto()
    #: Open, or failed.
    DONE = auto()


class HttpConnectTransport(TcpTransport):
    """A Transport over plain TCP that begins with HTTP CONNECT.

    Args:
        side: which end of the connection we are.
        accept: called when the connection is open.
        failed: called with the reason and the peer's address when it never comes to
            that; the connection is closed by then.
    """

    shakes_hands = True

    def __init__(
        self,
        *,
        side: Side,
        accept: Accept,
        failed: Callable[[Exception, str], None],
    ) -> None:
        super().__init__(accept)
        self._side: Side = side
        self._failed = failed
        self._reader = HeadReader(side)
        self._state = _State.HEAD_AWAITED
        self._open_timer: asyncio.TimerHandle | None = None

    @property
    def has_received(self) -> bool:
        """Whether the peer has sent any of its head."""
        return self._reader.has_data

    # Called by asyncio.

    def _opened(self) -> None:
        assert self._socket_transport is not None
        if self._closing:
            self.abort()  # given up before there was a socket
        elif self._side == "client":
            self._socket_transport.write(REQUEST)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Pass a little passing-through memory to the kernel until we are open."""
        if self._state is _State.DONE:
            return super().get_buffer(sizehint)
        return memoryview(scratch_buffer())[:MAX_HEAD_LEN]

    def buffer_updated(self, nbytes: int) -> None:
        """Read the head; then tell the receiver what came."""
        if self._state is _State.DONE or self._closing:
            super().buffer_updated(nbytes)
            return
        data = bytes(memoryview(scratch_buffer())[:nbytes])
        if self._state is _State.CLIENT_AWAITED:
            self._open(data)
            return
        try:
            head = self._reader.receive_data(data)
        except HandshakeError as exc:
            self._refuse(exc, _BAD_REQUEST)
            return
        if head is not None:
            self._answer(head)

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass the end on, or report that the connection was never open."""
        if self._state is not _State.DONE:
            error = self._end_error()
            self._end_prelude()
            self._failed(error, self.remote_address)
        super().connection_lost(exc)

    # Called from above.

    def abort(self) -> None:
        """Close at once."""
        if self._state is not _State.DONE:
            self._closing = True
            self._stop_timers()
        super().abort()

    def give_up(self) -> None:
        """Close at once, whether or not there is a socket yet."""
        self._closing = True
        super().give_up()

    def fail_handshake(self, error: Exception) -> None:
        """Give up on a peer that takes too long."""
        if self._socket_transport is None:
            self.give_up()  # connection_lost will report it, with the address
        elif self._state is not _State.DONE:
            self._end_prelude()
            self.abort()
            self._failed(error, self.remote_address)

    # Inside.

    def _answer(self, head: Head) -> None:
        """Go on after a complete head."""
        if self._side == "client":
            try:
                judge_answer(head)
            except HandshakeError as exc:
                self._refuse(exc)
            else:
                self._open(head.rest)
            return
        answer, error = judge_request(head)
        if error is not None:
            self._refuse(error, answer)
            return
        assert self._socket_transport is not None
        self._socket_transport.write(answer)
        self._stop_timers()
        if head.rest:
            # Bytes that came together with the head are lost in a Go server. Here they
            # count, and show that the client is none of those for whom we would wait.
            self._open(head.rest)
            return
        self._state = _State.CLIENT_AWAITED
        self._open_timer = asyncio.get_running_loop().call_later(
            OPEN_DELAY_S, self._open, b""
        )

    def _open(self, data: bytes) -> None:
        """Hand the open connection on, and the bytes that came behind the head."""
        if self._is_ending():
            return  # the peer hung up, say; connection_lost is about to report it
        self._end_prelude()
        super()._opened()
        view = memoryview(data)
        while view and not self._is_ending():
            memory = super().get_buffer(-1)
            count = min(len(view), len(memory))
            memory[:count] = view[:count]
            super().buffer_updated(count)
            view = view[count:]

    def _is_ending(self) -> bool:
        assert self._socket_transport is not None
        return self._closing or self._socket_transport.is_closing()

    def _refuse(self, error: HandshakeError, answer: bytes = b"") -> None:
        """End the connection; a server says why, and gives that time to arrive."""
        self._end_prelude()
        if self._side == "server":
            assert self._socket_transport is not None
            self._socket_transport.write(answer)
            self.close()
        else:
            self.abort()
        self._failed(error, self.remote_address)

    def _end_prelude(self) -> None:
        self._state = _State.DONE
        self._stop_timers()

    def _stop_timers(self) -> None:
        for timer in (self.handshake_timer, self._open_timer):
            if timer is not None:
                timer.cancel()

    def _end_error(self) -> HandshakeCutError:
        """Say how the connection ended before it was open."""
        if self._closing:
            return HandshakeCutError("this side hung up during HTTP CONNECT")
        if self._state is _State.CLIENT_AWAITED:
            return HandshakeCutError("the client hung up right after HTTP CONNECT")
        if self._reader.has_data:
            other = "server" if self._side == "client" else "client"
            return HandshakeCutError(
                f"the {other} hung up in the middle of HTTP CONNECT"
            )
        if self._side == "client":
            return HandshakeCutError(
                "the server hung up instead of answering HTTP CONNECT "
                "(does it use TLS, or plain TCP without HTTP CONNECT?)"
            )
        return HandshakeCutError("the client hung up without HTTP CONNECT")
