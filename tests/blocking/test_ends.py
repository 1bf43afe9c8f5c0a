"""Ctrl-C ends a call and nothing else; the end of a program ends all, quietly."""

import time
from pathlib import Path

from tests.blocking import end_programs as programs
from tests.blocking.services import Program, run_program, serving
from tests.helpers import wait_until


def test_ctrl_c_cancels_what_it_interrupts(certs: Path) -> None:
    with (
        serving(certs) as served,
        Program(programs.interrupted, certs, served.server.address) as program,
    ):
        services = served.services
        assert program.line() == "waiting"
        wait_until(lambda: services.waiting == 2)
        program.interrupt()
        assert program.line() == "interrupted, b'x'"
        wait_until(lambda: services.cancelled == 1)
        for _ in range(3):
            assert program.line() == "waiting"
            program.interrupt()
            assert program.line() == "interrupted, b'x'"
        wait_until(lambda: services.cancelled == 2)
        assert program.rest() == (0, "", "")
        assert len(services.addresses) == 1


def test_a_program_may_end_with_everything_open(certs: Path) -> None:
    with serving(certs) as served:
        with Program(programs.everything_open, certs, served.server.address) as program:
            assert program.line() == "leaving"
            start_s = time.monotonic()
            assert program.rest() == (0, "", "")
            assert time.monotonic() - start_s < 2
        wait_until(lambda: not served.services.open)


def test_functions_of_atexit_may_call(certs: Path) -> None:
    with serving(certs) as served:
        code, said, errors = run_program(programs.at_exit, certs, served.server.address)
    assert (code, errors) == (0, "")
    assert said.splitlines() == ["still there", *["the program is ending"] * 2]


def test_an_exception_is_all_that_is_shown(certs: Path) -> None:
    with serving(certs) as served:
        code, said, errors = run_program(programs.fails, certs, served.server.address)
    assert (code, said) == (1, "")
    assert errors.count("Traceback") == 1
    assert "NoSuchServiceError" in errors.splitlines()[-1]


def test_what_is_queued_is_sent_before_the_end(certs: Path) -> None:
    with serving(certs, "tcp") as served:
        address = served.server.address
        assert run_program(programs.much_to_send, certs, address) == (0, "", "")
        wait_until(lambda: served.services.taken_len == 30_000_000)


def test_a_server_that_takes_nothing_does_not_hold_up_the_end(certs: Path) -> None:
    start_s = time.monotonic()
    assert run_program(programs.deaf_server, certs, "") == (0, "", "")
    assert time.monotonic() - start_s < 5


def test_nothing_is_started_before_it_is_needed() -> None:
    assert run_program(programs.nothing_started) == (4, "", "")
