"""``samesame``: two programs, each server and client on one UDP port."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.commands.hostile import PATIENCE_S, Outcome, run, started
from tests.helpers import SrvProcess, free_udp_ports, wait_until
from tests.sockets import udp_ports_of
from tests.transport.udp_proxy import Faults, UdpProxy

NETWORK, TRUST, INTERRUPTED = 3, 4, 130


def addresses(host: str = "127.0.0.1") -> list[str]:
    """Return two addresses that nobody uses."""
    shown = f"[{host}]" if ":" in host else host
    return [f"{shown}:{port}" for port in free_udp_ports(2, host)]


class Partner:
    """A running ``samesame`` that listens; threads read what it prints."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._errors: list[str] = []
        self._threads = []
        for stream, lines in (
            (process.stdout, self.lines),
            (process.stderr, self._errors),
        ):
            assert stream is not None
            thread = threading.Thread(target=lines.extend, args=(stream,), daemon=True)
            thread.start()
            self._threads.append(thread)
        self.read_until("samesame: listening on ")
        self.address = self.lines[0].split()[-1]

    def read_until(self, text: str) -> None:
        """Wait until a line on its stdout begins like this."""
        wait_until(
            lambda: any(line.startswith(text) for line in self.lines),
            timeout_s=PATIENCE_S,
            what=lambda: f"{text!r} in {self.lines}, {self._errors}",
        )

    def finish(self) -> Outcome:
        """Wait for its end."""
        code = self.process.wait(PATIENCE_S)
        for thread in self._threads:
            thread.join()
        return Outcome("samesame", code, "".join(self.lines), "".join(self._errors))


@contextlib.contextmanager
def partner(
    home: Path, certs: Path, own: str, other: str, *options: str | Path
) -> Iterator[Partner]:
    """Run one that says that it listens."""
    args = ["-c", own, "-s", other, "-certs", certs, "-wait", "20s", *options]
    with started("samesame", *args, cwd=home) as process:
        yield Partner(process)


def meet(
    home: Path,
    certs: Path,
    options: Sequence[str | Path] = (),
    *,
    swapped_first: bool = False,
) -> list[Outcome]:
    """Run two of them, one after the other has begun to listen."""
    own, other = addresses()
    first, second = (["-r"], []) if swapped_first else ([], ["-r"])
    with partner(home, certs, own, other, *options, *first) as early:
        assert early.address == (other if swapped_first else own)
        with partner(home, certs, own, other, *options, *second) as late:
            return [early.finish(), late.finish()]


def check_calls(outcome: Outcome, count: int) -> None:
    """Check that it has printed all that it sent and received, and the summary."""
    outcome.succeed()
    for number in range(1, count + 1):
        assert f"received call {number}: call {number}: client says" in outcome.stdout
        assert f"reply to call {number}: call {number}: client says" in outcome.stdout
    assert f"call {count + 1}" not in outcome.stdout
    summary = f"samesame: sent {count} calls, received {count}"
    assert outcome.lines[-1] == summary


@pytest.mark.parametrize("swapped_first", [False, True])
def test_either_may_be_first(certs: Path, home: Path, swapped_first: bool) -> None:
    outcomes = meet(home, certs, swapped_first=swapped_first)
    for outcome in outcomes:
        check_calls(outcome, 2)
    # -r swaps the names of the pairs as well: one is "client" to the other's server.
    seen = [
        line.split()[2] for outcome in outcomes for line in outcome.stderr.splitlines()
    ]
    names = ["client@example.org", "node@example.org"]
    if not swapped_first:
        names.reverse()
    assert [name for name in seen if "@" in name] == [
        name for name in names for _ in range(2)
    ]


def test_with_a_pre_shared_key_and_more_calls(certs: Path, home: Path) -> None:
    key = home / "psk"
    key.write_bytes(os.urandom(32))
    key.chmod(0o600)
    for outcome in meet(home, certs, ["-psk", key, "-sends", "5"]):
        check_calls(outcome, 5)


def test_strangers_meet_without_verification_one_listening_everywhere(
    certs: Path, other_certs: Path, home: Path
) -> None:
    ports = free_udp_ports(2)
    own, other = f":{ports[0]}", f"127.0.0.1:{ports[1]}"
    with (
        partner(home, certs, own, other, "-skip-verify") as early,
        partner(
            home, other_certs, other, f"localhost:{ports[0]}", "-skip-verify"
        ) as late,
    ):
        for outcome in (early.finish(), late.finish()):
            check_calls(outcome, 2)
            assert "-skip-verify: the partner is not checked" in outcome.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="sockets are listed in /proc")
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_each_has_one_udp_port(certs: Path, home: Path, host: str) -> None:
    own, other = addresses(host)
    with (
        partner(home, certs, own, other, "-sends", "1000000") as early,
        partner(home, certs, own, other, "-r", "-sends", "1000000") as late,
    ):
        for one in (early, late):
            one.read_until("received call 3:")
            one.read_until("reply to call 3:")
            assert udp_ports_of(one.process.pid) == {one.address}


def test_they_meet_on_a_bad_network(certs: Path, home: Path) -> None:
    ports = free_udp_ports(2)
    faults = Faults(loss=0.08, duplication=0.1, reordering=0.1)
    own, other = (f"127.0.0.1:{port}" for port in ports)
    with (
        UdpProxy(("127.0.0.1", ports[0]), faults, seed=5) as to_own,
        UdpProxy(("127.0.0.1", ports[1]), faults, seed=6) as to_other,
        partner(home, certs, own, to_other.address) as early,
        partner(home, certs, other, to_own.address, "-k", "node") as late,
    ):
        for outcome in (early.finish(), late.finish()):
            check_calls(outcome, 2)
        assert to_own.lost + to_other.lost > 0


# Partners that are not there.


@pytest.mark.parametrize("silent", [False, True])
def test_a_partner_that_never_comes(certs: Path, home: Path, silent: bool) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        other = f"127.0.0.1:{sock.getsockname()[1]}"
        if not silent:
            sock.close()
        options: list[str | Path] = ["-c", "127.0.0.1:0", "-s", other, "-certs", certs]
        error = run("samesame", *options, "-wait", "300ms", cwd=home).error(NETWORK)
    assert other in error
    assert ("no answer" if silent else "nobody listens there") in error


def test_a_partner_that_answers_but_does_not_call(certs: Path, home: Path) -> None:
    with SrvProcess("-q", "-echo", certs=certs) as srv:
        options: list[str | Path] = [
            "-c",
            "127.0.0.1:0",
            "-s",
            srv.address,
            "-certs",
            certs,
        ]
        outcome = run("samesame", *options, "-wait", "300ms", cwd=home)
    assert outcome.error(NETWORK) == (
        "sent 2 calls, but received 0 of 2 from the partner within 0.3 s"
    )
    assert "reply to call 2: call 2:" in outcome.stdout


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_a_partner_that_goes_away_in_between(
    certs: Path, home: Path, sign: signal.Signals
) -> None:
    own, other = addresses()
    many = ["-sends", "1000000", "-wait", "1s"]
    with (
        partner(home, certs, own, other, *many) as early,
        partner(home, certs, own, other, "-r", *many) as late,
    ):
        early.read_until("reply to call 3:")
        late.process.send_signal(sign)
        late.process.wait(PATIENCE_S)
        outcome = early.finish()
    assert outcome.code == NETWORK, outcome.stderr
    assert outcome.lines[-1].startswith("samesame: ")
    assert "Traceback" not in outcome.stderr


def test_a_partner_that_comes_back_is_met(certs: Path, home: Path) -> None:
    """One that was killed before it had made a call leaves no trace."""
    own, other = addresses()
    with partner(home, certs, own, other, "-wait", "15s") as early:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            # It holds the port, and takes what is sent there, but says nothing.
            host, port = other.rsplit(":", 1)
            sock.bind((host, int(port)))
            sock.settimeout(20)
            assert sock.recv(65535)
        with partner(home, certs, own, other, "-r") as late:
            for outcome in (early.finish(), late.finish()):
                check_calls(outcome, 2)


# Partners that are not trusted.


@pytest.mark.parametrize("swapped_first", [False, True])
def test_wrong_certificates_end_both_at_once(
    certs: Path, other_certs: Path, home: Path, swapped_first: bool
) -> None:
    own, other = addresses()
    first, second = (["-r"], []) if swapped_first else ([], ["-r"])
    with (
        partner(home, certs, own, other, *first, "-wait", "60s") as early,
        partner(home, other_certs, own, other, *second, "-wait", "60s") as late,
    ):
        outcomes = [early.finish(), late.finish()]
    for outcome in outcomes:
        assert outcome.code == TRUST, outcome.stderr
        assert "certificate" in outcome.lines[-1]
        assert "Traceback" not in outcome.stderr
        assert "received call" not in outcome.stdout


def test_a_stranger_does_not_end_the_wait(
    certs: Path, other_certs: Path, home: Path
) -> None:
    """Only the partner's own address tells that there is no trust."""
    own, other = addresses()
    with partner(home, certs, own, other) as early:
        stranger: list[str | Path] = ["-q", "-s", own, "-certs", other_certs]
        assert run("cli", *stranger, cwd=home).code == TRUST
        wait_until(lambda: early.process.poll() is None)
        with partner(home, certs, own, other, "-r") as late:
            for outcome in (early.finish(), late.finish()):
                check_calls(outcome, 2)


# Ends.


def test_an_interrupt_ends_it_in_order(certs: Path, home: Path) -> None:
    own, other = addresses()
    with partner(home, certs, own, other) as alone:
        alone.process.send_signal(signal.SIGINT)
        assert alone.finish().error(INTERRUPTED) == "interrupted"


def test_an_address_that_is_in_use_is_told(certs: Path, home: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        own = f"127.0.0.1:{sock.getsockname()[1]}"
        options: list[str | Path] = ["-c", own, "-s", "127.0.0.1:1", "-certs", certs]
        error = run("samesame", *options, cwd=home).error(NETWORK)
    assert error == f"cannot listen on {own}: the port is in use"
