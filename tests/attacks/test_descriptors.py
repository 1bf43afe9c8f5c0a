"""Clients that are let in and open all the files that a process may have."""

import os
import resource
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from rpc25519_tools.files.atomic import open_local_sink
from rpc25519_tools.files.download import download_file
from rpc25519_tools.files.parts import (
    ARG_DOWNLOAD_REQUEST,
    ARG_UPLOAD_NAME,
    DOWNLOAD_SERVICE,
    UPLOAD_SERVICE,
)
from rpc25519_tools.files.source import open_local_source
from rpc25519_tools.files.upload import upload_file
from rpc25519_tools.identity.store import load_identity
from rpc25519_tools.wire.message import CallType
from tests.attacks.floods import MIB, client_of
from tests.commands.hostile import Wire, hostile_client, request, summed
from tests.helpers import SrvProcess, until

#: What the server may have; a fifth of them is for transfers.
DESCRIPTORS = 160
TRANSFERS = 60

needs_prlimit = pytest.mark.skipif(
    not hasattr(resource, "prlimit"), reason="only Linux changes others' limits"
)


#: What one connection gets.
SHARE = DESCRIPTORS // 5 // 4
REFUSED = (
    "this connection has too many files open; wait until some of its transfers are done"
)


def open_count(srv: SrvProcess) -> int:
    return len(os.listdir(f"/proc/{srv.process.pid}/fd"))


async def open_uploads(wire: Wire) -> AsyncIterator[str]:
    """Begin many and go on with none; yield the answers."""
    for number in range(TRANSFERS):
        args = summed(b"x", **{ARG_UPLOAD_NAME: f"f{number}"})
        message = request(
            CallType.UPLOAD_BEGIN,
            UPLOAD_SERVICE,
            payload=b"x",
            args=args,
            call_id=f"upload {number}",
        )
        await wire.send(message)
    for _ in range(TRANSFERS - SHARE // 2):
        yield (await wire.receive()).error


@needs_prlimit
async def test_transfers_that_never_go_on(certs: Path, tmp_path: Path) -> None:
    served, stored = tmp_path / "served", tmp_path / "stored"
    served.mkdir()
    stored.mkdir()
    content = os.urandom(16 * MIB)
    (served / "big").write_bytes(content)
    identity = load_identity(certs, "client", None)
    options = ["-serve", str(served), "-readfile", str(stored)]
    with SrvProcess(*options, certs=certs) as srv:
        resource.prlimit(
            srv.process.pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS)
        )
        async with (
            await client_of(srv.address, identity) as good,
            hostile_client(srv.address, identity) as uploader,
            hostile_client(srv.address, identity) as downloader,
        ):
            before = open_count(srv)
            answers = [answer async for answer in open_uploads(uploader)]
            assert set(answers) == {REFUSED}
            downloader.transport.pause_reading()
            for number in range(TRANSFERS):
                message = request(
                    CallType.REQUEST_DOWNLOAD,
                    DOWNLOAD_SERVICE,
                    args={ARG_DOWNLOAD_REQUEST: "big"},
                    call_id=f"download {number}",
                )
                await downloader.send(message)
            await until(lambda: open_count(srv) >= before + 2 * SHARE)
            # Others have theirs, connections that are new as well.
            async with await client_of(srv.address, identity) as newcomer:
                for client in (good, newcomer):
                    target = tmp_path / "copy"
                    await download_file(
                        client,
                        "big",
                        lambda: open_local_sink(str(target), clobber=True),  # noqa: B023
                    )
                    assert target.read_bytes() == content
                    with open_local_source(str(served / "big")) as source:
                        await upload_file(client, source, "copy")
                    assert (stored / "copy").read_bytes() == content
            assert open_count(srv) <= before + 1 + 2 * SHARE
        assert "Traceback" not in srv.stderr()
