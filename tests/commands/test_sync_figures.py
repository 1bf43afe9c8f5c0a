"""What syncs and copies say in numbers is true, also of what is cut or too long."""

import pytest
from rpc25519_tools.commands._output import Talk
from rpc25519_tools.commands._synclines import SyncLines

from tests.commands.syncing import Desk, make_tree


def test_a_copy_counts_in_json_what_it_left_out(desk: Desk) -> None:
    make_tree(desk.here, {"tree/a": "1", "f": "2"})
    done = desk.cp("tree", "f", desk.remote(""), "--json")
    assert done.code == 7
    assert done.summary["left_out"] == done.summary["failed"] == 1
    assert done.summary["failures"] == [
        {"path": "tree", "reason": "no regular file (directories need -r)"}
    ]
    done = desk.cli("-push", "tree", "f", "--no-recursive", "--json").succeed()
    assert done.summary["left_out"] == 1
    assert done.summary["failed"] == 0


@pytest.mark.parametrize(("count", "last"), [(100, "99: odd"), (103, "... and 3 more")])
def test_warnings_beyond_the_first_are_counted(
    capsys: pytest.CaptureFixture[str], count: int, last: str
) -> None:
    lines = SyncLines(
        sending=True, itemize=False, as_json=False, bar=None, talk=Talk(prog="cli")
    )
    for number in range(count):
        lines.warned((b"%d" % number,), "odd")
        lines.warned((b"%d" % number,), "odd")
    lines.warn_of_rest()
    told = capsys.readouterr().err.splitlines()
    assert len(told) == min(count, 101)
    assert told[-1] == f"cli: warning: {last}"
