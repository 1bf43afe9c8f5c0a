"""The ``completion`` subcommand: completion scripts for bash, zsh and fish."""

from typing import Final

import click

from ._errors import reporting_errors
from ._gostyle import GoStyleCommand

#: Every installed program.
PROGRAMS: Final = ("cli", "rpc25519", "samesame", "selfy", "srv")
SHELLS: Final = ("bash", "fish", "zsh")

#: In place of click's own, which takes words as bash cuts them: ``zstd:0`` is three
#: words for bash, ``-press=s2`` too, and only the last one is what it replaces.
_BASH: Final = r"""
%(complete_func)s() {
    local IFS=$'\n'
    local rest=$COMP_LINE before word last prefix= response type value i
    local -a words=()

    for ((i = 0; i <= COMP_CWORD; i++)); do
        before=$rest
        rest=${rest#"${rest%%%%[![:space:]]*}"}
        word=${COMP_WORDS[i]}
        if ((i > 0)) && [[ $before == "$rest" ]]; then
            words[${#words[@]} - 1]+=$word
        else
            words+=("$word")
        fi
        rest=${rest#"$word"}
    done
    last=${words[${#words[@]} - 1]}

    response=$(env COMP_WORDS="${words[*]}" COMP_CWORD=$((${#words[@]} - 1)) \
        %(complete_var)s=bash_complete "$1")

    if [[ $last == -*=* && $COMP_WORDBREAKS != *=* ]]; then
        prefix=${last%%%%=*}=
    fi
    last=${last#-*=}
    for word in $response; do
        IFS=',' read -r type value <<< "$word"

        if [[ $type == 'dir' ]]; then
            COMPREPLY=()
            compopt -o dirnames
        elif [[ $type == 'file' ]]; then
            COMPREPLY=()
            compopt -o default
        elif [[ $type == 'plain' ]]; then
            if [[ $COMP_WORDBREAKS == *:* ]]; then
                value=${value#"${last%%"${last##*:}"}"}
            fi
            COMPREPLY+=("$prefix$value")
        fi
    done

    return 0
}

%(complete_func)s_setup() {
    complete -o nosort -F %(complete_func)s %(prog_name)s
}

%(complete_func)s_setup;
"""

#: In place of click's own, which puts the value of ``--press=`` over the whole word,
#: and which, when zsh loads it from ``fpath``, offers nothing at the second TAB.
_ZSH: Final = r"""
#compdef %(prog_name)s

%(complete_func)s() {
    local -a completions completions_with_descriptions response
    local type key descr
    (( ! $+commands[%(prog_name)s] )) && return 1

    response=("${(@f)$(env COMP_WORDS="${words[*]}" COMP_CWORD=$((CURRENT-1)) \
        %(complete_var)s=zsh_complete %(prog_name)s)}")

    [[ $words[CURRENT] == -*=* ]] && compset -P '*='

    for type key descr in ${response}; do
        if [[ "$type" == "plain" ]]; then
            if [[ "$descr" == "_" ]]; then
                completions+=("$key")
            else
                completions_with_descriptions+=("$key":"$descr")
            fi
        elif [[ "$type" == "dir" ]]; then
            _path_files -/
        elif [[ "$type" == "file" ]]; then
            _path_files -f
        fi
    done

    if [ -n "$completions_with_descriptions" ]; then
        _describe -V unsorted completions_with_descriptions -U
    fi

    if [ -n "$completions" ]; then
        compadd -V unsorted -a completions
    fi
}

if [[ $funcstack[1] == _%(prog_name)s ]]; then
    # autoload from fpath: this file is the body of a function
    %(complete_func)s "$@"
else
    # eval/source/. command, register function for later
    compdef %(complete_func)s %(prog_name)s
fi
"""


def completion_script(shell: str, program: str) -> str:
    """Return the script that completes one program in one shell."""
    from click.shell_completion import get_completion_class

    completer_class = get_completion_class(shell)
    assert completer_class is not None
    variable = f"_{program.upper()}_COMPLETE"
    completer = completer_class(click.Command(program), {}, program, variable)
    # Not completer.source(), which starts a bash to ask for its version.
    own = {"bash": _BASH, "zsh": _ZSH}
    template = own.get(shell, completer.source_template)
    text: str = template % completer.source_vars()
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
