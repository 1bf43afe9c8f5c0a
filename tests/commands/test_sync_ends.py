"""How cli -push and -pull end: failures, refusals, servers that offer nothing."""

import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands.hostile import finish, run, started, without_root_powers
from tests.commands.syncing import Desk, content_of, desk_for, make_tree
from tests.helpers import SrvProcess, program_path, wait_until


def test_what_is_not_there_fails_and_the_rest_goes_through(desk: Desk) -> None:
    make_tree(desk.here / "tree", {"a": "1", "b": "2"})
    done = desk.push("tree/a", "missing", "tree/b")
    assert done.code == 7
    assert done.stderr.splitlines()[-2:] == [
        "cli: no such file: 'missing'",
        "cli: 1 file or directory was not transferred",
    ]
    assert content_of(desk.there) == {"a": b"1", "b": b"2"}
    done = desk.pull(f"{desk.name}/a", f"{desk.name}/missing", "-o", "back", "--json")
    assert done.code == 7
    assert done.summary["failed"] == 1
    assert done.summary["transferred"] == 1
    assert "missing" in done.stderr.splitlines()[0]
    assert content_of(desk.here / "back") == {"a": b"1"}


def test_the_first_hundred_failures_are_listed(desk: Desk) -> None:
    (desk.here / "list").write_text("".join(f"no{n:03}\n" for n in range(250)))
    (desk.here / "tree").mkdir()
    words = ("-push", "tree", "--to", desk.name, "--files-from", "list")
    done = desk.cli(*words)
    lines = done.stderr.splitlines()
    assert done.code == 7
    assert lines[1:3] == [
        "cli: no000: no such file or directory",
        "cli: no001: no such file or directory",
    ]
    assert lines[101:] == [
        "cli: ... and 150 more",
        "cli: 250 files or directories were not transferred",
    ]
    done = desk.cli(*words, "--json")
    assert done.summary["failed"] == 250
    assert len(done.summary["failures"]) == 100


def test_nothing_is_deleted_if_the_source_is_not_whole(desk: Desk) -> None:
    make_tree(desk.here / "tree", {"a": "1"})
    (desk.there / "old").touch()
    done = desk.push("tree/", "missing", "--delete")
    assert done.code == 7
    assert "so nothing is deleted" in done.stderr
    assert (desk.there / "old").exists()


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (["-push", "missing"], 6, "cli: no such file: 'missing'"),
        (["-pull", "missing"], 1, "cli: no such file: 'missing'"),
        (["-push", "tree", "--to", "../x"], 1, "cli: refused '../x': the path has a"),
        (["-push", "tree", "--to", "/x"], 1, "cli: refused '/x': the path is absolute"),
        (["-pull", "../x"], 1, "cli: refused '../x'"),
        (["-push", "tree", "--to", ".rpc25519-part-x"], 1, "reserved for unfinished"),
        (["-push", "tree", "--exclude-from", "missing"], 6, "cli: missing: no such"),
        (["-push", "tree", "--files-from", "missing"], 6, "cli: missing: no such file"),
        (["-push", "tree", "--files-from", "list", "--to", "x"], 0, None),
        (["-push", "tree", "--exclude", "- "], 2, "a filter rule without a pattern"),
        (["-push", "tree", "--include-from", "bad"], 2, "cli: bad: line 2: a filter"),
        (["-push", "tree", "--files-from", "long"], 2, "a path of 5000 bytes"),
        (["-pull", ".", "-o", "list"], 6, "cannot write into 'list'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refusals(desk: Desk, words: list[str], code: int, why: str | None) -> None:
    make_tree(
        desk.here, {"tree/a": "1", "list": "a\n", "bad": "x\n+ \n", "long": "x" * 5000}
    )
    done = desk.cli(*words)
    assert done.code == code, done.stderr
    if why is not None:
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1
        assert why in done.stderr


@pytest.fixture(scope="module")
def giver(
    certs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SrvProcess]:
    """A server that gives out, by rules, and takes nothing."""
    top = tmp_path_factory.mktemp("given")
    make_tree(top, {"open/a": "1", "open/secret": "2", "closed/b": "3"})
    rules = top / "access"
    rules.write_text("* list read /open\n* list /closed\n")
    rules.chmod(0o600)
    with SrvProcess("-serve", top, "--access", rules, certs=certs) as srv:
        yield srv


def test_rights_are_kept_to(
    giver: SrvProcess,
    certs: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    desk = desk_for(giver, tmp_path_factory.mktemp("unused"), certs, tmp_path)
    desk.pull("open").succeed()
    assert content_of(desk.here / "open") == {"a": b"1", "secret": b"2"}
    done = desk.pull("closed")
    assert done.code == 7
    assert done.stderr.splitlines()[-2] == "cli: closed/b: reading it is not allowed"
    assert content_of(desk.here / "closed") == {}
    done = desk.pull("access", ".")
    assert done.code == 1
    assert "not allowed" in done.stderr or "reserved" in done.stderr
    (desk.here / "f").touch()
    done = desk.cli("-push", "f")
    assert done.code == 1
    assert done.stderr == (
        "cli: the server does not offer pushes (srv has to be started with "
        "-readfile DIR)\n"
    )


def test_what_may_not_be_listed_is_not_there(
    certs: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Neither what is told nor the exit code show whether it is."""
    top = tmp_path_factory.mktemp("given")
    make_tree(top, {"a": "1", "pub/hid": "2", "pub/b": "3", "secret/c": "4"})
    rules = tmp_path / "access"
    denied = ("/secret", "/pub/hid", "/pub/none")
    lines = [f"deny * read list {path}\n" for path in denied]
    rules.write_text("".join(lines) + "* list read /\n")
    rules.chmod(0o600)
    with SrvProcess("-serve", top, "--access", rules, certs=certs) as srv:
        desk = desk_for(srv, tmp_path_factory.mktemp("unused"), certs, tmp_path)
        done = desk.pull(".", "-o", "got", "--itemize")
        assert done.code == 0, done.stderr
        assert content_of(desk.here / "got") == {"a": b"1", "pub": None, "pub/b": b"3"}
        assert "secret" not in done.stdout + done.stderr
        assert "hid" not in done.stdout + done.stderr
        said: list[list[str]] = []
        for name in ("hid", "none"):
            (desk.here / "names").write_text(f"pub/{name}\n")
            done = desk.pull(".", "-o", "got", "--files-from", "names")
            assert done.code == 7
            lines = done.stderr.replace(name, "NAME").splitlines()
            said.append([line for line in lines if line.startswith("cli:")])
        assert said[0] == said[1]
        assert said[0][0] == "cli: pub/NAME: reading it is not allowed"
        one, other = (desk.pull(f"pub/{name}", "-o", "x") for name in ("hid", "none"))
        assert one.stderr.replace("hid", "none") == other.stderr


def test_servers_that_offer_nothing(desk: Desk) -> None:
    (desk.here / "f").touch()
    with SrvProcess(certs=desk.certs) as srv:
        for words in (["-push", "f"], ["-pull", "f"]):
            done = desk.cli(*words, address=srv.address)
            assert done.code == 1
            assert done.stderr.startswith("cli: the server does not offer ")
            assert len(done.stderr.splitlines()) == 1
    with SrvProcess("-readfile", desk.there, certs=desk.certs) as srv:
        done = desk.cli("-pull", "f", address=srv.address)
        assert done.code == 1
        assert "does not offer pulls (srv has to be started with -serve" in done.stderr
        desk.cli("-push", "f", address=srv.address).succeed()
    assert (desk.there / "f").exists()


def test_a_server_that_replaces_nothing(desk: Desk) -> None:
    make_tree(desk.here, {"tree/a": "1", "tree/b": "1"})
    make_tree(desk.there, {"a": "22", "c": "3"})
    words = ("-serve", desk.there, "-readfile", desk.there, "--no-clobber")
    with SrvProcess(*words, certs=desk.certs) as srv:
        more: list[str]
        for more in ([], ["--delete"], ["--delete", "--ignore-existing"]):
            done = desk.cli("-push", "tree/", *more, address=srv.address)
            assert done.code == 1
            assert "this server neither replaces nor deletes" in done.stderr
        more = ["--ignore-existing"]
        desk.cli("-push", "tree/", *more, address=srv.address).succeed()
    assert content_of(desk.there) == {"a": b"22", "b": b"1", "c": b"3"}


def test_owners_go_with_readfile(desk: Desk) -> None:
    done = desk.run("srv", "--allow-owners", "-serve")
    assert done.code == 2
    assert "--allow-owners goes with -readfile" in done.stderr


def test_an_interrupted_push_leaves_nothing_under_the_name(desk: Desk) -> None:
    (desk.here / "big").write_bytes(os.urandom(3 << 20))
    words = ["-s", desk.address, "-certs", os.fspath(desk.certs), "--bwlimit", "1m"]
    words += ["-push", "big", "--to", desk.name]
    with started("cli", *words, cwd=desk.here) as process:
        area = desk.there.parent / ".rpc25519-part-area"
        wait_until(
            lambda: any(
                path.is_file() and path.stat().st_size > 1 << 20
                for path in area.rglob("*")
            ),
            what="something to arrive",
        )
        process.send_signal(signal.SIGINT)
        outcome = finish(process)
    assert outcome.code == 130
    assert outcome.lines == ["cli: interrupted"]
    assert not (desk.there / "big").exists()
    # What has arrived need not come again.
    done = desk.cli("-push", "big", "--to", desk.name, "--json").succeed()
    assert done.summary["literal_bytes"] < 3 << 20
    assert (desk.there / "big").read_bytes() == (desk.here / "big").read_bytes()


def test_the_reader_of_the_lines_goes_away(desk: Desk) -> None:
    make_tree(desk.here / "tree", {f"{n:04}" + "x" * 200: "" for n in range(1000)})
    command = (
        f"{program_path('cli')} -s {desk.address} -certs {desk.certs} "
        f"-push tree --to {desk.name} -i --no-fsync | head -n 1"
    )
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=desk.here,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (done.returncode, done.stderr) == (141, "")
    assert done.stdout == "cd+++++++++ tree/\n"


def test_a_full_disk_behind_the_lines(desk: Desk) -> None:
    make_tree(desk.here / "tree", {"a": "1"})
    words = ["-s", desk.address, "-certs", os.fspath(desk.certs)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [program_path("cli"), *words, "-push", "tree", "--to", desk.name, "-i"],
            cwd=desk.here,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=20,
            check=False,
        )
    assert done.returncode == 6
    assert done.stderr == "cli: no space left on device\n"


def test_what_cannot_be_read_is_told(desk: Desk) -> None:
    make_tree(desk.here / "tree", {"a": "1", "b": "2"})
    (desk.here / "tree" / "a").chmod(0)
    words = ["-s", desk.address, "-certs", os.fspath(desk.certs)]
    words += ["-push", "tree", "--to", desk.name]
    done = run("cli", *words, cwd=desk.here, preexec=without_root_powers)
    assert done.code == 7
    assert done.lines[-2:] == [
        "cli: cannot read 'tree/a': no permission",
        "cli: 1 file or directory was not transferred",
    ]
    assert not (desk.there / "tree" / "a").exists()
    assert stat.S_ISREG((desk.there / "tree" / "b").stat().st_mode)


def test_a_large_file_that_cannot_be_stored_is_told_at_once(desk: Desk) -> None:
    """Its rest is on the way then, and nobody waits for it in vain."""
    size = 30 << 20
    with (desk.there / "big").open("wb") as file:
        file.write(os.urandom(1 << 20) * (size >> 20))
    command = (
        f"ulimit -f 5000; exec {program_path('cli')} -s {desk.address} "
        f"-certs {desk.certs} -pull {desk.name}/big -o back/ --retry-for 0"
    )
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=desk.here,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 7
    assert "cli: cannot write 'big': file too large" in done.stderr
    assert not (desk.here / "back" / "big").exists()
