"""Where a sync goes to: the directory that a destination's name means.

As with cp and rsync: one thing that is no directory may get a new name, unless the
destination is a directory or its name ends in a slash; everything else goes into the
destination, which is made where it is missing.

All of this blocks.
"""

import contextlib
import os
import stat
from dataclasses import dataclass

from rpc25519_tools.errors import LocalFileError, UnsafePathError
from rpc25519_tools.files.area import PartialArea
from rpc25519_tools.files.jail import describe_kind, display_name, file_error
from rpc25519_tools.sync.destination import Destination
from rpc25519_tools.sync.options import SyncOptions
from rpc25519_tools.sync.tree import Parts, Tree, check_component, shown, split_path


@dataclass(slots=True)
class OpenPlace:
    """An open destination; close it.

    Attributes:
        destination: where things go.
        area: for what is unfinished; None in a dry run.
        rename: the new name of the only thing that comes; None: its own.
        is_new: whether the destination had to be made, or in a dry run would have.
    """

    destination: Destination
    area: PartialArea | None
    rename: bytes | None
    is_new: bool

    def close(self) -> None:
        """Close what is open; what is unfinished was kept or dropped before."""
        if self.area is not None:
            self.area.close()
        self.destination.close()


def open_place(
    tree: Tree,
    dest: bytes,
    options: SyncOptions,
    *,
    single: bool,
    privileged: bool,
    area_at_root: bool,
    owner: bytes = b"",
) -> OpenPlace:
    """Open a destination beneath a tree.

    Args:
        tree: the served directory, or the one that a local path begins from.
        dest: relative to it.
        options: of the sync.
        single: whether one thing comes that is no directory.
        privileged: whether the sender may set owners and the like.
        area_at_root: whether the tree's root holds the area, if we may write to it,
            and not the destination.
        owner: who unfinished files belong to; see Destination.

    Raises:
        UnsafePathError, LocalFileError: it is not possible, allowed, or there.
        OSError: the system refused a step.
    """
    parts = split_path(dest)
    rename = None
    is_slash = dest.endswith((b"/", b"/.", b"/..")) or not parts
    if single and not is_slash and not tree.is_directory(parts):
        *above, rename = parts
        parts = tuple(above)
    here, is_new = _reach(tree, parts, options)
    # Whoever may only write to a directory beneath has no use for an area above it.
    area_at_root = area_at_root and _is_writable(tree)
    area = None
    try:
        if not options.dry_run:
            area = PartialArea.open(
                (tree if area_at_root else here).top.fd, takes_over=True
            )
        destination = Destination(
            here,
            area,
            options,
            privileged=privileged,
            # Another attempt may find the destination made, and open it directly.
            below_area=here.at if area_at_root else (),
            owner=owner,
        )
    except BaseException:
        if area is not None:
            area.close()
        raise
    return OpenPlace(destination, area, rename, is_new)


def open_local_place(dest: bytes, options: SyncOptions, *, single: bool) -> OpenPlace:
    """Open a destination that the local user has named; links to it are followed.

    Raises:
        LocalFileError: it is not possible, or not permitted.
        OSError: the system refused a step.
    """
    if b"\0" in dest:
        raise LocalFileError(f"{display_name(dest)} is not a possible name")
    base = dest or b"."
    if os.path.isdir(base):
        tree = Tree.local(base)
        return open_place(
            tree, b"", options, single=False, privileged=True, area_at_root=False
        )
    missing: list[bytes] = []
    if single and not base.endswith(b"/"):
        base = _followed(base)
    base = base.rstrip(b"/") or b"/"
    while base and not os.path.isdir(base):
        if os.path.lexists(base) and not (single and not missing):
            raise LocalFileError(
                f"cannot write into {display_name(base)}: it is no directory"
            )
        base, name = os.path.split(base)
        if name in (b"..", b"."):
            raise LocalFileError(f"no such directory: {display_name(dest)}")
        missing.insert(0, name)
        check_component(name, dest)
        base = base.rstrip(b"/") or (b"/" if base.startswith(b"/") else b"")
    tree = Tree.local(base)
    rest = b"/".join(missing)
    if dest.endswith(b"/"):
        rest += b"/"
    return open_place(
        tree, rest, options, single=single, privileged=True, area_at_root=False
    )


def _is_writable(tree: Tree) -> bool:
    effective = os.access in os.supports_effective_ids
    mode = os.W_OK | os.X_OK
    return os.access(b".", mode, dir_fd=tree.top.fd, effective_ids=effective)


def _reach(tree: Tree, parts: Parts, options: SyncOptions) -> tuple[Tree, bool]:
    """Return the tree of a directory, made where it is missing; whether it was."""
    is_new = False
    for depth in range(1, len(parts) + 1):
        here = parts[:depth]
        above = tree.directory(here[:-1])
        try:
            status = os.stat(here[-1], dir_fd=above.fd, follow_symlinks=False)
        except FileNotFoundError:
            tree.check(here)
            if not tree.may("write", here):
                text = f"writing {shown(here)!r} is not allowed"
                raise UnsafePathError(text) from None
            if options.dry_run:
                return tree.beneath(here[:-1]), True
            is_new = True
            try:
                os.mkdir(here[-1], 0o777, dir_fd=above.fd)
            except FileExistsError:
                pass  # somebody else was quicker
            except OSError as exc:
                raise file_error(exc, "make directory", shown(here)) from exc
            continue
        except OSError as exc:
            raise file_error(exc, "open directory", shown(here)) from exc
        if not stat.S_ISDIR(status.st_mode):
            raise LocalFileError(
                f"cannot write into {display_name(shown(here))}: it is no directory"
            )
    return tree.beneath(parts), is_new


def _followed(path: bytes) -> bytes:
    """Return the name of a local file where links have led to it.

    Raises:
        LocalFileError: it is a device, as ``/dev/null`` is, a FIFO or a socket, which
            no file is to replace.
    """
    with contextlib.suppress(OSError):  # it is missing, or the next step will tell
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            raise LocalFileError(
                f"cannot write {display_name(path)}: it is {describe_kind(mode)}"
            )
    return os.path.realpath(path) if os.path.islink(path) else path
