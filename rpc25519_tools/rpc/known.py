"""Holds the peers of a client or a server against a list of known keys.

It is asked in each handshake, records keys that are new once the peer has proved that
it has them, and, for a server, watches the lists: who has been denied, or has been
taken off a locked list, loses its connection within a second.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final
from weakref import WeakValueDictionary

from rpc25519_tools.config import Config
from rpc25519_tools.errors import (
    KeyFileError,
    LocalFileError,
    PeerNotTrustedError,
)
from rpc25519_tools.identity.certificate import PeerIdentity
from rpc25519_tools.identity.known_peers import Knowledge, KnownPeer, PeerRole, Verdict
from rpc25519_tools.identity.known_store import KnownStore
from rpc25519_tools.rpc.driver import Driver

_log = logging.getLogger(__name__)

#: How often a server looks at its lists; two stats each time.
WATCH_INTERVAL_S: Final = 0.25


def known_guard(config: Config, role: PeerRole) -> "KnownGuard | None":
    """Return what checks peers of this role.

    None where no list is to be used, or where no peer proves who it is: that takes TLS
    that verifies, or a pre-shared-key tunnel.
    """
    proves = config.uses_tls and config.verify_peer
    proves = proves or config.pre_shared_key_path is not None
    if config.known_keys_path is None or not proves:
        return None
    return KnownGuard(shared_store(config.known_keys_path, role))


_shared: WeakValueDictionary[tuple[str, str, PeerRole], KnownStore] = (
    WeakValueDictionary()
)


def shared_store(path: str | os.PathLike[str], role: PeerRole) -> KnownStore:
    """Return the one object that this process has for a list.

    As long as somebody holds it, it is known what the list has said last, should it go
    away between two connections.
    """
    name = os.fspath(path)
    key = (name, os.path.abspath(name), role)
    store = _shared.get(key)
    if store is None:
        store = _shared[key] = KnownStore(name, role)
    return store


class KnownGuard:
    """A PeerCheck that goes by a list of known keys; close it when done.

    Args:
        store: the list.
    """

    def __init__(self, store: KnownStore) -> None:
        self._store = store
        self._new: dict[str, KnownPeer] = {}
        self._recording: asyncio.Task[None] | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._drivers: Callable[[], Iterable[Driver]] = tuple
        self._watching = False
        self._timer: asyncio.TimerHandle | None = None
        self._reading: asyncio.Task[None] | None = None
        self._seen: Knowledge | None = None
        self._complaint = ""
        #: How often in a row the list was gone when looked at.
        self._looks_in_vain = 0

    # Called by transports.

    def check(self, peer: PeerIdentity, host: str) -> None:
        """Judge a peer in its handshake; see PeerCheck."""
        self._store.judge(KnownPeer.of(peer, host))

    def proven(self, peer: PeerIdentity, host: str) -> None:
        """Judge it again, and have its key recorded if that is new; see PeerCheck."""
        entry = KnownPeer.of(peer, host)
        if self._store.judge(entry) is not Verdict.FIRST_USE:
            return
        self._new[entry.key_id] = entry
        if self._recording is None:
            self._recording = asyncio.get_running_loop().create_task(self._record())

    async def _record(self) -> None:
        """Write down all that wait; those that come meanwhile are the next batch."""
        loop = asyncio.get_running_loop()
        try:
            while self._new:
                batch = list(self._new.values())
                self._new.clear()
                try:
                    await loop.run_in_executor(self._pool(), self._store.record, batch)
                except (KeyFileError, LocalFileError) as exc:
                    # As ssh does: the peer is let in all the same, as a new one.
                    _log.warning("new keys (%d) were not recorded: %s", len(batch), exc)
        finally:
            self._recording = None

    async def flush(self) -> None:
        """Wait until all new keys are on the disk."""
        if self._recording is not None:
            await asyncio.shield(self._recording)

    # Called by servers.

    async def require_usable(self) -> None:
        """Check that the list lets anybody in at all.

        Raises:
            KeyFileError: it is locked and empty, or cannot be read.
        """
        await asyncio.to_thread(self.require_usable_now)

    def require_usable_now(self) -> None:
        """Check as ``require_usable`` does, and block meanwhile."""
        self._store.require_usable()

    def watch(self, drivers: Callable[[], Iterable[Driver]]) -> None:
        """Begin to watch the lists.

        Args:
            drivers: returns those of the connections that are open.
        """
        self._drivers = drivers
        self._watching = True
        self._look()

    def stop_watching(self) -> None:
        """Look no more."""
        self._watching = False
        if self._timer is not None:
            self._timer.cancel()
        if self._reading is not None:
            self._reading.cancel()

    async def aclose(self) -> None:
        """Stop watching, and wait until all new keys are on the disk."""
        self.stop_watching()
        try:
            await self.flush()
        finally:
            if self._threads is not None:
                self._threads.shutdown(wait=False)
                self._threads = None

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        self._looks_in_vain = self._looks_in_vain + 1 if self._store.is_gone() else 0
        if self._looks_in_vain == 2:  # at once would be too early: Go rewrites slowly
            _log.warning(
                "%s is gone; until it is back, clients that were not in it are refused",
                self._store.shown,
            )
        # Handshakes read too: what has changed may have been read already.
        if self._store.has_changed() or self._store.latest is not self._seen:
            self._reading = loop.create_task(self._read())
        else:
            self._timer = loop.call_later(WATCH_INTERVAL_S, self._look)

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            now = await loop.run_in_executor(self._pool(), self._store.knowledge)
            self._complaint = ""
            if now is not self._seen:
                self._seen = now
                self._cut(now)
        except KeyFileError as exc:
            # Nobody new is let in; who is connected was judged by a list that was good.
            if str(exc) != self._complaint:
                _log.warning("all clients are refused until this is put right: %s", exc)
            self._complaint = str(exc)
        finally:
            self._reading = None
            if self._watching:
                self._timer = loop.call_later(WATCH_INTERVAL_S, self._look)

    def _cut(self, now: Knowledge) -> None:
        """End the connections of peers that would not be let in any more."""
        for driver in list(self._drivers()):
            transport = driver.transport
            if transport.peer is None:
                continue
            try:
                now.judge(KnownPeer.of(transport.peer, transport.remote_address))
            except PeerNotTrustedError as exc:
                driver.abort(exc)

    def _pool(self) -> ThreadPoolExecutor:
        """Return threads of our own: files of others may keep the usual ones busy."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(2, thread_name_prefix="known-keys")
        return self._threads
