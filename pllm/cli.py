"""The command line: ``pllm COMMAND ...``.

Each command is a module with ``add_arguments(parser)`` and ``main(arguments) -> exit code``, and where its flags have
another source than the command line, ``read_arguments(parser, words) -> arguments``. It is imported when it is called:
``pllm run`` should not wait for what ``pllm build`` needs. An error that pllm raises on purpose is one line on standard
error and an exit code (pllm.runtime.errors draws them); a traceback is a bug of ours.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from pllm import __version__
from pllm.runtime.errors import PllmError, UserInputError

__all__ = ["COMMANDS", "Command", "main"]


@dataclass(frozen=True, slots=True)
class Command:
    """A command: the module that does it, and its line of ``pllm --help``."""

    module: str
    help: str


COMMANDS = {
    "build": Command("pllm.build.cli", "make an artifact of a recipe or a model"),
    "run": Command("pllm.runtime.server.cli", "serve an artifact: an OpenAI-compatible server"),
    "chat": Command("pllm.runtime.chat_cli", "talk to a model in the terminal"),
    "check": Command("pllm.runtime.check_cli", "say whether an artifact runs here, and how many requests fit"),
    "inspect": Command("pllm.runtime.inspect_cli", "show what an artifact holds"),
    "diff": Command("pllm.runtime.diff_cli", "show what changed between two artifacts"),
    "verify": Command("pllm.runtime.verify_cli", "prove an artifact: hashes, golden tokens, latencies"),
    "gate": Command("pllm.runtime.gate.cli", "say whether a change made serving slower, larger or later"),
    "bench": Command("pllm.runtime.bench.cli", "measure an artifact or a server: latency, throughput, start"),
    "report": Command("pllm.runtime.report_cli", "show how what bench and gate measured went over time"),
    "init": Command("pllm.build.init_cli", "write a commented recipe for a model"),
    "completion": Command("pllm.completion_cli", "write a shell's completion of this command line"),
    "cache": Command("pllm.runtime.cache_cli", "list or clean what was built and remembered for this user"),
}


_EXIT_CODES = (
    "exit codes: 0 fine, 2 the input is wrong, 3 a measurement is void, 4 the artifact is damaged or does not fit, "
    "5 a regression, 1 anything else"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit code. ``argv`` is the command line without the program's name."""
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        return _run(words)
    except PllmError as error:
        print(f"pllm: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (``pllm inspect ... | head``): nothing to say, and nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        # A file that may not be read, a port that is taken: the machine's, and the user's to mend.
        where = f"{error.filename}: " if error.filename else ""
        print(f"pllm: error: {where}{error.strerror or error}", file=sys.stderr)
        return 1


def _run(words: Sequence[str]) -> int:
    command = COMMANDS.get(words[0]) if words else None
    if command is None:
        _top_parser().parse_args(words or ["--help"])
        raise AssertionError("the parser ends the process")
    try:
        module = import_module(command.module)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("pllm") or not command.module.startswith("pllm.build"):
            raise
        raise UserInputError(f"pllm {words[0]} needs {error.name}: pip install 'pllm[build]'") from None
    parser = argparse.ArgumentParser(
        prog=f"pllm {words[0]}", description=f"{command.help[0].upper()}{command.help[1:]}."
    )
    module.add_arguments(parser)
    read = getattr(module, "read_arguments", argparse.ArgumentParser.parse_args)
    code: int = module.main(read(parser, words[1:]))
    sys.stdout.flush()
    return code


def _top_parser() -> argparse.ArgumentParser:
    """The parser of a command line that names no command: it helps, tells the version or refuses."""
    width = max(len(name) for name in COMMANDS)
    lines = "\n".join(f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="pllm",
        description="pllm: a compiled-graph LLM engine with an ahead-of-time build step.",
        epilog=f"commands:\n{lines}\n\n{_EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pllm {__version__}")
    told = "one of those below; COMMAND --help tells more"
    parser.add_argument("command", choices=list(COMMANDS), metavar="COMMAND", help=told)
    return parser
