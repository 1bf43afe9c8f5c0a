"""The ``rpc25519`` command: all tools as subcommands, each loaded when it is used."""

import importlib

import click

from ._gostyle import OneLineGroup
from ._options import version_option

#: Subcommand -> its module, and the line that the group's help shows for it. The help
#: of the group must not import every tool to be printed.
_TOOLS = {
    "cli": ("cli", "List, push, pull, download, upload or echo files."),
    "completion": ("completion", "Print the completion script for a shell."),
    "cp": ("cp", "Copy files to or from a server."),
    "known": ("known", "List, approve and deny the keys of known peers."),
    "samesame": ("samesame", "Be server and client at the same time."),
    "selfy": ("selfy", "Make, show, verify and renew keys and certificates."),
    "srv": ("srv", "Serve files and echo calls."),
}


class LazyGroup(OneLineGroup):
    """A group whose subcommands are imported when they are called or completed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all tools."""
        return sorted(_TOOLS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one tool."""
        if cmd_name not in _TOOLS:
            return None
        module_name, _ = _TOOLS[cmd_name]
        module = importlib.import_module(f".{module_name}", __package__)
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        """Write the list of tools without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _TOOLS.items()])


@click.command(
    "rpc25519",
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@version_option
def rpc25519() -> None:
    """Secure RPC and file transfer with your own ed25519 certificates."""
