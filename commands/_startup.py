"""Start fast: no garbage collection while modules are imported."""

import gc


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
