"""A forked child never shares a connection, and disturbs nothing."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from rpc25519_tools.blocking import BlockingClient
from tests.blocking import fork_programs as programs
from tests.blocking.services import Program, Served, config_of, run_program, serving
from tests.helpers import wait_until


@pytest.fixture
def served(certs: Path) -> Iterator[Served]:
    with serving(certs) as served:
        yield served


def test_a_child_connects_anew_and_the_parent_goes_on(served: Served) -> None:
    with Program(programs.connections, served.certs, served.server.address) as both:
        theirs = both.line()
        assert len(served.services.addresses) == 2
        assert served.services.addresses[1] == theirs
        assert len(served.services.open) == 2
        both.tell()
        assert both.rest() == (0, "", "")
    assert len(served.services.addresses) == 2
    wait_until(lambda: not served.services.open)


def test_every_generation_connects_by_itself(served: Served) -> None:
    code, said, errors = run_program(
        programs.descent, served.certs, served.server.address
    )
    assert (code, errors) == (0, "")
    lines = dict(line.split() for line in reversed(said.splitlines()))
    assert [lines[str(n)] for n in range(3)] == served.services.addresses[:3]
    assert len(served.services.addresses) == 4


@pytest.mark.parametrize(
    "program",
    [
        programs.leftovers,
        programs.busy_threads,
        programs.workers,
        programs.closed_before,
        programs.no_loop,
        programs.over_quic,
    ],
)
def test_parent_and_child_are_all_right(program: object, served: Served) -> None:
    assert callable(program)
    assert run_program(program, served.certs, served.server.address) == (0, "", "")
    wait_until(lambda: not served.services.open)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (programs.several_forking_threads, "joined"),
        (programs.handlers_that_fork, "handled"),
        (programs.busy_loop, "not blocked"),
    ],
)
def test_forks_in_odd_places(program: object, said: str, served: Served) -> None:
    assert callable(program)
    assert run_program(program, served.certs, served.server.address) == (0, said, "")


def test_the_parents_end_is_seen_while_the_child_lives(served: Served) -> None:
    with Program(programs.closing, served.certs, served.server.address) as both:
        assert both.line() == "ready"
        assert len(served.services.open) == 1
        both.process.kill()
        wait_until(lambda: not served.services.open)


def test_a_child_may_end_in_the_ordinary_way(certs: Path) -> None:
    code, said, errors = run_program(programs.ordinary_end, certs, "")
    assert (code, errors) == (0, "")
    assert said.splitlines() == [
        "child ends",
        "child ends",
        "tidied by parent",
        "parent ends",
    ]


def test_a_child_holds_nothing_of_a_server(certs: Path) -> None:
    with Program(programs.server_process, certs, "") as both:
        client = BlockingClient(config_of(certs, both.line()))
        both.tell()
        assert both.line() == "child is ready"
        assert client.call("echo", b"x").payload == b"x"
        both.tell()
        assert both.line() == "served again, b'x'"
        wait_until(lambda: client.is_down)
        assert both.rest() == (0, "", "")
        client.close()


def test_a_killed_server_is_gone_while_its_child_lives(certs: Path) -> None:
    with Program(programs.server_is_killed, certs, "") as both:
        client = BlockingClient(config_of(certs, both.line()))
        both.tell()
        assert both.line() == "ready"
        assert not client.is_down
        both.process.kill()
        wait_until(lambda: client.is_down)
        client.close()
