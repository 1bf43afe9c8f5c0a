"""Names come back in order, whatever fits into memory."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpc25519_tools.errors import LocalFileError
from rpc25519_tools.files.sorted_names import NameSpool

NAMES = st.lists(st.binary(min_size=1, max_size=8).filter(lambda name: 0 not in name))


@given(levels=st.lists(NAMES, min_size=1, max_size=4), run_names=st.integers(1, 6))
def test_nested_directories_are_sorted(
    levels: list[list[bytes]], run_names: int
) -> None:
    with NameSpool(run_names) as spool:
        opened = [(names, spool.sort(names)) for names in levels]
        while opened:
            names, found = opened.pop()
            assert list(found) == sorted(names)
            found.close()


def test_half_read_names_go_on_after_a_deeper_directory() -> None:
    with NameSpool(4) as spool:
        outer = spool.sort(b"%03d" % n for n in reversed(range(100)))
        seen = [next(outer) for _ in range(50)]
        inner = spool.sort(b"in%03d" % n for n in range(100))
        assert len(list(inner)) == 100
        inner.close()
        inner.close()
        again = spool.sort(b"xx%03d" % n for n in range(100))
        assert next(again) == b"xx000"
        again.close()
        assert seen + list(outer) == [b"%03d" % n for n in range(100)]


def test_few_names_need_no_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.TemporaryFile", None)
    with NameSpool(4) as spool:
        first = spool.sort([b"b", b"a", b"c"])
        second = spool.sort([b"y", b"x"])
        assert [*first, *second] == [b"a", b"b", b"c", b"x", b"y"]
        second.close()
        first.close()
        # The room that was given back can be used again.
        assert list(spool.sort([b"3", b"2", b"1"])) == [b"1", b"2", b"3"]


def test_a_shortened_file_is_noticed() -> None:
    with NameSpool(2) as spool:
        names = spool.sort([b"a" * 100] * 200)
        assert spool._file is not None
        os.ftruncate(spool._file.fileno(), 1000)
        with pytest.raises(LocalFileError, match="cut short"):
            list(names)


def test_closing_frees_the_file(no_leaked_fds: None) -> None:
    spool = NameSpool(2)
    spool.sort([b"a", b"b", b"c"])
    spool.close()
    spool.close()
