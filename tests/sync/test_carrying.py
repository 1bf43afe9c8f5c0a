"""What counts as progress of a sync, and what a later attempt begins with."""

import itertools
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from rpc25519_tools.sync.carrying import LEAST_STORED, Attempts, Mark, Placed
from rpc25519_tools.sync.options import SyncOptions
from rpc25519_tools.sync.records import Totals
from rpc25519_tools.sync.source import local_source
from rpc25519_tools.sync.walk import Walk

PLAIN = SyncOptions(recursive=True)
DELETING = SyncOptions(recursive=True, delete=True, max_delete=5)


@dataclass(slots=True)
class Over:
    """One side of an attempt that is over."""

    frontier: Mark | None = None
    total_bytes: int = 10 << 20
    stored: int = 0
    placed: Placed = field(default_factory=Placed)
    removed: int = 0


def test_a_place_further_on_is_progress_and_the_next_beginning() -> None:
    assert Attempts(PLAIN).start is None
    attempts = Attempts(PLAIN)
    far, near = Mark((b"d", b"f"), 5, 50), Mark((b"a",), 1, 10)
    assert attempts.note(Over(near))
    assert attempts.start == near
    assert attempts.note(Over(far))
    assert not attempts.note(Over(far))
    assert not attempts.note(Over(near))
    assert not attempts.note(Over())
    assert attempts.start == far


def test_who_has_to_hear_of_everything_begins_at_the_beginning() -> None:
    for options in (
        DELETING,
        SyncOptions(hard_links=True),
        SyncOptions(dry_run=True),
    ):
        attempts = Attempts(options)
        assert attempts.note(Over(Mark((b"a",))))
        assert not attempts.note(Over(Mark((b"a",))))
        assert attempts.start is None


def test_stored_bytes_are_progress_until_all_could_be_there() -> None:
    attempts = Attempts(PLAIN)
    attempts.note(Over(Mark((b"a",))))
    assert not attempts.note(Over(Mark((b"a",)), stored=LEAST_STORED - 1))
    for _ in range(19):
        assert attempts.note(Over(Mark((b"a",)), stored=1 << 20))
    assert attempts.note(Over(None, stored=1 << 20))
    assert not attempts.note(Over(Mark((b"a",)), stored=1 << 20))
    # What comes after another file is another story.
    assert attempts.note(Over(Mark((b"b",))))
    assert attempts.note(Over(Mark((b"b",)), stored=1 << 20))


def test_removals_of_all_attempts_count() -> None:
    attempts = Attempts(DELETING)
    assert attempts.note(Over(removed=2, placed=Placed(7, 1)))
    assert attempts.options.max_delete == 3
    assert attempts.note(Over(removed=9, placed=Placed(8, 2)))
    assert attempts.options.max_delete == 0
    assert attempts.whole(Totals(1, 2, 3, 4)) == Totals(12, 5, 18, 4)
    assert Attempts(PLAIN).options is PLAIN


def test_a_dry_run_removes_nothing() -> None:
    options = SyncOptions(recursive=True, delete=True, max_delete=5, dry_run=True)
    attempts = Attempts(options)
    assert not attempts.note(Over(removed=2))
    assert attempts.options == options
    assert attempts.whole(Totals(1)) == Totals(1)


names = st.sampled_from(["a", "b", "b.c", "c", "-", "z"])


@given(st.sets(st.lists(names, min_size=1, max_size=3).map(tuple), max_size=15))
def test_the_order_is_that_of_the_walk(paths: set[tuple[str, ...]]) -> None:
    with tempfile.TemporaryDirectory() as top:
        for path in paths:
            Path(top, *path).mkdir(parents=True, exist_ok=True)
        source = local_source([os.fsencode(f"{top}/")])
        marks: list[Mark] = []
        for batch in Walk(source, PLAIN).batches():
            marks += [item.mark for item in batch.items]
    for one, two in itertools.pairwise(marks):
        assert two.is_after(one)
        assert not one.is_after(two)
        assert not one.is_after(one)
