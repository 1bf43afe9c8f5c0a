"""Our dry runs say what rsync's say, and what they say is what happens."""

from pathlib import Path

import pytest

from rpc25519_tools.errors import UnsafePathError
from rpc25519_tools.sync.options import SyncOptions

from .local import LocalSync, sync
from .rsync_cases import Case, build, load_cases

#: Where we differ from rsync, and why.
JUSTIFIED = {
    "changed -a --delete --backup-dir=../old": "backups may not lie outside of the "
    "destination: a server could not allow it",
    "delete -r --delete --exclude=*.tmp": "rsync's dry run announces the removal of "
    "a directory in which an excluded file stays, and then that it cannot; ours knows",
    "delete -r --delete --include=*/ --include=*.c --exclude=*": "likewise",
    "delete -r --delete --max-delete=4": "rsync removes a directory's leftovers when "
    "it comes to it, we in the end: which ones the limit spares differs, not how many",
    "delete -r --delete --max-delete=4 --exclude=*.c": "likewise",
    "random 55": "likewise",
    "types ignored": "a link that stays in the place of a directory is not followed",
    "random 22": "beneath a file that stays in the place of a directory rsync's dry "
    "run makes directories; we leave all of it out",
    "hard links to nothing there": "which of a file's names is sent and which are "
    "linked; without times rsync takes the last one",
}


def options_of(case: Case, *, dry_run: bool) -> SyncOptions:
    """Return a case's options as ours; ``-a`` does not recurse with --files-from."""
    options = case.options
    chosen = options.files_from is not None and options.archive
    return SyncOptions(
        recursive=options.recursive and not chosen,
        links=options.links,
        perms=options.perms,
        times=options.times,
        owner=options.archive,
        group=options.archive,
        specials=options.archive,
        devices=options.archive,
        hard_links=options.hard_links,
        checksum=options.checksum,
        size_only=options.size_only,
        existing=options.existing,
        ignore_existing=options.ignore_existing,
        update=options.update,
        delete=options.delete,
        delete_excluded=options.delete_excluded,
        max_delete=options.max_delete,
        rules=options.rules,
        backup_dir=options.backup_dir,
        dry_run=dry_run,
        fsync=False,
    )


def chosen_paths(case: Case) -> list[bytes] | None:
    """Return the lines of a case's --files-from."""
    text = case.options.files_from
    if text is None:
        return None
    lines = text.replace(b"\r", b"\n").split(b"\n")
    return [line for line in lines if line and not line.startswith((b"#", b";"))]


def run(case: Case, folder: Path, *, dry_run: bool) -> LocalSync:
    """Build a case's trees and sync them."""
    folder.mkdir()
    sources, destination = build(case, folder)
    options = options_of(case, dry_run=dry_run)
    return sync(sources, destination, options, only=chosen_paths(case))


def ours(one: LocalSync) -> list[tuple[str, bytes, bytes]]:
    return sorted(one.at_receiver.lines)


@pytest.mark.parametrize(
    "case",
    [case for case in load_cases() if "../" not in case.name],
    ids=lambda case: case.name,
)
def test_says_what_rsync_says_and_does_it(case: Case, tmp_path: Path) -> None:
    before = run(case, tmp_path / "dry", dry_run=True)
    if case.name not in JUSTIFIED:
        expected = sorted((one.code, one.path, one.target) for one in case.changes)
        assert ours(before) == expected
        lines = before.at_sender.lines
        told = [(code.replace("<", ">"), *rest) for code, *rest in lines]
        assert sorted(told) == expected
    after = run(case, tmp_path / "real", dry_run=False)
    assert ours(after) == ours(before)
    assert len(after.at_receiver.failures) == len(before.at_receiver.failures)


@pytest.mark.parametrize("name", JUSTIFIED)
def test_difference_from_rsync_is_still_one(name: str, tmp_path: Path) -> None:
    (case,) = (case for case in load_cases() if case.name == name)
    expected = [(change.code, change.path, change.target) for change in case.changes]
    if "../" in name:
        with pytest.raises(UnsafePathError, match="component"):
            run(case, tmp_path / "dry", dry_run=True)
        return
    before = run(case, tmp_path / "dry", dry_run=True)
    assert ours(before) != sorted(expected)
    if "--max-delete" in name:
        deleted = [line for line in ours(before) if line[0].startswith("*")]
        assert len(deleted) == sum(code.startswith("*") for code, *_ in expected)
