"""rpc25519 cp: scp's names, what goes where, mistakes."""

import os
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from rpc25519_tools.commands.cp import Place, cp, parse_place

from tests.commands.syncing import (
    OLD_S,
    Desk,
    age,
    breaking_line,
    content_of,
    make_tree,
)
from tests.helpers import SrvProcess

TREE = {"a": "1", "sub/b": "2"}
FOUND = {"a": b"1", "sub": None, "sub/b": b"2"}


@pytest.mark.parametrize(
    ("text", "address", "path"),
    [
        ("host:path", "host", "path"),
        ("host:", "host", ""),
        ("host:8443:path", "host:8443", "path"),
        ("host:8443:", "host:8443", ""),
        ("host:8443", "host", "8443"),
        ("host:./1:a", "host", "./1:a"),
        ("host:a:b", "host", "a:b"),
        ("10.0.0.1:99:/x", "10.0.0.1:99", "/x"),
        ("[::1]:path", "[::1]", "path"),
        ("[::1]:99:a:b", "[::1]:99", "a:b"),
        ("host:a\nb", "host", "a\nb"),
        ("path", None, "path"),
        ("./a:b", None, "./a:b"),
        ("dir/a:b", None, "dir/a:b"),
        ("/a:b", None, "/a:b"),
        ("[x", None, "[x"),
        ("-", None, "-"),
    ],
)
def test_places(text: str, address: str | None, path: str) -> None:
    assert parse_place(text) == Place(path=path, address=address)


@pytest.mark.parametrize("text", ["", ":path", ":99:path", "[]:path"])
def test_what_is_no_place(text: str) -> None:
    with pytest.raises(click.UsageError):
        parse_place(text)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("a", "Missing argument"),
        ("a b", "neither source nor destination is on a server: write HOST:PATH"),
        ("h:a i:b", "source and destination are both on a server"),
        ("h:a b c", "all sources must be here, or all on one server"),
        ("h:a i:b c", "all sources must be here, or all on one server"),
        ("h:1:a h:2:b c", "all sources must be here, or all on one server"),
        (":a b", "no host before the colon of ':a' (a file of that name is ./:a)"),
        ("h:99999:a b", "bad address 'h:99999': the port must be 0 to 65535"),
        ("[x]:a b", "bad address '[x]'"),
        ("-x h:a b", "No such option '-x'"),
        ("-delete h:a b", "No such option '-delete'"),
    ],
)
def test_mistakes(words: str, why: str) -> None:
    done = CliRunner().invoke(cp, words.split(), prog_name="rpc25519 cp")
    assert done.exit_code == 2, done.output
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("rpc25519 cp: ")
    assert why in done.stderr


def test_files_go_into_a_directory_or_get_a_new_name(desk: Desk) -> None:
    make_tree(desk.here, {"a": "1", "b": "2", "here/": ""})
    done = desk.cp("a", desk.remote("new"), quick=False).succeed()
    assert done.stdout == ""
    assert done.stderr.startswith("pushed a: 1 of 1 file (1 B of 1 B), in ")
    desk.cp("a", "b", desk.remote("")).succeed()
    assert content_of(desk.there) == {"a": b"1", "b": b"2", "new": b"1"}
    desk.cp(desk.remote("new"), "zz").succeed()
    desk.cp(desk.remote("new"), desk.remote("b"), "here").succeed()
    assert (desk.here / "zz").read_text() == "1"
    assert content_of(desk.here / "here") == {"b": b"2", "new": b"1"}

    done = desk.cp("a", "b", desk.remote("none"))
    assert (done.code, len(done.stderr.splitlines())) == (1, 1)
    assert "none is no directory, into which several things could go" in done.stderr
    done = desk.cp(desk.remote("a"), desk.remote("b"), "zz")
    assert (done.code, len(done.stderr.splitlines())) == (6, 1)
    assert "zz is no directory, into which several things could go" in done.stderr
    assert not (desk.there / "none").exists()


def test_directories_get_a_new_name_or_go_into_one(desk: Desk) -> None:
    make_tree(desk.here / "tree", TREE)
    desk.cp("-r", "tree", desk.remote("x")).succeed()
    assert content_of(desk.there / "x") == FOUND
    desk.cp("-r", "tree/", desk.remote("x")).succeed()
    assert content_of(desk.there / "x" / "tree") == FOUND
    desk.cp("-r", desk.remote("x/tree/"), "y").succeed()
    assert content_of(desk.here / "y") == FOUND
    desk.cp("-r", desk.remote("x/tree"), "y").succeed()
    assert content_of(desk.here / "y" / "tree") == FOUND


def test_directories_need_r(desk: Desk) -> None:
    make_tree(desk.here, {"tree/a": "1", "f": "2", "back/": ""})
    done = desk.cp("tree", "f", desk.remote(""))
    assert done.code == 7
    assert done.stderr.splitlines()[1:] == [
        "rpc25519 cp: tree: no regular file (directories need -r)",
        "rpc25519 cp: 1 file or directory was not transferred",
    ]
    assert content_of(desk.there) == {"f": b"2"}
    done = desk.cp("tree", desk.remote("new/x"))
    assert done.code == 7
    assert done.stderr.splitlines() == [
        "rpc25519 cp: tree: no regular file (directories need -r)"
    ]
    assert content_of(desk.there) == {"f": b"2"}
    make_tree(desk.there, {"tree/a": "1"})
    done = desk.cp(desk.remote("tree"), desk.remote("f"), "back")
    assert done.code == 7
    assert "cp: tree: no regular file (directories need -r)\n" in done.stderr
    assert content_of(desk.here / "back") == {"f": b"2"}
    done = desk.cp(desk.remote("tree"), "none")
    assert done.code == 7
    assert len(done.stderr.splitlines()) == 1
    assert not (desk.here / "none").exists()


def test_times_and_modes_are_kept_with_p(desk: Desk) -> None:
    tree = make_tree(desk.here / "tree", TREE)
    (tree / "a").chmod(0o606)
    (tree / "link").symlink_to("a")
    age(tree)
    desk.cp("-rp", "tree", desk.remote("kept")).succeed()
    status = (desk.there / "kept" / "a").stat()
    assert (status.st_mode & 0o777, status.st_mtime) == (0o606, OLD_S)
    assert (desk.there / "kept" / "link").is_symlink()
    desk.cp("tree/a", desk.remote("new")).succeed()
    status = (desk.there / "new").stat()
    assert status.st_mode & 0o777 == 0o606 & ~_umask()
    assert status.st_mtime > OLD_S


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_link_that_is_named_is_followed(desk: Desk) -> None:
    make_tree(desk.here, {"tree/a": "1"})
    (desk.here / "link").symlink_to("tree/a")
    (desk.here / "linked").symlink_to("tree")
    (desk.here / "broken").symlink_to("none")
    desk.cp("-r", "link", "linked", desk.remote("")).succeed()
    assert content_of(desk.there) == {"link": b"1", "linked": None, "linked/a": b"1"}
    done = desk.cp("broken", desk.remote(""))
    assert (done.code, len(done.stderr.splitlines())) == (6, 1)
    assert "no such file: 'broken'" in done.stderr


def test_a_new_name_survives_a_cut(desk: Desk, tmp_path: Path) -> None:
    make_tree(desk.here / "tree", {"big": os.urandom(3 << 20)})
    with breaking_line(desk.address, after=1 << 20) as address:
        target = f"{address}:{desk.name}/new"
        done = desk.cp("-r", "tree", target, quick=False).succeed()
    assert "trying again" in done.stderr
    assert content_of(desk.there / "new") == content_of(desk.here / "tree")
    with breaking_line(desk.address, after=1 << 20) as address:
        done = desk.cp("-r", f"{address}:{desk.name}/new", "zz").succeed()
    assert "trying again" in done.stderr
    assert content_of(desk.here / "zz") == content_of(desk.here / "tree")


def test_a_dry_run_and_json(desk: Desk) -> None:
    make_tree(desk.here / "tree", TREE)
    done = desk.cp("-r", "tree", desk.remote("x"), "--dry-run").succeed()
    assert "<f+++++++++ sub/b" in done.lines
    assert content_of(desk.there) == {}
    done = desk.cp("-r", "tree", desk.remote("x"), "--json").succeed()
    assert done.summary["transferred"] == 2
    assert done.stderr == ""


def test_what_is_refused(desk: Desk) -> None:
    make_tree(desk.here, {"a": "1"})
    for words, code, why in (
        (["none", desk.remote("")], 6, "no such file: 'none'"),
        ([desk.remote("none"), "."], 1, "no such file: "),
        (["a", f"{desk.address}:../x"], 1, "refused '../x'"),
        (["a", f"{desk.address}:/x"], 1, "refused '/x'"),
        (["a", "127.0.0.1:1:x"], 3, "127.0.0.1:1"),
    ):
        done = desk.cp(*words)
        assert done.code == code, done
        assert len(done.stderr.splitlines()) == 1
        assert why in done.stderr


def test_host_alone_is_the_top_of_what_is_served(desk: Desk) -> None:
    (desk.there / "file").write_text("contents")
    with SrvProcess("-serve", desk.there, certs=desk.certs) as srv:
        top = Desk(desk.here, desk.there, "", srv.address, desk.certs)
        top.cp("-r", f"{srv.address}:", "copy").succeed()
    assert content_of(desk.here / "copy") == {"file": b"contents"}
