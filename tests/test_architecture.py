"""Imports point downwards, and the sans-IO modules know no I/O."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
PACKAGE = "rpc25519_tools"

#: Where the files of each package lie.
FOLDERS = {PACKAGE: PROJECT / PACKAGE, f"{PACKAGE}.commands": PROJECT / "commands"}

#: The layers from top to bottom; each may use those below it, and itself.
LAYERS = [
    "commands",
    "sync",
    "files",
    "blocking",
    "rpc",
    "transport",
    "identity",
    "greenpack",
    "wire",
    "config",
    "limits",
]
#: What every layer may use.
BELOW_ALL = {"errors", ""}

#: What no sans-IO module may use, directly or by way of another of our modules.
IO_MODULES = {
    "asyncio",
    "click",
    "concurrent",
    "multiprocessing",
    "pathlib",
    "rich",
    "secrets",
    "select",
    "selectors",
    "signal",
    "socket",
    "ssl",
    "subprocess",
    "tempfile",
    "time",
}
#: Modules outside the sans-IO core, as the linter's settings have them too.
WITH_IO = {
    "identity.access_store": "reads the access file, and clocks",
    "identity.issue": "writes what it has made, by way of identity.outputs",
    "identity.known_store": "reads and writes files, locks them, reads the clock",
    "identity.renew": "likewise",
    "identity.status": "names the type of what identity.store has loaded",
    "identity.watch": "looks at files, by way of identity.store",
    "identity.pre_shared_key": "reads a file, by way of identity.store",
    "identity.list_file": "reads files, and the clock",
    "identity.outputs": "writes files",
    "identity.store": "reads files",
    "rpc.client": "",
    "rpc.client_stream": "",
    "rpc.connection": "",
    "rpc.context": "reads the monotonic clock, and wakes threads",
    "rpc.deadlines": "",
    "rpc.driver": "",
    "rpc.failures": "asks for the running task",
    "rpc.held": "asks a socket",
    "rpc.outbox": "",
    "rpc.identity_watch": "",
    "rpc.handlers": "runs plain handlers in threads",
    "rpc.known": "watches files",
    "rpc.liveness": "",
    "rpc.methods": "runs handlers",
    "rpc.netrpc_client": "",
    "rpc.pushes": "",
    "rpc.reconnect": "",
    "rpc.registry": "names the types of handlers",
    "rpc.running": "",
    "rpc.server": "",
    "rpc.streams": "",
    "rpc.tunnels": "reads a file, by way of identity.store",
    "rpc.turns": "lets streams wait for each other",
}


@cache
def modules() -> dict[str, Path]:
    """Return the dotted name, below the package, of every module, and its file."""
    found = {}
    for package, folder in FOLDERS.items():
        prefix = package.removeprefix(PACKAGE).lstrip(".")
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            if parts[-1] == "__init__":
                parts = parts[:-1]
            found[".".join(filter(None, (prefix, *parts)))] = path
    return found


def _is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _nodes(node: ast.AST, *, at_run_time: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if at_run_time and _is_for_types_only(child):
            continue
        yield child
        yield from _nodes(child, at_run_time=at_run_time)


@cache
def imports(module: str, *, at_run_time: bool = False) -> frozenset[str]:
    """Return the absolute names of all that a module imports, wherever in it."""
    path = modules()[module]
    package = f"{PACKAGE}.{module}".rstrip(".")
    if path.name != "__init__.py":
        package = package.rpartition(".")[0]
    names: set[str] = set()
    for node in _nodes(ast.parse(path.read_text()), at_run_time=at_run_time):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                up = ".".join(parts[: len(parts) - node.level + 1])
                base = f"{up}.{base}".rstrip(".")
            names |= {base} | {
                f"{base}.{alias.name}"
                for alias in node.names
                if _ours(f"{base}.{alias.name}") in modules()
            }
    return frozenset(names)


def _ours(name: str) -> str | None:
    """Return a dotted name below the package, None for the modules of others."""
    if name == PACKAGE:
        return ""
    return name.removeprefix(f"{PACKAGE}.") if name.startswith(f"{PACKAGE}.") else None


def our_imports(module: str, *, at_run_time: bool = False) -> set[str]:
    names = map(_ours, imports(module, at_run_time=at_run_time))
    return {name for name in names if name is not None and name in modules()}


def layer_of(module: str) -> str:
    return module.partition(".")[0]


def sans_io_modules() -> list[str]:
    layers = {"identity", "rpc", "wire", "config", "errors"}
    return [
        name for name in modules() if layer_of(name) in layers and name not in WITH_IO
    ]


def test_the_walk_finds_the_modules() -> None:
    assert {"", "errors", "wire.framing", "commands.srv"} <= set(modules())
    assert "wire.message" in our_imports("wire.framing")
    assert "commands._output" in our_imports("commands.srv")
    assert "asyncio" in imports("rpc.driver")


@pytest.mark.parametrize("module", [name for name in modules() if name])
def test_imports_point_downwards(module: str) -> None:
    layer = layer_of(module)
    allowed = {layer} | BELOW_ALL
    if layer in LAYERS:
        allowed |= set(LAYERS[LAYERS.index(layer) :])
    for imported in our_imports(module):
        assert layer_of(imported) in allowed, f"{module} imports {imported}"


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module in done:
            return
        for imported in our_imports(module, at_run_time=True) - {""}:
            visit(imported, (*path, module))
        done.add(module)

    for module in modules():
        if module:
            visit(module, ())


@pytest.mark.parametrize("module", sans_io_modules())
def test_sans_io_modules_import_no_io(module: str) -> None:
    for name in imports(module):
        assert name.partition(".")[0] not in IO_MODULES, f"{module} imports {name}"


@pytest.mark.parametrize("module", sans_io_modules())
def test_sans_io_modules_use_no_module_that_does_io(module: str) -> None:
    assert not our_imports(module) & set(WITH_IO)


def test_every_exception_from_the_rule_exists() -> None:
    assert set(WITH_IO) <= set(modules())


def test_the_linter_knows_the_same_exceptions() -> None:
    settings = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    ignores = settings["tool"]["ruff"]["lint"]["per-file-ignores"]
    free = {
        pattern.removeprefix(f"{PACKAGE}/").removesuffix(".py").replace("/", ".")
        for pattern, codes in ignores.items()
        if "TID251" in codes and pattern.startswith(f"{PACKAGE}/")
    }
    banned = set(settings["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"])
    assert {"asyncio", "socket", "ssl", "time", "secrets", "click", "rich"} <= banned
    for module in sans_io_modules():
        assert module not in free


@pytest.mark.parametrize(
    ("library", "users"),
    [
        ("msgpack", {"wire.greenpack"}),
        ("OpenSSL", {"transport.tls", "transport.tls_records"}),
        ("lz4", {"wire.codecs"}),
        ("zstandard", {"wire.codecs"}),
        ("click", None),
        ("rich", None),
    ],
)
def test_each_library_is_used_in_its_place_only(
    library: str, users: set[str] | None
) -> None:
    found = {
        module
        for module in modules()
        if any(name.partition(".")[0] == library for name in imports(module))
    }
    if users is None:
        assert found
        assert {layer_of(module) for module in found} == {"commands"}
    else:
        assert found == users


def loaded_after(statement: str) -> set[str]:
    """Run one statement in a new interpreter; return the modules it loads."""
    program = (
        "import sys; before = set(sys.modules)\n"
        f"{statement}\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(result.stdout.split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    ours = {name for name in modules() if not name.startswith("commands")}
    loaded = loaded_after(f"import {PACKAGE}")
    roots = {name.partition(".")[0] for name in loaded}
    assert not roots & (IO_MODULES - {"time", "pathlib"})
    assert not roots & {"cryptography", "OpenSSL", "msgpack", "zstandard", "blake3"}
    assert not {f"{PACKAGE}.{name}" for name in ours if name} & loaded


@pytest.mark.parametrize(
    "module", ["wire.framing", "rpc.client_core", "rpc.server_core", "config"]
)
def test_importing_the_core_loads_no_network(module: str) -> None:
    loaded = loaded_after(f"import {PACKAGE}.{module}")
    assert not loaded & {"asyncio", "socket", "ssl", "OpenSSL", "click", "rich"}


def test_every_module_can_be_imported_first() -> None:
    names = [f"{PACKAGE}.{name}".rstrip(".") for name in modules()]
    program = (
        "import importlib, sys\n"
        "kept = {n for n in sys.modules}\n"
        "for name in sys.argv[1:]:\n"
        f"    for n in [n for n in sys.modules if n.startswith('{PACKAGE}')]:\n"
        "        del sys.modules[n]\n"
        "    importlib.import_module(name)\n"
    )
    subprocess.run([sys.executable, "-c", program, *names], check=True)
