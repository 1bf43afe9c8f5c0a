"""What changes is told in rsync's letters; see its manual, --itemize-changes."""

import stat

import pytest

from rpc25519_tools.sync.itemize import Change, itemized, kind_letter

FILE, DIR, LINK = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777
C = Change


@pytest.mark.parametrize(
    ("change", "mode", "expected"),
    [
        # As rsync 3.2.7 prints them.
        (C.CONTENT | C.NEW, FILE, ">f+++++++++"),
        (C.LOCAL | C.NEW, DIR, "cd+++++++++"),
        (C.LOCAL | C.NEW, LINK, "cL+++++++++"),
        (C.LOCAL | C.NEW, stat.S_IFIFO, "cS+++++++++"),
        (C.LOCAL | C.NEW, stat.S_IFSOCK, "cS+++++++++"),
        (C.LOCAL | C.NEW, stat.S_IFCHR, "cD+++++++++"),
        (C.LOCAL | C.NEW, stat.S_IFBLK, "cD+++++++++"),
        (C.LINKED | C.NEW, FILE, "hf+++++++++"),
        (C.LINKED, FILE, "hf         "),
        (C.CONTENT | C.SIZE | C.TIME, FILE, ">f.st......"),
        (C.CONTENT | C.SUM | C.TIME, FILE, ">fc.t......"),
        (C.CONTENT | C.SUM | C.SIZE | C.TIME, FILE, ">fcst......"),
        (C.CONTENT | C.SIZE | C.TIME | C.TIME_NOW, FILE, ">f.sT......"),
        (C.CONTENT | C.TIME_NOW, FILE, ">f........."),
        (C.CONTENT | C.SIZE | C.TIME | C.PERMS, FILE, ">f.stp....."),
        (C.TIME, DIR, ".d..t......"),
        (C.TIME, FILE, ".f..t......"),
        (C.PERMS, FILE, ".f...p....."),
        (C.PERMS, DIR, ".d...p....."),
        (C.OWNER | C.GROUP, FILE, ".f....og..."),
        (C.TIME | C.PERMS | C.OWNER | C.GROUP, FILE, ".f..tpog..."),
        (C.LOCAL | C.SUM | C.TIME, LINK, "cLc.t......"),
        (C.LOCAL | C.SUM | C.TIME | C.TIME_NOW, LINK, "cLc.T......"),
        (C.NONE, FILE, ".f         "),
        (C.NONE, DIR, ".d         "),
    ],
)
def test_changes_are_spelled_like_rsync(change: int, mode: int, expected: str) -> None:
    assert itemized(change, mode, sending=False) == expected
    assert itemized(change, mode, sending=True) == expected.replace(">", "<")
    assert len(expected) == 11


@pytest.mark.parametrize(
    ("mode", "letter"),
    [
        (stat.S_IFREG, "f"),
        (stat.S_IFDIR, "d"),
        (stat.S_IFLNK, "L"),
        (stat.S_IFCHR, "D"),
        (stat.S_IFBLK, "D"),
        (stat.S_IFIFO, "S"),
        (stat.S_IFSOCK, "S"),
    ],
)
def test_kinds_have_rsyncs_letters(mode: int, letter: str) -> None:
    assert kind_letter(mode | 0o777) == letter


def test_numbers_of_changes_are_fixed() -> None:
    numbers = {name: value for name, value in vars(Change).items() if name[0] != "_"}
    assert numbers == {
        "NONE": 0,
        "CONTENT": 1,
        "LOCAL": 2,
        "LINKED": 4,
        "NEW": 8,
        "SUM": 16,
        "SIZE": 32,
        "TIME": 64,
        "PERMS": 128,
        "OWNER": 256,
        "GROUP": 512,
        "TIME_NOW": 1024,
    }
