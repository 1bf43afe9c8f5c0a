"""Files that new ones may be made of are found quickly, in little memory."""

import os
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpc25519_tools.files.jail import is_partial_name
from rpc25519_tools.sync import basis, noted
from rpc25519_tools.sync.basis import SEARCHED_FROM, Candidates
from rpc25519_tools.sync.noted import NotedFiles
from rpc25519_tools.sync.tree import Parts, Tree

pytestmark = pytest.mark.usefixtures("no_leaked_fds")

DOCS = Path(__file__).parents[2] / "docs" / "sync.md"
SIZE = SEARCHED_FROM
#: Neither of which 64 bits have room for.
TIMES = (0, 1, -1, 1_700_000_000_123_456_789, 1 << 63, -(1 << 63) - 1, 1 << 70)
Known = tuple[Parts, int, int]

components = st.sampled_from([b"a", b"b", b"a b", b"\n", b"\xff", b"x" * 255])
paths = st.lists(components, min_size=1, max_size=4).map(tuple)
sizes = st.integers(SIZE, SIZE + 9) | st.integers(SIZE, (1 << 63) - 1)
files = st.lists(st.tuples(paths, sizes, st.sampled_from(TIMES)), max_size=40)


def candidates(top: Path) -> Candidates:
    return Candidates(Tree.local(os.fsencode(top)))


def listed(top: Path) -> Candidates:
    """Return candidates that have looked at what is there."""
    found = candidates(top)
    assert found.sure((b"none",), SIZE, -5) == []
    return found


def large(path: Path, size: int = SIZE, time_ns: int = 5) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.truncate(path, size)
    os.utime(path, ns=(time_ns, time_ns))


# What is noted is found.


@given(known=files, asked=st.tuples(paths, sizes, st.sampled_from(TIMES)))
def test_files_are_found_by_all_that_is_known(known: list[Known], asked: Known) -> None:
    notes = NotedFiles()
    half = len(known) // 2
    for one in known[:half]:
        notes.note(*one)
    notes.nearest_length(SIZE)  # from now on it is kept up to date
    for one in known[half:]:
        notes.note(*one)
    assert len(notes) == len(known)
    known.reverse()  # the newest first
    for path, size, time_ns in [*known, asked]:
        same = [one for one in known if one[1] == size]
        assert list(notes.of_length(size)) == [one[0] for one in same]
        of_time = [one[0] for one in same if not (one[2] - time_ns) % (1 << 64)]
        assert list(notes.of_time(size, time_ns)) == of_time
        of_name = [o[0] for o in known if o[0][-1] == path[-1] and o[1] >= size // 2]
        assert list(notes.of_name(path[-1], size // 2)) == of_name
        nearest = notes.nearest_length(size)
        distances = [abs(one[1] - size) for one in known]
        assert (nearest is None) == (not known)
        assert nearest is None or abs(nearest - size) == min(distances)


def test_moved_files_are_found_before_others(tmp_path: Path) -> None:
    for number in range(10):
        large(tmp_path / f"dir/{number}", time_ns=number)
    found = candidates(tmp_path)
    assert found.guesses((b"new",), SIZE, 7)[0] == (b"dir", b"7")
    assert found.sure((b"old",), SIZE, 3) == [(b"dir", b"3")]
    assert found.sure((b"dir", b"3"), SIZE, 3) == [], "it is the file itself"
    assert found.sure((b"old",), SIZE, 99) == []
    assert found.has_length(SIZE)
    assert not found.has_length(SIZE + 1)


def test_names_and_similar_lengths_come_after_lengths(tmp_path: Path) -> None:
    large(tmp_path / "a/same", 5 * SIZE)
    large(tmp_path / "b/name", 4 * SIZE)
    large(tmp_path / "c/name", SIZE)
    large(tmp_path / "d/name", SIZE - 1)
    found = candidates(tmp_path)
    same, named = (b"a", b"same"), (b"b", b"name")
    assert found.guesses((b"x", b"name"), 5 * SIZE, 1) == [same, named]
    assert found.guesses((b"x", b"new"), 5 * SIZE + 9, 1) == [same]
    assert found.guesses((b"x", b"new"), 11 * SIZE, 1) == []


def test_what_has_come_into_place_is_found(tmp_path: Path) -> None:
    found = candidates(tmp_path)
    found.add((b"early",), SIZE, 1)  # it will be listed
    assert found.guesses((b"new",), SIZE, 1) == []
    found.add((b"dir", b"late"), SIZE, 1)
    found.add((b"dir", b"small"), SIZE - 1, 1)
    assert found.guesses((b"new",), SIZE, 1) == [(b"dir", b"late")]


def test_guesses_that_are_of_no_use_end_but_sure_ones_do_not(tmp_path: Path) -> None:
    for number in range(3):
        large(tmp_path / f"{number}", time_ns=number)
    found = candidates(tmp_path)
    for _ in range(basis._PATIENCE):
        assert len(found.guesses((b"new",), SIZE, 9)) == 3
        found.learn(useful=False)
    assert found.guesses((b"new",), SIZE, 9) == []
    assert found.guesses((b"new",), SIZE, 2) == [(b"2",)]


# Memory.


def test_a_noted_file_takes_little_memory() -> None:
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        notes = NotedFiles()
        empty_len = tracemalloc.get_traced_memory()[0] - before
        path_len = 0
        for number in range(20_000):
            path = (b"some", b"dir%d" % (number // 100), b"file%08d" % number)
            notes.note(path, SIZE + number, number)
            path_len += len(noted.join(path))
        notes.nearest_length(SIZE)
        taken = tracemalloc.get_traced_memory()[0] - before - empty_len
    finally:
        tracemalloc.stop()
    assert empty_len < 1 << 20
    assert taken < 50 * 20_000 + 1.2 * path_len
    most = 50 * noted.MAX_NOTED + 1.2 * noted._MAX_PATHS_LEN + empty_len
    assert most < 16 << 20


def test_no_more_files_are_noted_than_there_is_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noted, "MAX_NOTED", 50)
    for number in range(40):
        large(tmp_path / f"{number}", SIZE + number)
    found = listed(tmp_path)
    for number in range(40, 1000):
        found.add((b"%d" % number,), SIZE + number, 5)
    assert [found.has_length(SIZE + n) for n in (0, 39, 49, 50, 999)] == [
        True,
        True,
        True,
        False,
        False,
    ]


def test_no_more_is_kept_of_paths_than_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(noted, "_MAX_PATHS_LEN", 1000)
    notes = NotedFiles()
    for number in range(20):
        notes.note((b"d" * 99, b"%01000d" % number), SIZE, 1)
    assert len(notes) == 0
    for number in range(20):
        notes.note((b"d" * 99, b"%0100d" % number), SIZE, 1)
    assert len(notes) == 5


# Time.


def test_to_find_one_of_many_that_are_alike_takes_few_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: Counter[str] = Counter()
    find = noted._Chains.find

    def counted(self: noted._Chains, key: object) -> Iterator[int]:
        for one in find(self, key):
            steps["all"] += 1
            yield one

    monkeypatch.setattr(noted._Chains, "find", counted)
    found = listed(tmp_path)
    for number in range(5000):
        found.add((b"dir", b"%d" % number), SIZE, number)
    for number in range(5000):
        steps.clear()
        assert len(found.guesses((b"new",), SIZE, number)) == 3
        assert found.sure((b"new",), SIZE, number) == [(b"dir", b"%d" % number)]
        assert found.has_length(SIZE)
        assert steps["all"] < 30
    for number in range(5000):
        found.add((b"%d" % number, b"name"), SIZE, number)
    steps.clear()
    assert found.guesses((b"new", b"name"), 9 * SIZE, 1) == []
    assert steps["all"] <= noted._MAX_STEPS


def test_keys_that_fall_together_do_not_cost_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(noted, "_BUCKETS", 1)
    notes = NotedFiles()
    for number in range(3000):
        notes.note((b"%d" % number,), SIZE + number, 1)
    assert list(notes.of_length(SIZE + 2999)) == [(b"2999",)]
    assert list(notes.of_length(SIZE)) == [], "too far away"
    assert len(list(notes._by_size.find((SIZE,)))) == noted._MAX_STEPS


# What is looked at.


def looks(found: Candidates, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Note the names that are looked at."""
    seen: list[bytes] = []

    def noting(name: bytes) -> bool:
        seen.append(name)
        return is_partial_name(name)

    monkeypatch.setattr(basis, "is_partial_name", noting)
    found.sure((b"none",), SIZE, -5)
    return seen


@pytest.mark.parametrize("most", [5, 20, 1000])
def test_no_more_entries_are_looked_at_than_so_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(basis, "_MAX_LOOKED", most)
    large(tmp_path / "large")
    for number in range(6):
        large(tmp_path / f"{number}/below/large", SIZE + 1 + number)
        for small in range(8):
            (tmp_path / f"{number}/{small}").touch()
    found = candidates(tmp_path)
    seen = looks(found, monkeypatch)
    assert len(seen) == min(most, 7 + 6 * 9 + 6)
    assert found.has_length(SIZE) or most < 7, "what lies at the top comes first"
    assert all(found.has_length(SIZE + n) for n in range(7)) == (most == 1000)


def test_directories_that_there_is_no_room_for_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(basis, "_MAX_WAITING_LEN", 8)
    for number in range(6):
        large(tmp_path / f"{number:03}/{number}", SIZE + number)
    found = listed(tmp_path)
    assert sum(found.has_length(SIZE + number) for number in range(6)) == 2


def test_a_full_list_needs_no_more_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noted, "MAX_NOTED", 3)
    for number in range(6):
        large(tmp_path / f"{number}/{number}")
    seen = looks(candidates(tmp_path), monkeypatch)
    assert len(seen) == 6 + 3


def test_links_and_unfinished_files_are_no_candidates(tmp_path: Path) -> None:
    large(tmp_path / "dir/.rpc25519-part-x")
    (tmp_path / "link").symlink_to("dir/.rpc25519-part-x")
    (tmp_path / "loop").symlink_to(".")
    os.mkfifo(tmp_path / "fifo")
    assert not listed(tmp_path).has_length(SIZE)


def test_the_bounds_are_documented() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert f"{basis._MAX_LOOKED:,} entries" in text
    assert f"{noted.MAX_NOTED:,} files from {SIZE >> 10} KiB on" in text
