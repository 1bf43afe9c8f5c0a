"""cli -ls with real programs, and the lines that it prints."""

import base64
import json
import os
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rpc25519_tools.commands._ls import LongLines, json_lines, local_time, short_lines

from rpc25519_tools.sync.list_records import ListEntry
from tests.helpers import SrvProcess, issue_certs, program_path, run_program


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return issue_certs(tmp_path_factory.mktemp("people"), "node", "ann")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("served")
    (top / "sub").mkdir()
    (top / "sub" / "file").write_text("12345")
    (top / "link").symlink_to("sub/file")
    (top / "access").touch(mode=0o600)
    (top / os.fsdecode(b"\x1b[31m\xff")).touch()
    (top / ".rpc25519-part-0-0").touch()
    os.utime(top / "sub" / "file", (1_000_000_000, 1_000_000_000))
    return top


@pytest.fixture(scope="module")
def srv(people: Path, served: Path) -> Iterator[SrvProcess]:
    rules = served / "access"
    rules.write_text("* list /\n")
    with SrvProcess("-serve", served, "--access", rules, certs=people) as process:
        yield process


def ls(srv: SrvProcess, people: Path, *args: str) -> subprocess.CompletedProcess[str]:
    words = ["-s", srv.address, "-certs", os.fspath(people), "-k", "ann"]
    return run_program("cli", *words, *args, env={"TZ": "UTC"})


def test_names_are_printed_one_per_line(srv: SrvProcess, people: Path) -> None:
    for words in (["-ls"], ["-ls", "."], ["--ls", "/"], ["-ls="]):
        done = ls(srv, people, *words)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "\\x1b[31m\\udcff\nlink\nsub/\n"


def test_a_tree_is_printed_with_paths(srv: SrvProcess, people: Path) -> None:
    done = ls(srv, people, "-ls", ".", "-R")
    assert done.stdout == "\\x1b[31m\\udcff\nlink\nsub/\nsub/file\n"


def test_long_lines_are_those_of_ls(
    srv: SrvProcess, people: Path, served: Path
) -> None:
    done = ls(srv, people, "-l", "-ls", "sub")
    file = served / "sub" / "file"
    mode = stat.filemode(file.stat().st_mode)
    assert done.stdout == (
        f"{mode} 1 {file.owner()} {file.group()} 5 2001-09-09 01:46:40+00:00 file\n"
    )


def test_json_is_one_object_per_line(srv: SrvProcess, people: Path) -> None:
    done = ls(srv, people, "-ls", "-R", "-json")
    odd, link, sub, file = map(json.loads, done.stdout.splitlines())
    assert base64.b64decode(odd["name_base64"]) == b"\x1b[31m\xff"
    assert (link["kind"], link["target"]) == ("link", "sub/file")
    assert (sub["kind"], sub["name"]) == ("directory", "sub")
    assert (file["path"], file["name"], file["size"]) == ("sub/file", "file", 5)
    assert file["mtime_ns"] == 10**18


def test_the_server_logs_what_was_listed(srv: SrvProcess, people: Path) -> None:
    ls(srv, people, "-ls", "sub")
    srv.wait_for("list 'sub' ")


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["-ls", "no"], 1, "cli: cannot list 'no': no such file or directory"),
        (["-ls", "link/"], 1, "'link/': it is a symbolic link, not a directory"),
        (["-ls", "sub/file/"], 1, "'sub/file/': it is a file, not a directory"),
        (["-ls", "../x"], 1, "cli: refused '../x': "),
        (["-ls", "access"], 1, "reserved for the server's own keys and rules"),
        (["-download", "sub/file", "-o", "-"], 1, "not allowed: read '/sub/file'"),
        (["-l"], 2, "-l goes with -ls"),
        (["-R", "-download", "x"], 2, "-r goes with -ls, -push or -pull"),
        (["-ls", "-download", "x"], 2, "-ls goes without"),
        (["-ls", "-n", "3"], 2, "-ls goes without"),
    ],
)
def test_mistakes_are_one_line(
    srv: SrvProcess, people: Path, words: list[str], code: int, line: str
) -> None:
    done = ls(srv, people, *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert line in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_server_without_serve_says_what_it_needs(people: Path) -> None:
    with SrvProcess(certs=people) as srv:
        done = ls(srv, people, "-ls")
    assert done.returncode == 1
    assert done.stderr == (
        "cli: the server does not offer listings (srv has to be started with -serve)\n"
    )


def test_a_closed_pipe_ends_it_in_silence(srv: SrvProcess, people: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    words = ["-s", srv.address, "-certs", os.fspath(people), "-k", "ann", "-ls"]
    done = subprocess.run(
        [program_path("cli"), *words],
        stdout=writer,
        stderr=subprocess.PIPE,
        timeout=30,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


# Lines.


def an_entry(**fields: Any) -> ListEntry:
    usual: dict[str, Any] = {
        "name": b"n",
        "mode": stat.S_IFREG | 0o644,
        "size": 1,
        "mtime_ns": 0,
        "uid": 3,
        "gid": 4,
        "owner": "",
        "group": "",
        "nlink": 1,
    }
    return ListEntry(**{**usual, **fields})


@pytest.fixture
def in_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("mtime_ns", "text"),
    [
        (0, "1970-01-01 01:00:00+01:00"),
        (1_753_000_000_999_999_999, "2025-07-20 10:26:40+02:00"),
        (-1, "1970-01-01 00:59:59+01:00"),
        (10**21, "@1000000000000"),
        (-(10**21), "@-1000000000000"),
    ],
)
def test_times_are_local(mtime_ns: int, text: str, in_berlin: None) -> None:
    assert local_time(mtime_ns) == text


def test_columns_are_aligned_and_only_grow() -> None:
    lines = LongLines()
    first = lines.lines([an_entry(), an_entry(size=1234, owner="somebody")])
    second = lines.lines([an_entry()])
    begins = [line.index("19") for line in (*first, *second)]
    assert len(set(begins)) == 1


def test_nothing_steers_the_terminal() -> None:
    entry = an_entry(
        name=b"a\n\x1b[2J",
        owner="\x1b[31m",
        group="\u202ex",
        mode=stat.S_IFLNK | 0o777,
        link_target=b"\x07",
    )
    for form in (short_lines, LongLines().lines, json_lines):
        (line,) = form([entry])
        assert line.isprintable()


def test_names_that_are_text_are_whole_in_json() -> None:
    (line,) = json_lines([an_entry(name="é\\x1b\n".encode())])
    found = json.loads(line)
    assert found["name"] == "é\\x1b\n"
    assert not {name for name in found if name.endswith("base64")}
    (line,) = json_lines([an_entry(problem="cannot", mode=stat.S_IFDIR | 0o700)])
    assert json.loads(line)["problem"] == "cannot"
