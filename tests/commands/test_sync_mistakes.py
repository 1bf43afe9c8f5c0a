"""Mistakes in the options of cli -push and -pull are one line and exit code 2."""

import pytest
from click.testing import CliRunner
from rpc25519_tools.commands.cli import cli

#: Nobody listens here; no mistake of these gets so far.
NOWHERE = ["-tcp", "-s", "127.0.0.1:1"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("-push", "-push needs a path (. is all that is there)"),
        ("-pull", "-pull needs a path"),
        ("-push a -pull b", "give only one of -push and -pull"),
        ("-push a -download b", "-push goes without -download, -sendfile, -echofile"),
        ("-pull a -ls", "-ls"),
        ("-push a -n 3", "-n is for echo calls; a dry run is --dry-run"),
        ("-n -push a", "'-push' is not a valid integer"),
        ("-push a --no-clobber", "with -push, --no-clobber is --ignore-existing"),
        ("-push a -o b", "-o goes with -download, -echofile or -pull"),
        ("-pull a --to b", "--to goes with -sendfile or -push"),
        ("-push -", "does not go with standard input or output"),
        ("-pull a -o -", "does not go with standard input or output"),
        ("-push=-x", "'-x' looks like an option; if it is a file, write './-x'"),
        ("-push a b --files-from f", "give just that one"),
        ("-push a --from0", "--from0 goes with --files-from"),
        ("-push a --files-from - --exclude-from -", "only one list can come on"),
        ("-push a --files-from - --passphrase-file -", "standard input cannot be both"),
        ("-push a --backup-dir /b", "--backup-dir is relative to the destination"),
        ("-push a --bwlimit fast", "'fast' is no rate: write 500, 1.5m or 1g"),
        ("-push a --max-delete -1", "-1 is not in the range x>=0"),
        ("-push a --max-delete 1", "--max-delete goes with --delete"),
        ("-push a --delete --no-recursive", "--delete needs -r"),
        ("-push a --delete --files-from /dev/null", "--delete needs -r"),
        ("-push a -c --size-only", "give only one of --size-only and --checksum"),
        ("-push a --retry-for soon", "bad duration 'soon'"),
        ("-push a --wait 0", "-wait must be above zero"),
        ("-push a --itemise", "No such option '--itemise'"),
        ("-push a -avz", "No such option '-avz'"),
        ("-push a -tcp=perhaps", "'perhaps' is not a boolean"),
        (f"-push {'a' * 5000}", "a path of 5000 bytes; at most 4096"),
        (f"-pull a -o {'a' * 5000}", "a path of 5000 bytes; at most 4096"),
        ("-pull" + 10_001 * " a", "10001 paths; at most 10000 at a time"),
        ("a b", "Got unexpected extra arguments (a b)"),
        ("--delete", "--delete goes with -push or -pull"),
        ("-a", "-a goes with -push or -pull"),
        ("-sendfile a --dry-run", "--dry-run goes with -push or -pull"),
        ("-download a --exclude b", "--exclude goes with -push or -pull"),
        ("-r", "-r goes with -ls, -push or -pull"),
    ],
)
def test_mistake(words: str, why: str) -> None:
    done = CliRunner().invoke(cli, [*NOWHERE, *words.split()])
    assert done.exit_code == 2, done.output
    lines = [line for line in done.stderr.splitlines() if "warning" not in line]
    assert len(lines) == 1
    assert lines[0].startswith("cli: ")
    assert why in lines[0]
    assert done.stdout == ""


@pytest.mark.parametrize("words", [["-push", ""], ["-push", "a", ""], ["-pull="]])
def test_an_empty_path(words: list[str]) -> None:
    done = CliRunner().invoke(cli, [*NOWHERE, *words])
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1] == "cli: a path is empty (see 'cli --help')"
