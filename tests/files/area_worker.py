"""A process that uses an area until it is killed; run by ``test_area_leftovers.py``.

Usage: area_worker.py DIRECTORY SEED ROUNDS. Each key has its own endless content, so
that whatever is found in a partial or under a final name can be checked.
"""

import os
import random
import sys
import time

from rpc25519_tools.files.area import Partial, PartialArea
from tests.files.areas import publish

KEYS = 3
WHOLE_LEN = 20_000


def content(key: int, length: int) -> bytes:
    return random.Random(key).randbytes(WHOLE_LEN)[:length]


def carry_on(partial: Partial, key: int, rng: random.Random) -> bool:
    """Write some more; tell whether it is whole."""
    found = os.pread(partial.fd, WHOLE_LEN + 1, 0)
    assert found == content(key, len(found)), f"partial of {key} is not its own"
    more = content(key, WHOLE_LEN)[len(found) :][: rng.randrange(1, 9000)]
    os.pwrite(partial.fd, more, len(found))
    return len(found) + len(more) == WHOLE_LEN


def main(directory: str, seed: int, rounds: int) -> None:
    rng = random.Random(seed)
    dir_fd = os.open(directory, os.O_RDONLY)
    for _ in range(rounds):
        with PartialArea.open(dir_fd) as area:
            for _ in range(rng.randrange(4)):
                key = rng.randrange(KEYS)
                if rng.random() < 0.3:
                    scratch = area.scratch()
                    os.write(scratch.fd, content(key, WHOLE_LEN))
                    if rng.random() < 0.5:
                        publish(scratch, dir_fd, b"final-%d" % key)
                    elif rng.random() < 0.5:
                        scratch.discard()
                    else:
                        scratch.close_fd()
                elif (partial := area.acquire(b"%d" % key)) is not None:
                    if carry_on(partial, key, rng):
                        publish(partial, dir_fd, b"final-%d" % key)
                    elif rng.random() < 0.1:
                        partial.discard()
                    else:
                        partial.keep()
            if rng.random() < 0.2:
                area.sweep(time.time() + 10**9)
    os.close(dir_fd)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
