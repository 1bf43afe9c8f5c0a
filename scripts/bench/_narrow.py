"""Run ``srv`` or ``cli`` as if the path took no longer datagrams than Ethernet's.

Usage: _narrow.py cli|srv ARGUMENTS...
"""

import importlib
import sys

from rpc25519_tools.transport import quic_mtu

#: A frame of 1500 bytes less the headers of IPv6 and UDP; what Go peers use.
ETHERNET_LEN = 1452


def main() -> None:
    sizes = [size for size in quic_mtu._SIZES if size <= ETHERNET_LEN]
    quic_mtu.PathMtu.__init__.__defaults__ = (sizes,)
    name = sys.argv.pop(1)
    command = getattr(importlib.import_module(f"rpc25519_tools.commands.{name}"), name)
    command()


if __name__ == "__main__":
    main()
