"""The library for programs without asyncio.

The same calls, made from any thread; the work is done by one event loop in a thread of
its own. After a fork the child makes connections of its own.
"""

from rpc25519_tools.blocking.client import BlockingClient
from rpc25519_tools.blocking.server import BlockingServer
from rpc25519_tools.blocking.streams import BlockingPushes, BlockingStream

__all__ = ["BlockingClient", "BlockingPushes", "BlockingServer", "BlockingStream"]
