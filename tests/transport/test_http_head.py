"""The head of HTTP CONNECT as bytes, without sockets."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpc25519_tools.errors import (
    HandshakeError,
)
from rpc25519_tools.transport.http_connect import (
    ANSWER,
    MAX_HEAD_LEN,
    REQUEST,
    Head,
    HeadReader,
    Side,
    judge_answer,
    judge_request,
)
from rpc25519_tools.wire.constants import MAGIC
from tests.transport.http_peers import (
    ANSWERS,
    CLIENT_HELLO,
    FLOWS,
    FRAMES,
    REQUESTS,
    TLS_ALERT,
)


def recorded_prelude(direction: str) -> bytes:
    index = json.loads((FLOWS / "index.json").read_text())
    (exchange,) = (e for e in index["exchanges"] if e["name"] == "http-connect")
    prelude = base64.b64decode(exchange[direction]["prelude_b64"])
    assert (FLOWS / f"http-connect.{direction}.bin").read_bytes().startswith(prelude)
    return prelude


def test_both_sides_say_what_go_programs_say() -> None:
    assert recorded_prelude("c2s") == REQUEST
    assert recorded_prelude("s2c") == ANSWER


def read_head(side: Side, pieces: list[bytes]) -> Head | str | None:
    """Return the head, the reason against it, or None where it is not complete."""
    reader = HeadReader(side)
    for number, piece in enumerate(pieces):
        try:
            head = reader.receive_data(piece)
        except HandshakeError as exc:
            return str(exc)
        if head is not None:
            return Head(head.first_line, head.rest + b"".join(pieces[number + 1 :]))
    return None


NO_HEADS = [
    b"\n",
    b"\r\n\r\n",
    b"\r\r\n",
    b"CONNECT /_goRPC_ HTTP/1.0\rX: y\n\n",
    b"CONNECT /_goRPC_ HTTP/2.0\n\n",
    b"CONNECT  /_goRPC_ HTTP/1.0\n\n",
    b"CONNECT /_goRPC_\n\n",
    b"CONNECT /a b HTTP/1.0\n\n",
    b"CONNECT /_go\x00 HTTP/1.0\n\n",
    b"CONNECT /_goRPC_ HTTP/1.0\nno header\n\n",
    b"CONNECT /_goRPC_ HTTP/1.0\n folded: 1\n\n",
    b"CONNECT /_goRPC_ HTTP/1.0\nA: \x01\n\n",
    b"HTTP/1.0 20 Connected to Go RPC\n\n",
    b"HTTP/2 200 Connected to Go RPC\n\n",
    b"HTTP/1.0\n\n",
    b"HTTP/1.0 200 Connected to Go RPC\nA : 1\n\n",
    b"SSH-2.0-OpenSSH_9.6\r\n",
    b"\xff\xfe",
    b"\x16\x02 no TLS",
    b"x" * 3 * MAX_HEAD_LEN,
    CLIENT_HELLO,
    TLS_ALERT,
    FRAMES,
    MAGIC[:5] + b"??",
]
SIDES: list[Side] = ["client", "server"]


@pytest.mark.parametrize("head", REQUESTS)
def test_a_request_is_read_to_its_end(head: bytes) -> None:
    first_line = head.splitlines()[0].decode()
    for rest in (b"", b"\n", FRAMES):
        assert read_head("server", [head + rest]) == Head(first_line, rest)
    for length in range(len(head)):
        assert read_head("server", [head[:length]]) is None
    assert "does not speak HTTP CONNECT" in str(read_head("client", [head]))


@pytest.mark.parametrize("head", ANSWERS)
def test_an_answer_is_read_to_its_end(head: bytes) -> None:
    first_line = head.splitlines()[0].decode()
    for rest in (b"", b"\n", FRAMES):
        assert read_head("client", [head + rest]) == Head(first_line, rest)
    for length in range(len(head)):
        assert read_head("client", [head[:length]]) is None
    assert "does not speak HTTP CONNECT" in str(read_head("server", [head]))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("data", NO_HEADS)
def test_what_is_no_head_is_refused_in_one_printable_line(
    side: Side, data: bytes
) -> None:
    reason = read_head(side, [data])
    assert isinstance(reason, str)
    assert reason.isascii()
    assert reason.isprintable()
    assert len(reason) < 140


@given(
    side=st.sampled_from(SIDES),
    data=st.sampled_from(REQUESTS + ANSWERS + NO_HEADS),
    rest=st.binary(max_size=20),
    cuts=st.lists(st.integers(0, 120), max_size=12),
)
def test_pieces_come_to_the_same(
    side: Side, data: bytes, rest: bytes, cuts: list[int]
) -> None:
    data += rest
    ends = [*sorted(cuts), len(data)]
    pieces = [data[a:b] for a, b in zip([0, *ends], ends, strict=False)]
    pieces.append(data[max(ends) :])
    assert b"".join(pieces) == data
    whole = read_head(side, [data])
    assert read_head(side, pieces) == whole
    assert read_head(side, [data[i : i + 1] for i in range(len(data))]) == whole


@given(
    side=st.sampled_from(SIDES),
    beginning=st.sampled_from([b"", REQUEST[:-1], ANSWER[:-1], b"GET ", MAGIC[:3]]),
    data=st.binary(),
)
def test_nothing_but_handshake_errors_comes_of_any_bytes(
    side: Side, beginning: bytes, data: bytes
) -> None:
    found = read_head(side, [beginning + data])
    if isinstance(found, str):
        assert found.isascii()
        assert found.isprintable()


@pytest.mark.parametrize("side", SIDES)
def test_a_head_may_be_just_as_long_as_the_limit(side: Side) -> None:
    line = REQUEST[:-1] if side == "server" else ANSWER[:-1]
    header = b"A: " + b"b" * (MAX_HEAD_LEN - len(line) - 5) + b"\n"
    head = line + header + b"\n"
    assert len(head) == MAX_HEAD_LEN
    assert read_head(side, [head + b"rest"]) == Head(line.decode().rstrip(), b"rest")
    longer = line + b"b" + header + b"\n" if side == "client" else line + b"b" + header
    reason = str(read_head(side, [longer + b"\n"]))
    assert reason.endswith("sent an HTTP head of more than 8192 bytes")


@pytest.mark.parametrize(
    ("first_line", "answer"),
    [
        ("CONNECT /_goRPC_ HTTP/1.0", ANSWER),
        ("CONNECT /_goRPC_ HTTP/1.1", ANSWER),
        ("GET /_goRPC_ HTTP/1.1", b"405 Method Not Allowed"),
        ("connect /_goRPC_ HTTP/1.1", b"405 Method Not Allowed"),
        ("GET / HTTP/1.1", b"404 Not Found"),
        ("CONNECT /other HTTP/1.1", b"404 Not Found"),
        ("CONNECT example.org:443 HTTP/1.1", b"404 Not Found"),
    ],
)
def test_a_request_is_judged_by_path_and_method(first_line: str, answer: bytes) -> None:
    said, error = judge_request(Head(first_line, b""))
    assert said == answer or said.startswith(b"HTTP/1.0 " + answer + b"\r\n")
    assert (error is None) == (said == ANSWER)
    if error is not None:
        assert str(error) == (
            f"the client sent {first_line!r} instead of HTTP CONNECT "
            "(is it a web browser?)"
        )


@pytest.mark.parametrize(
    "status",
    ["200 OK", "200", "200 connected to go rpc", "404 Not Found", "200 " + "x" * 7000],
)
def test_any_other_status_is_a_refusal(status: str) -> None:
    judge_answer(Head("HTTP/1.1 200 Connected to Go RPC", b""))
    with pytest.raises(HandshakeError) as caught:
        judge_answer(Head(f"HTTP/1.1 {status}", b""))
    assert str(caught.value) == (
        f"the server does not speak HTTP CONNECT (status {status[:60]})"
    )
