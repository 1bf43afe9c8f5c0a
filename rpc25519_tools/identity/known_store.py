"""Keeps a list of known keys, and the denied ones beside it, on disk.

Reading looks at the files each time (`list_file`: a stat each) and reads what has
changed, so that whatever an operator or a Go program does takes effect at once.

Writing is atomic and under a lock, so that no line is lost, whoever writes: each writer
takes an advisory lock on ``NAME.lock`` (the file stays), reads anew, and puts a whole
new file in place, with the old one's mode. A Go program takes no lock.

Whether a list is locked against new keys is in its mode bits alone: no write bit at all
(as the reference has it; so it holds for root too).

A list that was there once and is gone lets in whom it last named, and nobody else: it
may have been locked, and whoever takes it away shall not open a server by that. A Go
program that rewrites its list takes it away for a moment.

An object may be used by several threads at a time. All of it blocks, but reading what
has not changed takes some microseconds.
"""

import contextlib
import fcntl
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from rpc25519_tools.errors import KeyFileError, LocalFileError, PeerNotTrustedError
from rpc25519_tools.identity.known_peers import (
    DENIED_SUFFIX,
    NO_KEYS,
    KeyList,
    Knowledge,
    KnownPeer,
    PeerRole,
    Verdict,
    added,
    format_list,
    parse_list,
    removed,
)
from rpc25519_tools.identity.list_file import WRITE_BITS, ListFile, open_at_once
from rpc25519_tools.identity.outputs import Output, reason_of, write_outputs
from rpc25519_tools.identity.printable import printable

#: How long another program may hold the lock; it takes a few milliseconds.
_LOCK_TIMEOUT_S: Final = 10.0
_LOCK_POLL_S: Final = 0.005


class KnownStore:
    """A list of known keys and the list of denied keys beside it.

    Args:
        path: of the first list; the other one is ``path.denied``. Neither has to exist.
        role: whose keys they are.
    """

    def __init__(self, path: str, role: PeerRole) -> None:
        self.path = path
        self.role: PeerRole = role
        #: The path for messages.
        self.shown = printable(path)
        # The working directory may change while a server runs.
        absolute = os.path.abspath(path)
        self._known = ListFile(absolute, self.shown, strict=False)
        self._denied = ListFile(
            absolute + DENIED_SUFFIX, self.shown + DENIED_SUFFIX, strict=True
        )
        self._reading = threading.Lock()
        #: What ``knowledge`` has returned last; None at first.
        self.latest: Knowledge | None = None
        #: What the first list has said last; None as long as it was never there.
        self._last_known: KeyList | None = None

    # Reading.

    def is_gone(self) -> bool:
        """Whether the first list was there once, and was not when last looked at."""
        latest = self.latest
        return (
            latest is not None and latest.known is None and self._last_known is not None
        )

    def has_changed(self) -> bool:
        """Whether ``knowledge`` might return something new; costs two stats."""
        return self._known.has_changed() or self._denied.has_changed()

    def knowledge(self) -> Knowledge:
        """Return what the files say now; the same object as long as that is the same.

        Raises:
            KeyFileError: a file cannot be read or has a broken line.
        """
        with self._reading:
            known, locked = self._known.read()
            denied, _ = self._denied.read()
            if known is not None:
                self._last_known = known
            old = self.latest
            if (
                old is None
                or old.known is not known
                or old.denied is not (denied or NO_KEYS)
                or old.locked != locked
            ):
                self.latest = old = Knowledge(
                    role=self.role,
                    name=self.path,
                    known=known,
                    denied=denied or NO_KEYS,
                    locked=locked,
                )
            return old

    def judge(self, peer: KnownPeer) -> Verdict:
        """Decide about a peer whose certificate is good.

        Raises:
            PeerNotTrustedError: it is not to be let in, the files are not readable, or
                the first list is gone and did not have its key.
        """
        try:
            knowledge = self.knowledge()
        except KeyFileError as exc:
            raise PeerNotTrustedError(
                f"{peer.describe()} cannot be checked: {exc}"
            ) from exc
        last = self._last_known
        if knowledge.known is not None or last is None:
            return knowledge.judge(peer)
        verdict = replace(knowledge, known=last).judge(peer)
        if verdict is Verdict.FIRST_USE:
            raise PeerNotTrustedError(
                f"{peer.describe()} is not known, and {self.shown} is gone"
            )
        return verdict

    def require_usable(self) -> None:
        """Check before a server starts that it could let somebody in.

        Raises:
            KeyFileError: the list is locked and empty, cannot be read, or is broken.
        """
        knowledge = self.knowledge()
        known = knowledge.known
        if knowledge.locked and known is not None and not known.peers:
            raise KeyFileError(
                f"{self.shown} is read-only and has no keys, so that nobody could "
                "be let in: run rpc25519 known unlock (trust on first use), or "
                "rpc25519 known approve"
            )

    # Writing.

    def record(self, peers: Sequence[KnownPeer]) -> int:
        """Add peers that were met for the first time; return how many were added.

        What has become known, denied or doubtful in the meantime is left out, and if
        the list was locked or removed, everything.

        Raises:
            KeyFileError: a file cannot be read or has a broken line.
            LocalFileError: the list cannot be written.
        """
        with self._exclusive():
            knowledge = self.knowledge()
            fresh: dict[str, KnownPeer] = {}
            for peer in peers:
                with contextlib.suppress(PeerNotTrustedError):
                    if knowledge.judge(peer) is Verdict.FIRST_USE:
                        fresh.setdefault(peer.key_id, peer)
            if fresh and knowledge.known is not None:
                self._write(self._known, added(knowledge.known, fresh.values()))
                with contextlib.suppress(KeyFileError):
                    self.knowledge()  # read again here rather than in a handshake
            return len(fresh)

    def approve(self, peer: KnownPeer, *, everywhere: bool = False) -> bool:
        """Let a key in, locked list or not; make the list if there is none.

        Args:
            peer: the key, and the address that it is good for.
            everywhere: the address is not compared; any line with the key will do.

        Returns:
            Whether anything had to be changed.

        Raises:
            KeyFileError, LocalFileError: as ``record``.
        """
        with self._exclusive():
            knowledge = self.knowledge()
            known = knowledge.known or NO_KEYS
            listed = known.with_key(peer.key_id)
            places = {one.address for one in listed}
            missing = not listed if everywhere else peer.address not in places
            denied = bool(knowledge.denied.with_key(peer.key_id))
            if missing:
                self._write(self._known, added(known, [peer]))
            if denied:  # last: as long as it stands there it wins
                self._write(self._denied, removed(knowledge.denied, peer.key_id))
            return missing or denied

    def deny(self, peer: KnownPeer) -> bool:
        """Never let a key in again: move it to the list of denied keys.

        It leaves the first list, so that a Go program which uses that does not let it
        in either once the list is locked.

        Returns:
            Whether anything had to be changed.

        Raises:
            KeyFileError, LocalFileError: as ``record``.
        """
        with self._exclusive():
            knowledge = self.knowledge()
            known = knowledge.known or NO_KEYS
            missing = not knowledge.denied.with_key(peer.key_id)
            listed = known.with_key(peer.key_id)
            if missing:
                lines = listed or [peer]
                self._write(self._denied, added(knowledge.denied, lines))
            if listed:
                self._write(self._known, removed(known, peer.key_id))
            return bool(missing or listed)

    def lock(self) -> None:
        """Refuse unknown keys from now on, by taking all write bits off the list.

        Raises:
            KeyFileError: a file cannot be read or has a broken line.
            LocalFileError: there is no list, it is empty, or we may not.
        """
        with self._exclusive():
            known = self.knowledge().known
            if known is None or not known.peers:
                raise LocalFileError(
                    f"{self.shown} has no keys; locked like that nobody could be let in"
                )
            self._change_mode(lambda mode: mode & ~WRITE_BITS)

    def unlock(self) -> None:
        """Record unknown keys from now on (trust on first use); make a missing list.

        Raises:
            KeyFileError: a file cannot be read or has a broken line.
            LocalFileError: we may not.
        """
        with self._exclusive():
            if self.knowledge().known is None:
                self._write(self._known, format_list(()))
            else:
                self._change_mode(lambda mode: mode | stat.S_IWUSR)

    def _change_mode(self, change: Callable[[int], int]) -> None:
        try:
            mode = stat.S_IMODE(os.stat(self._known.path).st_mode)
            os.chmod(self._known.path, change(mode))
        except OSError as exc:
            raise LocalFileError(
                f"cannot change the mode of {self.shown}: {reason_of(exc)}"
            ) from exc

    def _write(self, file: ListFile, content: bytes) -> None:
        """Put a whole new file in place; a link stays, what it points to is replaced.

        A new list of denied keys gets the mode and owner of the first list: whoever
        reads one must be able to read the other.
        """
        parse_list(content, file.shown)  # what we could not read again is not written
        target = Path(os.path.realpath(file.path))
        with contextlib.ExitStack() as opened:
            old, like = None, None
            with contextlib.suppress(OSError):
                like = os.stat(self._known.path)
            with contextlib.suppress(OSError):
                old = opened.enter_context(open(target, "rb", opener=open_at_once))
                like = os.fstat(old.fileno())
            write_outputs(
                [Output(path=target, content=content, replace=True, like=like)]
            )
            if old is not None and like is not None:
                _keep_mode(target, like.st_mode, os.fstat(old.fileno()).st_mode)

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Keep all other writers of our kind out."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            path = os.path.realpath(self._known.path) + ".lock"
            descriptor = os.open(path, flags, 0o600)
        except (OSError, ValueError) as exc:
            raise LocalFileError(f"cannot lock {self.shown}: {reason_of(exc)}") from exc
        try:
            self._share(descriptor)
            self._wait_for_lock(descriptor)
            yield
        finally:
            os.close(descriptor)

    def _share(self, descriptor: int) -> None:
        """Give a lock file that root made to the owner of the list."""
        with contextlib.suppress(OSError):
            owner = os.stat(self._known.path)
            if os.fstat(descriptor).st_uid != owner.st_uid:
                os.fchown(descriptor, owner.st_uid, owner.st_gid)

    def _wait_for_lock(self, descriptor: int) -> None:
        give_up_at = time.monotonic() + _LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError as exc:
                if time.monotonic() > give_up_at:
                    raise LocalFileError(
                        f"cannot lock {self.shown}: another program holds the lock"
                    ) from exc
            except OSError as exc:
                raise LocalFileError(
                    f"cannot lock {self.shown}: {reason_of(exc)}"
                ) from exc
            time.sleep(_LOCK_POLL_S)


def _keep_mode(path: Path, before: int, now: int) -> None:
    """Lock a new file if an operator's chmod came when only the old one was there."""
    if before != now:
        with contextlib.suppress(OSError):
            os.chmod(path, stat.S_IMODE(now))
