"""What a fuzz target is, and how all of them are found.

A target is a function that takes bytes and may raise only errors of the project. The
modules of this folder named ``*_targets.py`` are searched: their ``TARGETS`` count; of
one without, every public function of its own that takes bytes alone. Well-formed inputs
for those stand in ``SEEDS`` of their module; text and bytes are both changed.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from rpc25519_tools.errors import Rpc25519Error
from tests.fuzz.mutators import BYTES, TEXT, Mutator


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One decoder to be fed with anything.

    Attributes:
        name: what users of ``scripts/fuzz`` call it.
        run: takes the input; returns, or raises one of ``allowed``.
        seeds: returns well-formed inputs to begin with.
        mutators: what changes inputs, those of the input's own grammar first.
        allowed: the errors that a hostile input may end in.
        max_len: longer inputs are cut.
    """

    name: str
    run: Callable[[bytes], None]
    seeds: Callable[[], Sequence[bytes]]
    mutators: tuple[Mutator, ...] = BYTES
    allowed: tuple[type[Exception], ...] = (Rpc25519Error,)
    max_len: int = 64 * 1024


def all_targets() -> dict[str, Target]:
    """Find the targets of all modules beside this one, by name."""
    found: dict[str, Target] = {}
    for entry in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if entry.name.endswith("_targets"):
            for target in targets_of(
                importlib.import_module(f"tests.fuzz.{entry.name}")
            ):
                assert target.name not in found, target.name
                found[target.name] = target
    return found


def targets_of(module: ModuleType) -> list[Target]:
    """Return the targets of one module."""
    declared: Sequence[Target] | None = getattr(module, "TARGETS", None)
    if declared is not None:
        return list(declared)
    subject = module.__name__.rpartition(".")[2].removesuffix("_targets")
    seeds = tuple(getattr(module, "SEEDS", _FALLBACKS.get(subject, (b"", bytes(64)))))
    return [
        Target(
            name=f"{subject}:{name}",
            run=function,
            seeds=lambda: seeds,
            mutators=TEXT,
        )
        for name, function in vars(module).items()
        if not name.startswith("_") and _takes_bytes(function, module)
    ]


_ID = b"9ZWZYQmC262jcpxETnEhHmuUDs4TdSWz5PXmXRYjyJoACSF29qs"
_KEY = b"pubkey@edwardsRPC-ed25519-b58c-" + _ID
#: Seeds of modules that bring none, by their subjects.
_FALLBACKS: dict[str, tuple[bytes, ...]] = {
    "known": (
        b"# known_pub_keys file: address pubkey-identity-string\n"
        b"127.0.0.1 " + _KEY + b":a@b\n",
        b"::1 " + _KEY + b":\n\n# a remark\n"
        b"10.0.0.1:8443  " + _KEY + b":a@b,c@d:more\nalone\n",
        _ID,
    ),
}


def _takes_bytes(value: object, module: ModuleType) -> bool:
    if not inspect.isfunction(value) or value.__module__ != module.__name__:
        return False
    parameters = list(inspect.signature(value).parameters.values())
    return len(parameters) == 1 and parameters[0].annotation in (bytes, "bytes")
