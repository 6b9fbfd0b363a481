"""``pllm completion``: a script for bash, zsh or fish, made of the commands' own parsers.

source <(pllm completion bash)
"""

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from pllm.cli import COMMANDS

__all__ = ["add_arguments", "main"]


@dataclass(frozen=True, slots=True)
class Flag:
    """``choices``: what it may be set to, where that is a list."""

    name: str
    help: str
    choices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Line:
    """A command, or one of its own commands: the words that lead there, what may follow."""

    words: tuple[str, ...]
    help: str
    flags: tuple[Flag, ...]
    commands: tuple[str, ...] = ()

    @property
    def next_words(self) -> tuple[str, ...]:
        """All that may follow, commands first."""
        return (*self.commands, *(flag.name for flag in self.flags))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The shell."""
    parser.add_argument("shell", choices=sorted(_SHELLS))


def main(args: argparse.Namespace) -> int:
    """Prints the script."""
    print(_SHELLS[args.shell](_lines()), end="")
    return 0


def _lines() -> list[Line]:
    lines = [Line((), "", (Flag("--version", "the version", ()), _HELP), tuple(COMMANDS))]
    for name, command in COMMANDS.items():
        parser = argparse.ArgumentParser()
        try:
            import_module(command.module).add_arguments(parser)
        except ModuleNotFoundError:  # a part of pllm that is not installed: its name is completed, no more
            lines.append(Line((name,), command.help, ()))
        else:
            lines += _lines_of(parser, (name,), command.help)
    return lines


def _lines_of(parser: argparse.ArgumentParser, words: tuple[str, ...], text: str) -> list[Line]:
    flags: list[Flag] = [_HELP]
    below: list[Line] = []
    commands: list[str] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, sub in action.choices.items():
                below += _lines_of(sub, (*words, name), helps.get(name, ""))
        elif action.help != argparse.SUPPRESS and not isinstance(action, argparse._HelpAction):
            longest = max(action.option_strings, key=len, default="")
            choices = tuple(map(str, action.choices or ()))
            if longest:
                flags.append(Flag(longest, _first_words(action.help), choices))
            else:
                commands += choices
    commands += [line.words[-1] for line in below if len(line.words) == len(words) + 1]
    return [Line(words, text, tuple(flags), tuple(commands)), *below]


def _first_words(text: str | None) -> str:
    """A help line without what argparse would fill in, and without quotes that a shell would read."""
    return re.sub(r"\s*\(.*|[;'\"`$\\].*", "", text or "")


def _bash(lines: list[Line]) -> str:
    """Also what zsh reads, by its own emulation of bash's completion."""
    cases = "\n".join(f"        '{' '.join(line.words)}') words='{' '.join(line.next_words)}' ;;" for line in lines)
    choices = {
        f"{' '.join(line.words)} {flag.name}": " ".join(flag.choices)
        for line in lines
        for flag in line.flags
        if flag.choices
    }
    values = "\n".join(f"        '{place}') words='{words}' ;;" for place, words in choices.items())
    known = "|".join(f"'{' '.join(line.words)}'" for line in lines if line.words)
    return f"""\
# bash completion for pllm, written by: pllm completion bash
_pllm() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}" at='' words='' i
    for ((i = 1; i < COMP_CWORD; i++)); do
        case "${{at:+$at }}${{COMP_WORDS[i]}}" in
        {known}) at="${{at:+$at }}${{COMP_WORDS[i]}}" ;;
        esac
    done
    case "$at $previous" in
{values}
    esac
    if [ -z "$words" ]; then
        case "$at" in
{cases}
        esac
        case "$current" in
        -*) ;;
        *) [ -n "$at" ] && words="${{words%%--*}}" ;;
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _pllm pllm
"""


def _zsh(lines: list[Line]) -> str:
    return "#compdef pllm\nautoload -U +X bashcompinit && bashcompinit\n" + _bash(lines)


def _fish(lines: list[Line]) -> str:
    script = ["# fish completion for pllm, written by: pllm completion fish"]
    for line in lines:
        seen = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in line.words) or "__fish_use_subcommand"
        below = {other.words[-1]: other.help for other in lines if other.words[:-1] == line.words and other.words}
        if below and line.words:  # one of its own commands, once
            seen += f"; and not __fish_seen_subcommand_from {' '.join(below)}"
        script += [
            f"complete -c pllm -f -n '{seen}' -a {name} -d '{_first_words(text)}'" for name, text in below.items()
        ]
        for flag in line.flags:
            values = f" -x -a '{' '.join(flag.choices)}'" if flag.choices else ""
            script.append(f"complete -c pllm -n '{seen}' -l {flag.name.lstrip('-')} -d '{flag.help}'{values}")
    return "\n".join(script) + "\n"


_HELP = Flag("--help", "what the flags mean", ())
_SHELLS: dict[str, Callable[[list[Line]], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
