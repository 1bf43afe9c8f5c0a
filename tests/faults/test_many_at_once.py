"""Two uploads of one name, two hundred clients, ten programs at once."""

import asyncio
import contextlib
import os
from pathlib import Path

from rpc25519_tools.files.atomic import open_local_sink
from rpc25519_tools.files.download import download_file
from rpc25519_tools.files.source import open_local_source
from rpc25519_tools.files.upload import upload_file
from rpc25519_tools.identity.store import LoadedIdentity
from tests.commands import hostile
from tests.commands.hostile import (
    MIB,
    Valve,
    finish,
    names_in,
    partials,
)
from tests.faults.frames import WHOLE
from tests.faults.programs import (
    SOME,
    Cli,
    connected,
)
from tests.helpers import SrvProcess, wait_until


def test_two_uploads_of_one_name_at_once(
    srv: SrvProcess, served: Path, home: Path, cli: Cli
) -> None:
    contents = [os.urandom(4 * MIB), os.urandom(3 * MIB)]
    for number, content in enumerate(contents):
        (home / f"{number}").write_bytes(content)
    with (
        Valve(srv.address, up=SOME) as valve,
        cli.start(valve.address, "-sendfile", "0", "--to", "f") as first,
        cli.start(valve.address, "-sendfile", "1", "--to", "f") as second,
    ):
        wait_until(
            lambda: [p.stat().st_size > 0 for p in partials(served)] == [True] * 2,
            timeout_s=hostile.PATIENCE_S,
            what="two partial files",
        )
        valve.open()
        finish(first).succeed()
        finish(second).succeed()
    assert names_in(served) == ["f"]
    assert (served / "f").read_bytes() in contents


def test_two_hundred_clients_at_once(
    srv: SrvProcess,
    served: Path,
    home: Path,
    cli: Cli,
    client_identity: LoadedIdentity,
) -> None:
    count = 200
    for number in range(count):
        (served / f"down-{number}").write_bytes(b"%d" % number * 5000)
        (home / f"up-{number}").write_bytes(b"%d" % number * 7000)
    together = asyncio.Barrier(count)
    logged = len(srv.stderr())

    async def one(number: int) -> None:
        async with await connected(srv.address, client_identity) as client:
            await together.wait()  # all are connected, and begin now
            target = str(home / f"down-{number}")
            await download_file(
                client,
                f"down-{number}",
                lambda: open_local_sink(target, clobber=False, fsync=False),
            )
            with open_local_source(str(home / f"up-{number}")) as source:
                await upload_file(client, source, f"up-{number}", clobber=False)

    async def everybody() -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(one(number))

    asyncio.run(everybody())
    for number in range(count):
        down, up = b"%d" % number * 5000, b"%d" % number * 7000
        assert (home / f"down-{number}").read_bytes() == down
        assert (served / f"up-{number}").read_bytes() == up
    assert not partials(served)
    assert not partials(home)
    log = srv.stderr()[logged:]
    assert log.count(" upload 'up-") == count
    assert log.count(" ok\n") == 2 * count


def test_ten_programs_at_once(
    srv: SrvProcess, served: Path, home: Path, cli: Cli
) -> None:
    (served / "down").write_bytes(WHOLE)
    (home / "up").write_bytes(WHOLE)
    with contextlib.ExitStack() as stack:
        programs = [
            stack.enter_context(cli.start(srv.address, *args))
            for number in range(5)
            for args in (
                ("-download", "down", "-o", f"down-{number}"),
                ("-sendfile", "up", "--to", f"up-{number}"),
            )
        ]
        for program in programs:
            finish(program).succeed()
    for number in range(5):
        assert (home / f"down-{number}").read_bytes() == WHOLE
        assert (served / f"up-{number}").read_bytes() == WHOLE
