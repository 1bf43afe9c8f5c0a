"""The ``completion`` subcommand: completion scripts for bash, zsh and fish."""

from typing import Final

import click

from ._errors import reporting_errors
from ._gostyle import GoStyleCommand

#: Every installed program.
PROGRAMS: Final = ("cli", "rpc25519", "samesame", "selfy", "srv")
SHELLS: Final = ("bash", "fish", "zsh")


def completion_script(shell: str, program: str) -> str:
    """Return the script that completes one program in one shell."""
    from click.shell_completion import get_completion_class

    completer_class = get_completion_class(shell)
    assert completer_class is not None
    variable = f"_{program.upper()}_COMPLETE"
    completer = completer_class(click.Command(program), {}, program, variable)
    # Not completer.source(), which starts a bash to ask for its version.
    text: str = completer.source_template % completer.source_vars()
    return "\n".join(line.rstrip() for line in text.strip().splitlines()) + "\n"


@click.command("completion", cls=GoStyleCommand)
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the script that completes all commands in SHELL.

    Load it in the shell's start file: eval "$(rpc25519 completion bash)" for bash or
    zsh; rpc25519 completion fish | source for fish.
    """
    with reporting_errors("rpc25519 completion"):
        for program in PROGRAMS:
            click.echo(completion_script(shell, program), nl=False)
