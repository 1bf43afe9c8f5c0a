"""Keys and rules stay out of what is served."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpc25519_tools.errors import LocalFileError, UnsafePathError
from rpc25519_tools.files.jail import Root
from rpc25519_tools.files.kept_back import KeptBack
from rpc25519_tools.identity.access import fold
from tests.helpers import SrvProcess, run_program


@pytest.fixture
def top(tmp_path: Path) -> Path:
    (tmp_path / "certs").mkdir()
    (tmp_path / "certs/node.key").write_text("secret")
    (tmp_path / "access").write_text("rules")
    (tmp_path / "public.txt").write_text("public")
    return tmp_path


@pytest.mark.parametrize(
    "name",
    ["certs/node.key", "certs/new", "certs", "access", "ACCESS", "Certs/node.key"],
)
def test_it_can_be_neither_read_nor_written(top: Path, name: str) -> None:
    with Root(top, keep_back=[top / "certs", top / "access"]) as root:
        with pytest.raises(UnsafePathError, match="reserved for the server's own"):
            root.open_for_reading(name)
        with pytest.raises(UnsafePathError, match="reserved for the server's own"):
            root.resolve_for_writing(name)


@pytest.mark.parametrize("name", ["public.txt", "accesses", "certs2", "acces"])
def test_other_names_are_served(top: Path, name: str) -> None:
    (top / name).touch()
    with Root(top, keep_back=[top / "certs", top / "access"]) as root:
        root.resolve_for_writing(name).close()


def test_what_does_not_exist_yet_is_kept_back_too(top: Path) -> None:
    with (
        Root(top, keep_back=[top / "known_client_keys"]) as root,
        pytest.raises(UnsafePathError),
    ):
        root.resolve_for_writing("known_client_keys")


def test_a_link_and_what_it_leads_to_are_kept_back(top: Path) -> None:
    (top / "list").symlink_to(top / "public.txt")
    with Root(top, keep_back=[top / "list"]) as root:
        for name in ("list", "public.txt"):
            with pytest.raises(UnsafePathError):
                root.resolve_for_writing(name)


@pytest.mark.parametrize(
    "name",
    ["access.", "access ", "certs./node.key", "ac\u200bcess", "ac\u034fcess"],
    ids=ascii,
)
def test_other_spellings_on_other_file_systems_are_kept_back(
    top: Path, name: str
) -> None:
    """FAT drops dots and spaces at the end; HFS+ and ext4 drop what is not seen."""
    with Root(top, keep_back=[top / "certs", top / "access"]) as root:
        for use in (root.open_for_reading, root.resolve_for_writing):
            with pytest.raises(UnsafePathError, match="reserved for the server's own"):
                use(name)


def test_a_second_name_is_kept_back(top: Path) -> None:
    (top / "ACCES~1").hardlink_to(top / "access")
    with Root(top, keep_back=[top / "access"]) as root:
        for use in (root.open_for_reading, root.resolve_for_writing):
            with pytest.raises(UnsafePathError, match="reserved for the server's own"):
                use("ACCES~1")


def test_what_a_link_leads_to_later_is_kept_back(top: Path) -> None:
    (top / "rules").symlink_to("access")
    (top / "next").write_text("rules to come")
    with Root(top, keep_back=[top / "rules"]) as root:
        root.resolve_for_writing("next").close()
        (top / "rules").unlink()
        (top / "rules").symlink_to("next")
        for use in (root.open_for_reading, root.resolve_for_writing):
            with pytest.raises(UnsafePathError, match="reserved for the server's own"):
                use("next")


@pytest.mark.parametrize("served", ["certs", "certs/deeper"])
def test_a_directory_of_keys_is_not_served(top: Path, served: str) -> None:
    (top / "certs/deeper").mkdir()
    with pytest.raises(LocalFileError, match="has keys or rules"):
        Root(top / served, keep_back=[top / "certs"])


def test_what_lies_elsewhere_does_not_matter(top: Path) -> None:
    kept = KeptBack(top / "certs", [top / "access", "/nowhere/certs"])
    kept.check((b"access",), "access")


@given(parts=st.lists(st.binary(min_size=1, max_size=9), min_size=1, max_size=4))
def test_any_bytes_can_be_asked_for(parts: list[bytes]) -> None:
    kept = KeptBack("/served", ["/served/x"])
    try:
        kept.check(parts, "a name")
    except UnsafePathError:
        assert fold(parts[0].decode("utf-8", "surrogateescape")) == "x"


@pytest.mark.parametrize("name", ["certs/ca.crt", "access", "known_client_keys", "psk"])
def test_srv_in_the_directory_of_its_keys_keeps_them(
    certs: Path, tmp_path: Path, name: str
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "certs").mkdir()
    for path in certs.iterdir():
        (home / "certs" / path.name).write_bytes(path.read_bytes())
        (home / "certs" / path.name).chmod(0o600)
    (home / "access").write_text("* read write /\n")
    (home / "psk").write_bytes(bytes(range(32)))
    for private in ("access", "psk"):
        (home / private).chmod(0o600)
    home.chmod(0o700)
    evil = tmp_path / "evil"
    evil.write_text("mine now")
    options = ("-serve", "-readfile", "-access", "access", "-psk", "psk")
    with SrvProcess(*options, certs=home / "certs", cwd=home) as server:
        cli = ("-s", server.address, "-certs", certs, "-psk", home / "psk")
        sent = run_program("cli", *cli, "-sendfile", evil, "--to", name, cwd=tmp_path)
        assert sent.returncode == 1
        assert "reserved for the server's own keys" in sent.stderr
        got = run_program("cli", *cli, "-download", name, "-o", "-", cwd=tmp_path)
        assert got.returncode == 1
        assert not got.stdout
        ok = run_program("cli", *cli, "-sendfile", evil, "--to", "fine", cwd=tmp_path)
        assert ok.returncode == 0
    assert (home / "fine").read_text() == "mine now"
    assert not (home / "known_client_keys").exists()
