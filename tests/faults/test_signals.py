"""What programs do when they are told to stop, or nobody reads what they say."""

import os
import signal
import socket
from pathlib import Path

import pytest

from rpc25519_tools.config import parse_address
from tests.commands import hostile
from tests.commands.hostile import (
    Valve,
    finish,
    names_in,
    wait_for_partial,
)
from tests.faults.frames import ONE
from tests.faults.programs import (
    AREA,
    BIG,
    OLD,
    SOME,
    Cli,
    srv_of,
    wait_for_names,
)
from tests.helpers import SrvProcess, wait_until


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("way", ["up", "down"])
def test_server_that_is_stopped_lets_a_transfer_end(
    certs: Path, served: Path, home: Path, cli: Cli, number: int, way: str
) -> None:
    source, target = (home, served) if way == "up" else (served, home)
    (source / "f").write_bytes(BIG)
    option = "-sendfile" if way == "up" else "-download"
    with (
        srv_of(certs, served, "--grace", "30s") as srv,
        Valve(srv.address, **{way: SOME}) as valve,
        cli.start(valve.address, option, "f") as process,
    ):
        wait_for_partial(target)
        srv.process.send_signal(number)
        wait_until(lambda: refuses(srv.address), what="the end of listening")
        valve.open()
        finish(process).succeed()
        assert srv.process.wait(hostile.PATIENCE_S) == 0
        assert "Traceback" not in srv.stderr()
    assert (target / "f").read_bytes() == BIG
    assert names_in(target) == ["f"]


def refuses(address: str) -> bool:
    """Tell whether nobody listens there any more."""
    where = parse_address(address)
    try:
        socket.create_connection((where.host, where.port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        pass  # it was just being closed: ask again
    return False


@pytest.mark.parametrize("way", ["up", "down"])
def test_server_that_is_stopped_ends_a_transfer_that_takes_too_long(
    certs: Path, served: Path, home: Path, cli: Cli, way: str
) -> None:
    source, target = (home, served) if way == "up" else (served, home)
    (source / "f").write_bytes(BIG)
    (target / "f").write_bytes(OLD)
    option = "-sendfile" if way == "up" else "-download"
    with (
        srv_of(certs, served, "--grace", "0.1s") as srv,
        Valve(srv.address, **{way: SOME}) as valve,
        cli.start(valve.address, option, "f") as process,
    ):
        wait_for_partial(target)
        srv.process.terminate()
        srv.wait_for(" failed: ")
        valve.open()
        outcome = finish(process)
        assert srv.process.wait(hostile.PATIENCE_S) == 0
        assert "Traceback" not in srv.stderr()
    assert outcome.error(outcome.code)
    assert outcome.code in (1, 3)
    assert (target / "f").read_bytes() == OLD
    assert names_in(target) == [AREA, "f"]


def test_second_signal_ends_the_grace(
    certs: Path, served: Path, home: Path, cli: Cli
) -> None:
    (home / "f").write_bytes(BIG)
    with (
        srv_of(certs, served, "--grace", "1h") as srv,
        Valve(srv.address, up=SOME) as valve,
        cli.start(valve.address, "-sendfile", "f") as process,
    ):
        wait_for_partial(served)
        srv.process.terminate()
        wait_until(lambda: refuses(srv.address), what="the end of listening")
        srv.process.terminate()
        srv.wait_for(" failed: ")
        valve.open()
        outcome = finish(process)
        assert outcome.error(outcome.code)
        assert srv.process.wait(hostile.PATIENCE_S) == 0
    assert names_in(served) == [AREA]


def test_third_signal_does_not_wait_for_a_stalled_line(
    certs: Path, served: Path, home: Path, cli: Cli
) -> None:
    (served / "f").write_bytes(BIG)
    with (
        srv_of(certs, served, "--grace", "1h") as srv,
        Valve(srv.address, down=SOME) as valve,
        cli.start(valve.address, "-download", "f") as process,
    ):
        wait_for_partial(home)
        srv.process.terminate()
        wait_until(lambda: refuses(srv.address), what="the end of listening")
        srv.process.terminate()
        srv.wait_for(" failed: ")
        srv.process.terminate()
        assert srv.process.wait(4) == 0, "it waits 15 s for a line that stalls"
        assert "Traceback" not in srv.stderr()
        valve.cut()
        assert finish(process).error(3)
    assert names_in(home) == [AREA]


def test_server_stops_after_its_time(certs: Path, served: Path) -> None:
    with srv_of(certs, served, "-sec", "0.2") as srv:
        assert srv.process.wait(hostile.PATIENCE_S) == 0


@pytest.mark.parametrize("way", ["up", "down"])
def test_interrupted_client_leaves_nothing(
    srv: SrvProcess, served: Path, home: Path, cli: Cli, way: str
) -> None:
    source, target = (home, served) if way == "up" else (served, home)
    (source / "f").write_bytes(BIG)
    (target / "f").write_bytes(OLD)
    option = "-sendfile" if way == "up" else "-download"
    with (
        Valve(srv.address, **{way: SOME}) as valve,
        cli.start(valve.address, option, "f") as process,
    ):
        wait_for_partial(target)
        process.send_signal(signal.SIGINT)
        if way == "down":
            wait_for_names(target, "f")
        valve.open()
        assert finish(process).error(130) == "interrupted"
    assert (target / "f").read_bytes() == OLD
    if way == "up":
        # For a server that may look like a line that breaks, and it keeps what came.
        cli(srv.address, option, "f").succeed()
    wait_for_names(target, "f")


def test_interrupted_client_does_not_wait_for_a_stalled_line(
    srv: SrvProcess, served: Path, home: Path, cli: Cli
) -> None:
    (home / "f").write_bytes(BIG)
    with (
        Valve(srv.address, up=SOME) as valve,
        cli.start(valve.address, "-sendfile", "f") as process,
    ):
        wait_for_partial(served)
        valve.wait_held()
        process.send_signal(signal.SIGINT)
        assert finish(process).error(130) == "interrupted"
    wait_for_names(served, AREA)


def test_second_interrupt_ends_the_client_at_once(
    srv: SrvProcess, served: Path, home: Path, cli: Cli
) -> None:
    (home / "f").write_bytes(BIG)
    with (
        Valve(srv.address, up=SOME) as valve,
        cli.start(valve.address, "-sendfile", "f") as process,
    ):
        wait_for_partial(served)
        valve.wait_held()
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        assert finish(process).error(130) == "interrupted"
    wait_for_names(served, AREA)


def test_client_can_be_interrupted_while_a_fifo_has_no_other_end(
    srv: SrvProcess, home: Path, cli: Cli, served: Path
) -> None:
    os.mkfifo(home / "fifo")
    (served / "f").write_bytes(ONE)
    for args in (["-sendfile", "fifo"], ["-download", "f", "-o", "fifo"]):
        seen = srv.stderr().count(" connected")
        with cli.start(srv.address, *args) as process:
            wait_until(lambda: srv.stderr().count(" connected") > seen)  # noqa: B023
            process.send_signal(signal.SIGINT)
            assert finish(process).error(130) == "interrupted"


def test_reader_of_standard_output_goes_away(
    srv: SrvProcess, served: Path, home: Path, cli: Cli
) -> None:
    (served / "f").write_bytes(BIG)
    with cli.start(srv.address, "-download", "f", "-o", "-") as process:
        assert process.stdout is not None
        os.read(process.stdout.fileno(), 1)
        process.stdout.close()
        assert process.stderr is not None
        stderr = process.stderr.read()
        assert (process.wait(hostile.PATIENCE_S), stderr) == (141, "")
    cli(srv.address).succeed()
    assert names_in(home) == []
