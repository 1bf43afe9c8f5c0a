"""Which UDP sockets a process has, as Linux tells it."""

import os
import socket
import struct


def udp_ports_of(pid: int | str = "self") -> set[str]:
    """Return the addresses of all UDP sockets of a process, as HOST:PORT.

    Raises:
        AssertionError: two of its sockets have the same one.
    """
    inodes = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue  # closed by now
        if target.startswith("socket:["):
            inodes.add(target.removeprefix("socket:[").removesuffix("]"))
    found: list[str] = []
    for table in ("udp", "udp6"):
        with open(f"/proc/{pid}/net/{table}") as file:
            for line in list(file)[1:]:
                fields = line.split()
                if fields[9] in inodes:
                    found.append(_address(fields[1]))
    assert len(found) == len(set(found)), found
    return set(found)


def _address(text: str) -> str:
    """Read an address of such a table: words of the machine's order, and a port."""
    host, port = text.split(":")
    words = [int(host[start : start + 8], 16) for start in range(0, len(host), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    shown = socket.inet_ntop(family, packed)
    return f"[{shown}]:{int(port, 16)}" if ":" in shown else f"{shown}:{int(port, 16)}"
