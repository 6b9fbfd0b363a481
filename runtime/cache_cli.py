"""``pllm cache``: what was built or generated for this user, and cleaning it away."""

import shutil
from argparse import ArgumentParser, Namespace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pllm.runtime.build_cache import BuildCache
from pllm.runtime.memory import format_bytes
from pllm.runtime.user_cache import user_cache

__all__ = ["add_arguments", "main"]


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("action", nargs="?", choices=["list", "clean"], default="list", help="(default: list)")


def main(arguments: Namespace) -> int:
    console = Console(highlight=False)
    checkpoints = user_cache() / "checkpoints"
    if arguments.action == "clean":
        freed = BuildCache().clean()
        for folder in (checkpoints, user_cache() / "hashes"):
            freed += _size(folder)
            shutil.rmtree(folder, ignore_errors=True)
        console.print(f"{format_bytes(freed)} freed in {user_cache()}")
        return 0
    table = Table(title=str(user_cache()), title_justify="left")
    for column in ("kind", "what", "made", "size"):
        table.add_column(column, overflow="fold", justify="right" if column == "size" else "left")
    for entry in BuildCache().entries():
        what = " ".join([entry.source, *entry.overrides])
        table.add_row("artifact", what, f"{entry.built:%Y-%m-%d %H:%M}", format_bytes(entry.size))
    for folder in sorted(checkpoints.glob("[!.]*")):
        table.add_row("random checkpoint", folder.name, "", format_bytes(_size(folder)))
    console.print(table if table.row_count else f"{user_cache()} holds nothing that was built")
    return 0


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
