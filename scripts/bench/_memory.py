"""Memory that stays with the machine while something is measured.

A virtual machine may give memory that has been free for a fraction of a second back to
its host, 2 MiB at a time. Getting it again costs several times what writing to it does,
and strikes at random: uploads of one gibibyte then take between 1.5 and 3.5 s.

Run as a program, ``_memory.py BYTES`` holds the memory until its input ends. It is a
process of its own because a child's peak memory begins with that of its parent.
"""

import contextlib
import mmap
import subprocess
import sys
from collections.abc import Iterator

#: The unit in which free memory is given back: a huge page of x86-64 and arm64.
_BLOCK_LEN = 2 << 20


@contextlib.contextmanager
def steady_memory(wanted_bytes: int) -> Iterator[None]:
    """Keep about ``wanted_bytes`` free in pieces too small to be given back.

    One page of each block is held, the others are free for whoever needs memory next:
    the kernel takes pieces of broken blocks before it breaks whole ones.
    """
    with subprocess.Popen(
        [sys.executable, __file__, str(wanted_bytes)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        if not holder.stdout.readline():
            raise SystemExit("not enough memory to measure in")
        try:
            yield
        finally:
            holder.stdin.close()


def _hold(wanted_bytes: int) -> None:
    page = mmap.PAGESIZE
    with mmap.mmap(
        -1, wanted_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    ) as memory:
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            memory.madvise(mmap.MADV_NOHUGEPAGE)
        for offset in range(0, wanted_bytes, page):
            memory[offset] = 1
        for offset in range(0, wanted_bytes, _BLOCK_LEN):
            memory.madvise(mmap.MADV_DONTNEED, offset + page, _BLOCK_LEN - page)
        print("ready", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    _hold(int(sys.argv[1]))
