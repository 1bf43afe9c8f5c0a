"""What ``srv`` logs of connections whose clients prove nothing."""

import asyncio
import contextlib
from collections.abc import Iterator

from rpc25519_tools.wire.message import CallType, Header, Message
from tests.attacks.floods import frame_of, serve_one, silent_sockets
from tests.helpers import SrvProcess, open_fds, wait_until

#: More than are told of one by one.
MANY = 30
TOLD = 10


class Plain:
    """A server on plain TCP, and what it has logged of clients."""

    def __init__(self, srv: SrvProcess) -> None:
        self.srv = srv
        self._fds = len(open_fds(srv.process.pid))

    @property
    def lines(self) -> list[str]:
        """Without times and ports."""
        found = []
        for line in self.srv.stderr_lines():
            _, _, about = line.partition("Z 127.0.0.1")
            if about:
                _, _, text = about.partition(" ")
                found.append(text)
        return found

    def serve(self) -> None:
        asyncio.run(serve_one(self.srv.address, None))

    def wait_until_left(self) -> None:
        """Wait until all connections have ended, the log being written by then."""
        wait_until(lambda: len(open_fds(self.srv.process.pid)) == self._fds)


@contextlib.contextmanager
def plain(*options: str) -> Iterator[Plain]:
    with SrvProcess("-tcp", *options) as srv:
        yield Plain(srv)


def test_who_says_nothing_over_plain_tcp_has_no_line() -> None:
    with plain() as server:
        with silent_sockets(server.srv.address, MANY):
            server.serve()
        server.wait_until_left()
        assert server.lines == ["unauthenticated connected"]


def test_many_that_send_one_tiny_message_are_a_few_lines_and_a_count() -> None:
    tiny = frame_of(Message(header=Header(call_type=CallType.KEEP_ALIVE)))
    with plain() as server:
        with silent_sockets(server.srv.address, MANY, tiny):
            server.serve()
        server.wait_until_left()
        assert server.lines == ["unauthenticated connected"] * TOLD
        assert server.srv.stop() == 0
        assert server.lines[-1] == f"{MANY + 1 - TOLD} more times: connected"


def test_each_connection_has_its_lines_where_everything_is_wanted() -> None:
    with plain("-v") as server:
        with silent_sockets(server.srv.address, MANY):
            pass
        left = "unauthenticated disconnected: the peer closed the connection"
        wait_until(lambda: server.lines.count(left) == MANY)
        connected = "unauthenticated connected (plain TCP, nothing is protected)"
        assert server.lines.count(connected) == MANY


def test_garbage_of_many_over_plain_tcp_is_a_few_lines_and_a_count() -> None:
    with plain() as server:
        with silent_sockets(
            server.srv.address, MANY, b"GET / HTTP/1.1\r\n\r\n"
        ) as sent:
            for sock in sent:
                with contextlib.suppress(ConnectionError):
                    assert sock.recv(1) == b""
            server.serve()
        server.wait_until_left()
        said = [line for line in server.lines if "bad magic" in line]
        assert len(said) == TOLD
        assert said[0].startswith("unauthenticated disconnected: ")
        assert server.lines[-1] == "unauthenticated connected"
        assert server.srv.stop() == 0
        assert server.lines[-1].startswith(f"{MANY - TOLD} more times: disconnected: ")
        assert "bad magic" in server.lines[-1]


def test_a_silent_crowd_over_plain_tcp_is_a_line_and_a_count() -> None:
    reason = "too many clients that have not sent anything yet"
    with plain("--max-startups", "1:100:1") as server:
        with silent_sockets(server.srv.address, MANY) as sockets:
            for sock in sockets[:-1]:
                with contextlib.suppress(ConnectionError):
                    assert sock.recv(1) == b""
            server.serve()
        server.wait_until_left()
        *said, last = server.lines
        # One of the door, and one of the first, if that was open already.
        assert 1 <= len(said) <= 2
        assert all(line.endswith(reason) for line in said)
        assert last == "unauthenticated connected"
