"""What ``srv`` does with clients that break the rules of transfers."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from rpc25519_tools.files.parts import (
    ARG_CLIENT_TOTAL_SUM,
    ARG_PART_SUM,
    ARG_UPLOAD_NAME,
    UPLOAD_SERVICE,
)
from rpc25519_tools.identity.store import LoadedIdentity
from rpc25519_tools.wire.constants import MAGIC
from rpc25519_tools.wire.digest import digest_text
from rpc25519_tools.wire.message import CallType
from tests.commands.hostile import (
    Wire,
    hostile_client,
    partials,
    request,
)
from tests.faults.frames import (
    ABSURD_LENGTH,
    BOMB_CODECS,
    GARBAGE,
    ONE,
    TWO,
    WHOLE,
    bomb,
    send_some_of,
)
from tests.faults.programs import (
    OLD,
    call_once,
    srv_of,
    wait_for_names,
)
from tests.helpers import SrvProcess, until


class Uploading:
    """Steps of a client that sends WHOLE as ``f``, to be done wrongly."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire

    async def part(
        self,
        number: int,
        payload: bytes,
        *,
        sum_of: bytes | None = None,
        call_type: CallType | None = None,
        total: str | None = None,
    ) -> None:
        if call_type is None:
            call_type = CallType.UPLOAD_MORE if number else CallType.UPLOAD_BEGIN
        args = {ARG_UPLOAD_NAME: "f"}
        if total is not None:
            args[ARG_CLIENT_TOTAL_SUM] = total
        if sum_of != b"":
            args[ARG_PART_SUM] = digest_text(payload if sum_of is None else sum_of)
        await self.wire.send(
            request(call_type, UPLOAD_SERVICE, args=args, payload=payload, part=number)
        )

    async def end(self, number: int, total: bytes = WHOLE) -> None:
        await self.part(
            number, b"", call_type=CallType.UPLOAD_END, total=digest_text(total)
        )


UploadingScript = Callable[[Uploading], Awaitable[None]]


async def up_wrong_part_sum(u: Uploading) -> None:
    await u.part(0, ONE)
    await u.part(1, TWO, sum_of=ONE)


async def up_missing_part_sum(u: Uploading) -> None:
    await u.part(0, ONE)
    await u.part(1, TWO, sum_of=b"")


async def up_wrong_total_sum(u: Uploading) -> None:
    await u.part(0, ONE)
    await u.part(1, TWO)
    await u.end(2, total=ONE)


async def up_out_of_order(u: Uploading) -> None:
    await u.part(0, ONE)
    await u.part(2, TWO)
    await u.part(1, TWO)


async def up_duplicate(u: Uploading) -> None:
    await u.part(0, ONE)
    await u.part(1, TWO)
    await u.part(1, TWO)


async def up_missing(u: Uploading) -> None:
    await u.part(0, ONE)
    await u.end(2, total=ONE)


async def up_second_first_part(u: Uploading) -> None:
    await u.part(0, ONE)
    await u.part(0, TWO)


async def up_not_from_zero(u: Uploading) -> None:
    await u.part(1, ONE, call_type=CallType.UPLOAD_BEGIN)


async def up_absurd_part_number(u: Uploading) -> None:
    await u.part(0, ONE)
    await u.part((1 << 63) - 1, TWO)


#: What the client does, and what the server answers.
BAD_UPLOADS: list[tuple[UploadingScript, str]] = [
    (up_wrong_part_sum, "part 1 does not match its blake3 sum"),
    (up_missing_part_sum, "part 1 carries no blake3 sum"),
    (up_wrong_total_sum, "the file does not match its blake3 sum"),
    (up_out_of_order, "part 2 came where part 1 was due"),
    (up_duplicate, "part 1 came where part 2 was due"),
    (up_missing, "part 2 came where part 1 was due"),
    (up_second_first_part, "this call id belongs to a call that is still running"),
    (up_not_from_zero, "a stream must begin with part 0, not 1"),
    (up_absurd_part_number, "came where part 1 was due"),
]


@pytest.fixture(scope="module")
def shared(
    certs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[SrvProcess, SrvProcess, Path]]:
    """Servers for all hostile clients, over TLS and TCP; they have to survive."""
    served = tmp_path_factory.mktemp("served-to-hostile-clients")
    with srv_of(certs, served) as tls, srv_of(certs, served, "-tcp") as tcp:
        yield tls, tcp, served


@pytest.fixture(params=["tcp", "tls"])
def hostile_to(
    request: pytest.FixtureRequest,
    shared: tuple[SrvProcess, SrvProcess, Path],
    client_identity: LoadedIdentity,
) -> Iterator[tuple[SrvProcess, LoadedIdentity | None, Path]]:
    """A server, how to reach it, and its directory, looked at afterwards."""
    tls, tcp, served = shared
    over_tls = request.param == "tls"
    srv, identity = (tls, client_identity) if over_tls else (tcp, None)
    (served / "f").write_bytes(OLD)
    yield srv, identity, served
    wait_for_names(served, "f")
    assert (served / "f").read_bytes() == OLD
    assert srv.process.poll() is None
    assert "Traceback" not in srv.stderr()
    asyncio.run(call_once(srv.address, identity))


HostileTo = tuple[SrvProcess, LoadedIdentity | None, Path]


@pytest.mark.parametrize(
    ("script", "text"),
    [pytest.param(script, text, id=script.__name__) for script, text in BAD_UPLOADS],
)
def test_hostile_client_of_an_upload(
    hostile_to: HostileTo, script: UploadingScript, text: str
) -> None:
    srv, identity, _ = hostile_to

    async def scenario() -> None:
        async with hostile_client(srv.address, identity) as wire:
            await script(Uploading(wire))
            reply = await wire.receive()
            assert reply.header.call_type == CallType.RPC_REPLY
            assert text in reply.error

    asyncio.run(scenario())


def test_parts_after_the_last_change_nothing(hostile_to: HostileTo) -> None:
    srv, identity, served = hostile_to

    async def scenario() -> None:
        async with hostile_client(srv.address, identity) as wire:
            uploading = Uploading(wire)
            await uploading.part(0, ONE)
            await uploading.end(1, total=ONE)
            await uploading.part(2, TWO)
            reply = await wire.receive()
            # The one or the other, depending on which was there first; both are fine.
            stored = (served / "f").read_bytes()
            if reply.error:
                assert "came after the last part" in reply.error
                assert stored == OLD
            else:
                assert stored == ONE

    asyncio.run(scenario())
    (served / "f").write_bytes(OLD)


def test_client_that_closes_in_mid_part(hostile_to: HostileTo) -> None:
    srv, identity, served = hostile_to

    async def scenario() -> None:
        async with hostile_client(srv.address, identity) as wire:
            await Uploading(wire).part(0, ONE)
            await until(lambda: partials(served), what="a partial file")
            await send_some_of(
                wire, request(CallType.UPLOAD_MORE, "x", payload=TWO, part=1)
            )
            await wire.wait_gone()

    asyncio.run(scenario())
    srv.wait_for("failed: the peer closed the connection in the middle of a message")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        pytest.param(ABSURD_LENGTH, "announces a message of", id="length"),
        pytest.param(GARBAGE, "bad magic", id="garbage"),
        pytest.param(MAGIC + b"\x09" + bytes(8), "names codec 9", id="codec"),
        pytest.param(
            MAGIC + b"\0" + (4).to_bytes(8, "big") + b"\xc1\xc1\xc1\xc1",
            "disconnected: ",
            id="no-message",
        ),
        *(
            pytest.param(bomb(codec), "the body unpacks to", id=f"bomb-{codec.name}")
            for codec in BOMB_CODECS
        ),
    ],
)
@pytest.mark.parametrize("uploading", [False, True], ids=["at-once", "in-mid-upload"])
def test_client_that_breaks_the_protocol_loses_its_connection(
    hostile_to: HostileTo, data: bytes, text: str, uploading: bool
) -> None:
    srv, identity, served = hostile_to

    async def scenario() -> None:
        async with hostile_client(srv.address, identity) as wire:
            if uploading:
                await Uploading(wire).part(0, ONE)
                await until(lambda: partials(served), what="a partial file")
            await wire.send_bytes(data)
            await wire.wait_gone()

    asyncio.run(scenario())
    srv.wait_for(text)
