"""How many names of one directory are sorted in memory, as docs/sync.md says."""

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from rpc25519_tools.sync import names
from rpc25519_tools.sync.tree import Tree

DOCS = Path(__file__).parents[2] / "docs" / "sync.md"


@pytest.mark.parametrize(("count", "files"), [(15, 0), (16, 1), (40, 1)])
def test_a_temporary_file_is_made_from_so_many_names_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, files: int
) -> None:
    made: list[Any] = []
    temporary_file = tempfile.TemporaryFile

    def noted(**kwargs: Any) -> Any:
        made.append(temporary_file(**kwargs))
        return made[-1]

    monkeypatch.setattr(tempfile, "TemporaryFile", noted)
    monkeypatch.setattr(names, "RUN_LEN", 16)
    for number in range(count):
        (tmp_path / f"{number * 7 % count}").touch()
    tree = Tree.local(os.fsencode(tmp_path))
    found = list(names.sorted_names(tree.top))
    assert found == sorted(os.listdir(os.fsencode(tmp_path)))
    assert len(made) == files


def test_that_number_is_documented() -> None:
    line = f"sorted in memory if there are fewer than {names.RUN_LEN:,}"
    assert line in DOCS.read_text(encoding="utf-8")
