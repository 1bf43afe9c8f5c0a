"""Whatever a remote name opens is a regular file beneath the root."""

import errno
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rpc25519_tools.errors import LocalFileError, UnsafePathError
from rpc25519_tools.files import jail
from rpc25519_tools.files.atomic import open_remote_target
from rpc25519_tools.files.jail import Root

INSIDE = b"inside"
SECRET = b"secret"


@dataclass(frozen=True)
class Tree:
    """A served root with every trap in it, and a directory next to it."""

    root: Path
    outside: Path

    def snapshot_outside(self) -> dict[str, bytes]:
        return {entry.name: entry.read_bytes() for entry in self.outside.iterdir()}


def count_fds() -> int:
    return len(os.listdir("/dev/fd"))


@pytest.fixture(autouse=True)
def no_fd_leak() -> Iterator[None]:
    before = count_fds()
    yield
    assert count_fds() <= before  # others may have left some to the collector


def make_tree(base: Path) -> Tree:
    root, outside = base / "root", base / "outside"
    (root / "sub" / "deep").mkdir(parents=True)
    outside.mkdir()
    (outside / "file").write_bytes(SECRET)
    for name in ("file", "a", "sub/file", "sub/deep/file", "b\\c", "..a", "é", "a b"):
        (root / name).write_bytes(INSIDE)
    if sys.platform == "linux":
        Path(os.fsdecode(bytes(root) + b"/\x80\xff")).write_bytes(INSIDE)
    (root / os.fsdecode(jail.PARTIAL_PREFIX + b"0123456789abcdef-0")).touch()
    (root / "link-in").symlink_to("file")
    (root / "link-out").symlink_to(outside / "file")
    (root / "link-dangling").symlink_to(outside / "new")
    (root / "dir-in").symlink_to("sub")
    (root / "dir-out").symlink_to(outside)
    (root / "dir-up").symlink_to("..")
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "fifo")
    bind_socket(root, "sock")
    return Tree(root, outside)


def bind_socket(directory: Path, name: str) -> None:
    """Bind by a relative path: absolute ones may be too long for a socket."""
    back = os.open(".", os.O_RDONLY)
    os.chdir(directory)
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(name)
    finally:
        os.fchdir(back)
        os.close(back)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return make_tree(tmp_path)


def read(root: Root, name: str) -> bytes:
    opened = root.open_for_reading(name)
    try:
        return os.read(opened.fd, 100)
    finally:
        os.close(opened.fd)


def resolve(root: Root, name: str) -> None:
    root.resolve_for_writing(name).close()


@pytest.mark.parametrize(
    "name",
    [
        "file",
        "sub/file",
        "sub/deep/file",
        "b\\c",
        "..a",
        "é",
        "a b",
        pytest.param(
            "\udc80\udcff",
            marks=pytest.mark.skipif(
                sys.platform != "linux", reason="APFS names are UTF-8"
            ),
        ),
    ],
)
def test_plain_files_are_opened(tree: Tree, name: str) -> None:
    with Root(tree.root) as root:
        assert read(root, name) == INSIDE
        opened = root.open_for_reading(name)
        assert opened.status.st_size == len(INSIDE)
        assert not os.get_inheritable(opened.fd)
        os.close(opened.fd)
        with root.resolve_for_writing(name) as target:
            assert target.name == name.rpartition("/")[2].encode(
                "utf-8", "surrogateescape"
            )


ATTACKS = [
    "",
    ".",
    "..",
    "/",
    "//",
    "../outside/file",
    "sub/../file",
    "sub/../../outside/file",
    "./file",
    "sub/./file",
    "sub//file",
    "file/",
    "sub/",
    "/etc/passwd",
    "//etc/passwd",
    "file\0",
    "\0",
    "sub\0/file",
    "a" * 256,
    "a" * 256 + "/file",
    "é" * 128,
    "a/" * 2048 + "a",
    "a" * 100_000,
    "sub",
    "sub/deep",
    "fifo",
    "sock",
    "link-in",
    "link-out",
    "link-dangling",
    "loop",
    "dir-in",
    "dir-out",
    "dir-in/file",
    "dir-out/file",
    "dir-out/new",
    "dir-up/outside/file",
    "loop/file",
    "file/file",
    "fifo/file",
    "\ud800",
    "\udfff/file",
    ".rpc25519-part-0123456789abcdef-0",
    ".RPC25519-Part-x",
    ".rpc25519-part-x/file",
    "sub/.rpc25519-part-",
]


@pytest.mark.parametrize("action", [read, resolve])
@pytest.mark.parametrize("name", ATTACKS, ids=lambda name: ascii(name)[:30])
def test_attacks_are_refused_with_the_same_error(
    tree: Tree, name: str, action: Callable[[Root, str], object]
) -> None:
    before = tree.snapshot_outside()
    with Root(tree.root) as root, pytest.raises(LocalFileError) as caught:
        action(root, name)
    assert type(caught.value) is UnsafePathError
    check_message(str(caught.value), tree)
    assert tree.snapshot_outside() == before


def check_message(text: str, tree: Tree) -> None:
    assert text.isprintable()
    assert len(text) < 1200
    assert str(tree.root) not in text
    assert str(tree.outside) not in text


@pytest.mark.parametrize("action", [read, resolve])
def test_devices_are_refused(action: Callable[[Root, str], object]) -> None:
    with Root("/dev") as root, pytest.raises(UnsafePathError, match="a device"):
        action(root, "null")


@pytest.mark.parametrize("name", ["nothing", "sub/nothing", "nothing/file"])
def test_missing_file_is_plainly_missing(tree: Tree, name: str) -> None:
    with Root(tree.root) as root, pytest.raises(LocalFileError) as caught:
        read(root, name)
    assert type(caught.value) is LocalFileError
    assert str(caught.value) == f"no such file: '{name}'"


def test_missing_parent_directory_is_plainly_missing(tree: Tree) -> None:
    with Root(tree.root) as root:
        resolve(root, "sub/new")
        with pytest.raises(LocalFileError, match="no such file or directory") as caught:
            resolve(root, "nothing/new")
    assert type(caught.value) is LocalFileError


def test_root_may_be_a_link_and_survives_its_removal(tree: Tree) -> None:
    link = tree.root.parent / "link"
    link.symlink_to(tree.root)
    with Root(link) as root:
        link.unlink()
        link.symlink_to(tree.outside)
        assert read(root, "file") == INSIDE


@pytest.mark.parametrize("name", ["nothing", "file", "a\0b"])
def test_root_must_be_a_directory(tree: Tree, name: str) -> None:
    with pytest.raises(LocalFileError):
        Root(str(tree.root / name))


def test_closed_root_opens_nothing(tree: Tree) -> None:
    root = Root(tree.root)
    root.close()
    root.close()
    with pytest.raises(LocalFileError, match="closed"):
        read(root, "file")


TOKENS = [
    *"/././a\0\\é",
    "..",
    "\udc80",
    "\udcff",
    "\udcaf",
    "\ud800",
    "sub",
    "deep",
    "file",
    "link-in",
    "link-out",
    "dir-in",
    "dir-out",
    "dir-up",
    "root",
    "outside",
    "fifo",
    "sock",
    ".rpc25519-part-0123456789abcdef-0",
]
NAMES = st.one_of(
    st.lists(st.sampled_from(TOKENS), max_size=8).map("".join),
    st.lists(st.sampled_from(TOKENS), max_size=6).map("/".join),
    st.text(alphabet="./a\0\\é\udc80\ud800", max_size=12),
    st.text(st.characters(codec=None), max_size=300),
)


@pytest.fixture(scope="module")
def shared_tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    return make_tree(tmp_path_factory.mktemp("jail"))


def identities(top: Path, *, kind: Callable[[int], bool]) -> set[tuple[int, int]]:
    """(device, inode) of everything of a kind beneath ``top``, links not followed."""
    found = set()
    for folder, folders, files in os.walk(top):
        for name in [".", *folders, *files]:
            status = os.lstat(os.path.join(folder, name))
            if kind(status.st_mode) and not name.startswith(".rpc25519-part-"):
                found.add((status.st_dev, status.st_ino))
    return found


@settings(
    max_examples=600,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(name=NAMES)
def test_whatever_opens_is_beneath_the_root(shared_tree: Tree, name: str) -> None:
    tree = shared_tree
    with Root(tree.root) as root:
        try:
            opened = root.open_for_reading(name)
        except LocalFileError as exc:
            check_message(str(exc), tree)
        else:
            status = os.fstat(opened.fd)
            os.close(opened.fd)
            assert (status.st_dev, status.st_ino) in identities(
                tree.root, kind=stat.S_ISREG
            )
        try:
            target = root.resolve_for_writing(name)
        except LocalFileError as exc:
            check_message(str(exc), tree)
        else:
            with target:
                status = os.fstat(target.dir_fd)
            assert (status.st_dev, status.st_ino) in identities(
                tree.root, kind=stat.S_ISDIR
            )
            assert target.name not in {b"", b".", b".."}
            assert not set(target.name) & set(b"/\0")


class Trap:
    """Run ``spring`` once, just before or just after the open of one component."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        component: bytes,
        spring: Callable[[], object],
        *,
        after: bool = False,
    ) -> None:
        self.sprung = False
        genuine = os.open

        def trapped(
            path: str | bytes, flags: int, mode: int = 0o777, *, dir_fd: int | None
        ) -> int:
            fd = -1
            due = path == component and not self.sprung
            if after:
                fd = genuine(path, flags, mode, dir_fd=dir_fd)
            if due:
                self.sprung = True
                spring()
            return fd if after else genuine(path, flags, mode, dir_fd=dir_fd)

        monkeypatch.setattr(os, "open", trapped)


def swap_sub(tree: Tree) -> None:
    (tree.root / "sub").rename(tree.root / "moved")
    (tree.root / "sub").symlink_to(tree.outside)


def test_parent_swapped_for_a_link_before_its_open_is_refused(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Root(tree.root) as root:
        trap = Trap(monkeypatch, b"sub", lambda: swap_sub(tree))
        with pytest.raises(UnsafePathError, match="symbolic link"):
            read(root, "sub/file")
        assert trap.sprung
        with pytest.raises(UnsafePathError, match="symbolic link"):
            resolve(root, "sub/file")


def test_parent_swapped_for_a_link_after_its_open_changes_nothing(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Root(tree.root) as root:
        trap = Trap(monkeypatch, b"sub", lambda: swap_sub(tree), after=True)
        assert read(root, "sub/file") == INSIDE
        assert trap.sprung


def swap_file(tree: Tree, kind: str) -> None:
    path = tree.root / "file"
    path.unlink()
    if kind == "link":
        path.symlink_to(tree.outside / "file")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "socket":
        bind_socket(tree.root, "file")


@pytest.mark.parametrize("kind", ["link", "fifo", "directory", "socket"])
def test_file_swapped_between_look_and_open_is_refused(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with Root(tree.root) as root:
        # bind_socket opens a directory itself, so the trap lets other opens pass.
        genuine = os.open
        sprung: list[bool] = []

        def trapped(
            path: str | bytes,
            flags: int,
            mode: int = 0o777,
            *,
            dir_fd: int | None = None,
        ) -> int:
            if path == b"file" and not sprung:
                sprung.append(True)
                swap_file(tree, kind)
            return genuine(path, flags, mode, dir_fd=dir_fd)

        monkeypatch.setattr(os, "open", trapped)
        with pytest.raises(UnsafePathError):
            read(root, "file")
        assert sprung


def test_file_replaced_between_look_and_open_is_the_new_one(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replace() -> None:
        (tree.root / "new").write_bytes(b"newer")
        (tree.root / "new").rename(tree.root / "file")

    with Root(tree.root) as root:
        trap = Trap(monkeypatch, b"file", replace)
        assert read(root, "file") == b"newer"
        assert trap.sprung


def test_file_gone_between_look_and_open_is_missing(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Root(tree.root) as root:
        Trap(monkeypatch, b"file", (tree.root / "file").unlink)
        with pytest.raises(LocalFileError, match="no such file"):
            read(root, "file")


def test_write_after_its_directory_is_swapped_stays_inside(tree: Tree) -> None:
    before = tree.snapshot_outside()
    with Root(tree.root) as root:
        with open_remote_target(root, "sub/file", clobber=True) as file:
            file.write(b"new")
            swap_sub(tree)
            file.commit()
        with pytest.raises(UnsafePathError):
            open_remote_target(root, "sub/file", clobber=True)
    assert (tree.root / "moved" / "file").read_bytes() == b"new"
    assert tree.snapshot_outside() == before


SWAPPER = """
import os, sys
os.chdir(sys.argv[1])
print(flush=True)
while True:
    os.rename("sub", "sub.real")
    os.symlink("../outside", "sub")
    os.unlink("sub")
    os.rename("sub.real", "sub")
    os.rename("file", "file.real")
    os.symlink("../outside/file", "file")
    os.unlink("file")
    os.rename("file.real", "file")
"""


@pytest.fixture
def swapping(tree: Tree) -> Iterator[Tree]:
    """Another process swaps a directory and a file for links, all the time."""
    with subprocess.Popen(
        [sys.executable, "-c", SWAPPER, str(tree.root)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield tree
        process.kill()


def attempts(action: Callable[[], object], *, at_least: int) -> None:
    """Repeat until both outcomes were seen; only the safe error is allowed."""
    good = refused = 0
    for count in range(200_000):
        try:
            action()
            good += 1
        except LocalFileError:
            refused += 1
        if count >= at_least and good and refused:
            return
    pytest.fail(f"the race was never met: {good} good, {refused} refused")


@pytest.mark.parametrize("name", ["sub/file", "file"])
def test_reading_while_links_are_swapped_in_never_leaves_the_root(
    swapping: Tree, name: str
) -> None:
    with Root(swapping.root) as root:

        def attempt() -> None:
            assert read(root, name) == INSIDE

        attempts(attempt, at_least=4000)


def test_writing_while_links_are_swapped_in_never_leaves_the_root(
    swapping: Tree,
) -> None:
    before = swapping.snapshot_outside()
    with Root(swapping.root) as root:

        def attempt() -> None:
            with open_remote_target(root, "sub/new", clobber=True, fsync=False) as file:
                file.write(b"new")
                file.commit()

        attempts(attempt, at_least=1000)
    assert swapping.snapshot_outside() == before


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.EILSEQ, UnsafePathError),
        (errno.ENAMETOOLONG, UnsafePathError),
        (errno.ELOOP, UnsafePathError),
        (errno.ENXIO, UnsafePathError),
        (errno.EACCES, LocalFileError),
        (errno.EMFILE, LocalFileError),
        (errno.EAGAIN, LocalFileError),
        (errno.EIO, LocalFileError),
    ],
)
def test_system_errors_are_translated(
    tree: Tree,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    kind: type[LocalFileError],
) -> None:
    def failing(*_args: object, **_kwargs: object) -> os.stat_result:
        raise OSError(code, os.strerror(code), str(tree.root))

    with Root(tree.root) as root:
        for action in (read, resolve):
            with monkeypatch.context() as patch:
                patch.setattr(os, "stat", failing)
                with pytest.raises(LocalFileError) as caught:
                    action(root, "file")
            assert type(caught.value) is kind
            check_message(str(caught.value), tree)


def test_running_out_of_descriptors_is_one_line(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_fd: int) -> int:
        raise OSError(errno.EMFILE, "too many")

    with Root(tree.root) as root:
        monkeypatch.setattr(os, "dup", failing)
        with pytest.raises(LocalFileError, match="too many open files"):
            read(root, "file")


def test_names_in_messages_are_escaped_and_short() -> None:
    assert jail.display_name("a\n\x1b[31m\u202e") == r"'a\n\x1b[31m\u202e'"
    assert jail.display_name(b"\xff") == r"'\udcff'"
    assert jail.display_name("é") == "'é'"
    assert len(jail.display_name("\U000e0001" * 10_000)) < 700
    assert "..." in jail.display_name("a" * 81)


@pytest.mark.parametrize("kind", [stat.S_IFBLK, stat.S_IFCHR, 0])
def test_every_kind_has_a_name(kind: int) -> None:
    assert jail.describe_kind(kind) in {"a device", "not a regular file"}
