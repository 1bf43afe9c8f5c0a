"""Start fast and stay small: what a command does before its real work."""

import contextlib
import gc

#: mallopt's M_ARENA_MAX of glibc's malloc.h, and how many heaps we allow.
_M_ARENA_MAX = -8
_HEAPS = 2


def begin_imports() -> None:
    """Switch the garbage collector off.

    Importing makes thousands of objects that all stay; looking through them again and
    again takes a tenth of the time that a short command takes in all.
    """
    gc.disable()


def end_imports() -> None:
    """Leave what is there out of all later collections, and switch it on again."""
    gc.freeze()
    gc.enable()


def limit_heaps() -> None:
    """Let all threads share two heaps, where the C library is glibc.

    By default each thread gets a heap of its own, and each keeps the freed memory of
    the largest parts that went through it: 20 MB more after a few transfers.
    """
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _HEAPS)
