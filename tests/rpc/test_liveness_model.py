"""Liveness by itself, against a simple model with a clock of its own."""

from dataclasses import dataclass, field, replace
from typing import cast

from hypothesis import given, settings
from hypothesis import strategies as st

from rpc25519_tools.config import Config, parse_address
from rpc25519_tools.errors import DeadlineError
from rpc25519_tools.rpc.driver import Driver
from rpc25519_tools.rpc.liveness import Liveness
from tests.rpc.timing import FakeLoop


@dataclass
class FakeDriver:
    """What Liveness sees of a connection."""

    loop: FakeLoop
    last_sent_s: float = 1000.0
    last_received_s: float = 1000.0
    is_reading: bool = True
    unsent_len: int = 0
    aborted: list[tuple[float, str]] = field(default_factory=list)

    @property
    def sent_len(self) -> int:
        return -self.unsent_len  # only its growth counts

    def abort(self, error: Exception) -> None:
        assert isinstance(error, DeadlineError)
        self.aborted.append((self.loop.now_s, str(error)))


@dataclass
class Watched:
    """A connection that Liveness watches, and when it sent keep-alives."""

    config: Config
    busy: bool = False
    kept: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.loop = FakeLoop()
        self.driver = FakeDriver(self.loop)
        with self.loop.patched("liveness"):
            self.liveness = Liveness(
                cast("Driver", self.driver),
                self.config,
                send_keepalive=lambda: self.kept.append(self.loop.now_s),
                is_busy=lambda: self.busy,
            )

    def fault(self) -> str:
        return self.driver.aborted[0][1] if self.driver.aborted else ""


def config(**settings: float) -> Config:
    return replace(Config(address=parse_address("127.0.0.1:1")), **settings)  # type: ignore[arg-type]


_INTERVAL_S = 2.0
_SLACK_S = 1e-6


class Model:
    """When things last happened to a connection.

    Attributes:
        sent_s: something was to be sent.
        out_s: something was sent or waited to be sent.
        heard_s: something came, or could not come.
        silent_s: as heard_s; but pauses that are too short to be noticed do not count.
        paused_s: reading paused.
    """

    def __init__(self, watched: Watched, read_timeout_s: float) -> None:
        self.watched = watched
        self.step_s = min(_INTERVAL_S, read_timeout_s or _INTERVAL_S) / 4
        self.sent_s = self.out_s = watched.loop.now_s
        self.heard_s = self.silent_s = self.paused_s = watched.loop.now_s

    def advance(self, delay_s: float) -> None:
        """Let time pass; check the keep-alives that are sent, or not, meanwhile."""
        loop, driver, kept = self.watched.loop, self.watched.driver, self.watched.kept
        seen = len(kept)
        loop.advance(loop.now_s + delay_s)
        for kept_s in kept[seen:]:
            assert driver.unsent_len == 0
            assert kept_s - self.sent_s >= _INTERVAL_S - self.step_s - _SLACK_S
            assert kept_s - self.out_s <= _INTERVAL_S + self.step_s + _SLACK_S
            self.sent_s = self.out_s = kept_s
        if driver.unsent_len:
            self.out_s = loop.now_s
        elif not driver.aborted:
            assert loop.now_s - self.out_s <= _INTERVAL_S + self.step_s + _SLACK_S
        if not driver.is_reading:
            self.heard_s = loop.now_s
            if loop.now_s - self.paused_s >= self.step_s:
                self.silent_s = loop.now_s

    def act(self, what: str) -> None:
        """Do one of _ACTIONS to the connection."""
        driver, now_s = self.watched.driver, self.watched.loop.now_s
        match what:
            case "send":
                self.sent_s = self.out_s = driver.last_sent_s = now_s
            case "queue":
                self.sent_s = driver.last_sent_s = now_s
                driver.unsent_len += 10
            case "take":
                driver.unsent_len = 0
            case "pause" if driver.is_reading:
                driver.is_reading = False
                self.paused_s = now_s
            case "resume":
                driver.is_reading = True
            case "receive" if driver.is_reading:
                self.heard_s = self.silent_s = driver.last_received_s = now_s
            case _:
                pass


_ACTIONS = st.sampled_from(["send", "receive", "pause", "resume", "queue", "take"])


@settings(deadline=None)
@given(
    steps=st.lists(st.tuples(_ACTIONS, st.floats(0.01, 3)), max_size=40),
    read_timeout_s=st.sampled_from([0.0, 1.0, 5.0]),
)
def test_keep_alives_and_the_end_come_at_the_right_times(
    steps: list[tuple[str, float]], read_timeout_s: float
) -> None:
    watched = Watched(config(keepalive_s=_INTERVAL_S, read_timeout_s=read_timeout_s))
    loop, driver = watched.loop, watched.driver
    model = Model(watched, read_timeout_s)
    for what, delay_s in steps:
        model.advance(delay_s)
        if driver.aborted:
            ((when_s, text),) = driver.aborted
            assert text == f"nothing was received for {read_timeout_s:g} s"
            assert driver.is_reading
            assert when_s - model.silent_s >= read_timeout_s - model.step_s - _SLACK_S
            assert not loop.live_timers()
            return
        if read_timeout_s:
            patience_s = read_timeout_s + 2 * model.step_s
            assert loop.now_s - model.heard_s <= patience_s + _SLACK_S
        model.act(what)
    assert len(loop.live_timers()) == 1
    watched.liveness.stop()
    assert not loop.live_timers()


def test_reading_again_after_a_pause_gets_the_whole_time_limit() -> None:
    watched = Watched(config(read_timeout_s=1))
    watched.driver.is_reading = False
    watched.loop.advance(1010)
    watched.driver.is_reading = True
    watched.loop.advance(1010.7)
    assert not watched.fault()
    watched.loop.advance(1011.3)
    assert watched.fault() == "nothing was received for 1 s"


def test_the_time_limit_for_writing_begins_with_something_to_send() -> None:
    watched = Watched(config(write_timeout_s=1))
    watched.loop.advance(1010)
    watched.driver.unsent_len = 5
    watched.loop.advance(1010.9)
    assert not watched.fault()
    watched.driver.unsent_len = 4  # the peer took one
    watched.loop.advance(1011.9)
    assert not watched.fault()
    watched.loop.advance(1012.5)
    assert watched.fault() == "the peer took nothing for 1 s"


def test_being_idle_counts_what_moves_and_what_is_worked_on() -> None:
    watched = Watched(config(idle_timeout_s=1, keepalive_s=0.5))
    for now_s in range(1001, 1010):
        watched.driver.last_received_s = now_s - 0.4
        watched.loop.advance(now_s)
    assert not watched.fault()
    watched.busy = True
    watched.loop.advance(1020)
    assert not watched.fault()
    watched.busy = False
    watched.loop.advance(1020.8)
    assert not watched.fault()
    watched.loop.advance(1021.5)
    assert watched.fault() == "nothing moved for 1 s"
    assert len(watched.kept) > 20


def test_no_timer_runs_where_no_interval_is_set() -> None:
    assert not Watched(config()).loop.live_timers()
