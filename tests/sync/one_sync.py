"""One sync as a program, to be killed.

Usage: python -m tests.sync.one_sync ADDRESS CERTS push|pull SOURCE DESTINATION
"""

import asyncio
import os
import sys

from rpc25519_tools.config import Config, parse_address
from rpc25519_tools.identity.store import load_identity
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.sync.client import SyncSettings, pull, push
from rpc25519_tools.sync.observer import Silence, SyncObserver
from rpc25519_tools.sync.options import SyncOptions
from rpc25519_tools.sync.records import Totals

#: What ``-a`` stands for, less what only root may do.
ARCHIVE = SyncOptions(
    recursive=True, links=True, perms=True, times=True, specials=True, group=True
)


async def one_sync(
    address: str,
    certs: str,
    way: str,
    source: str,
    destination: str,
    *,
    options: SyncOptions = ARCHIVE,
    observer: SyncObserver | None = None,
    settings: SyncSettings | None = None,
) -> Totals:
    """Push or pull one source, over as many connections as it takes."""
    config = Config(
        address=parse_address(address),
        certs_dir=certs,
        key_name="client",
        compression="s2",
    )
    identity = load_identity(certs, "client", None)

    async def connect() -> Client:
        return await Client.connect(config, identity)

    step = push if way == "push" else pull
    return await step(
        connect,
        [os.fsencode(source)],
        os.fsencode(destination),
        options,
        observer or Silence(),
        settings or SyncSettings(retry_for_s=60),
    )


if __name__ == "__main__":
    asyncio.run(one_sync(*sys.argv[1:]))
