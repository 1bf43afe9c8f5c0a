"""What is kept back stays, and is not told of, whatever name it has."""

import asyncio
import os
from pathlib import Path

import pytest
from msgspec import structs

from .attackers import ALL, DIR, END, FILE, HostileSender, Served, overview

pytestmark = pytest.mark.usefixtures("no_leaked_fds")

DELETE = structs.replace(ALL, delete=True)


@pytest.fixture
def served(tmp_path: Path) -> Served:
    root, keys = tmp_path / "root", tmp_path / "keys"
    (root / "folder").mkdir(parents=True)
    keys.mkdir()
    (keys / "access").write_bytes(b"secret")
    os.link(keys / "access", root / "alias")
    os.link(keys / "access", root / "folder/alias")
    (root / "folder/other").write_bytes(b"x")
    (root / "other").write_bytes(b"x")
    return Served(root, keep_back=[keys / "access"])


def push_nothing(served: Served, **options: object) -> HostileSender:
    """Push an empty directory with ``--delete``."""

    async def script(sender: HostileSender) -> None:
        await sender.entries(overview((b".", DIR)), END)
        await sender.over()

    return asyncio.run(served.attack(script, structs.replace(DELETE, **options)))


@pytest.mark.parametrize("options", [{}, {"backup_dir": b"old"}])
def test_it_is_not_deleted(served: Served, options: dict[str, object]) -> None:
    sender = push_nothing(served, **options)
    assert sorted(sender.removed) == [b"folder/other", b"other"]
    assert sender.removal_notes == []
    for name in ("alias", "folder/alias"):
        assert (served.path / name).read_bytes() == b"secret"
    assert not (served.path / "old/alias").exists()
    assert sender.totals is not None
    assert sender.totals.deleted == 2


def test_a_dry_run_does_not_tell_of_it(served: Served) -> None:
    sender = push_nothing(served, dry_run=True)
    assert b"alias" not in b" ".join(sender.removed)


def test_it_is_none_of_those_that_were_too_many(served: Served) -> None:
    sender = push_nothing(served, max_delete=0)
    assert sender.totals is not None
    assert sender.totals.undeleted == 3  # the folder, and the other file in each


def test_a_directory_with_it_is_not_replaced(served: Served) -> None:
    async def script(sender: HostileSender) -> None:
        entries = overview((b".", DIR), (b"folder", FILE))
        await sender.entries(entries, END)
        await sender.judged(2)
        await sender.over()

    sender = asyncio.run(served.attack(script, DELETE))
    assert 1 in sender.notes
    assert (served.path / "folder/alias").read_bytes() == b"secret"
    assert (served.path / "folder/other").read_bytes() == b"x"
