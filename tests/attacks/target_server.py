"""A real ``srv`` for attacks, and what can be learnt of how it took them."""

import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from rpc25519_tools.files.echo import ECHO_CALL_SERVICE
from rpc25519_tools.files.parts import ARG_UPLOAD_NAME, UPLOAD_SERVICE
from rpc25519_tools.wire.codecs import Codec
from rpc25519_tools.wire.framing import FrameDecoder, decode_frame, encode_frame
from rpc25519_tools.wire.message import CallType
from tests.attacks.strangers import Minter
from tests.attacks.tls13 import DATA, HANDSHAKE, Handmade
from tests.commands.hostile import request, summed
from tests.helpers import SrvProcess, wait_until

#: A call that ``srv`` answers, whoever it lets in.
ECHO = b"".join(
    encode_frame(request(CallType.RPC, ECHO_CALL_SERVICE, payload=b"hello"), Codec.NONE)
)
#: An upload that ``srv`` would begin to store.
UPLOAD = b"".join(
    encode_frame(
        request(
            CallType.UPLOAD_BEGIN,
            UPLOAD_SERVICE,
            payload=b"smuggled",
            args=summed(b"smuggled", **{ARG_UPLOAD_NAME: "smuggled"}),
            call_id="an-upload",
        ),
        Codec.NONE,
    )
)
#: ``srv`` with a line for each attack: it would tell of the first ones alone.
_TALKATIVE = """
from rpc25519_tools.commands.srv import srv
from rpc25519_tools.transport import door, refusal_log
door._FAILURES_AT_ONCE = 10**6
refusal_log._MOST_LINES = refusal_log._MOST_REPEATS = 10**6
srv()
"""


class TargetServer:
    """A running ``srv`` that serves and takes files.

    Attributes:
        srv: the process.
        served: its directory.
    """

    def __init__(self, certs: Path, served: Path, minter: Minter) -> None:
        self.served = served
        self._minter = minter
        self._seen = 0
        # All attacks come from one address, which failed handshakes would shut out.
        options = ("-serve", served, "-readfile", served, "-v", "--max-failures", "0")
        program = (sys.executable, "-c", _TALKATIVE)
        self.srv = SrvProcess(*options, certs=certs, program=program)

    def __enter__(self) -> Self:
        self.srv.__enter__()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.srv.__exit__(exc_type, exc, traceback)

    @property
    def address(self) -> str:
        return self.srv.address

    def _log(self) -> list[str]:
        return self.srv.stdout_lines() + self.srv.stderr_lines()

    def forget_log(self) -> None:
        """Look at what is logged from now on; ports are used again."""
        self._seen = len(self._log())

    def lines_about(self, local: str) -> list[str]:
        """Return what the log says of a client, without the time and the address."""
        marked = f" {local} "
        lines = self._log()[self._seen :]
        return [line.partition(marked)[2] for line in lines if marked in line]

    def refusal(self, local: str) -> str:
        """Wait for the line that tells of a refused client; it must be the only one."""
        wait_until(
            lambda: self.lines_about(local), what=lambda: f"a line about {local}"
        )
        (line,) = self.lines_about(local)
        assert line.startswith("refused: "), line
        assert list(self.served.iterdir()) == []
        return line.removeprefix("refused: ")

    def check_it_serves(self) -> None:
        """Connect as a client in order, and make a call."""
        good = self._minter.genuine()
        with Handmade(self.address) as client:
            assert isinstance(good.key, Ed25519PrivateKey)
            client.shake_hands(good.ders, good.key)
            assert b"hello" in echoed(client)


def echoed(client: Handmade) -> bytes:
    """Make an echo call; return the payload of its reply."""
    client.send(DATA, ECHO)
    decoder = FrameDecoder(bytearray(1 << 16))
    while True:
        kind, data = client.receive()
        if kind == HANDSHAKE and data[0] == 24:
            client.follow_update()
        if kind == DATA:
            for frame in decoder.receive_data(data):
                return bytes(decode_frame(frame).payload)
