"""The flags of ``pllm run``, and the file that may hold them."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from pllm.runtime.message.style import CALL_STYLES

__all__ = ["add_flags", "read_flags"]

ENGINE_CORE = "pllm.runtime.engine_core:EngineCore.open"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declares them."""
    parser.add_argument(
        "model",
        nargs="?",
        help="an artifact directory; or a recipe, a checkpoint directory or a Hub id: built first",
    )
    parser.add_argument(
        "--config", metavar="FILE", help="a TOML file with flags: max-queue = 64; the command line comes before it"
    )
    address = parser.add_argument_group("address")
    address.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine only)"
    )
    address.add_argument("--port", type=_port, default=8000, help="port to listen on, 0 for any (default: %(default)s)")
    address.add_argument("--uds", metavar="PATH", help="listen on this UNIX socket instead")
    address.add_argument("--ssl-certfile", metavar="FILE", help="serve HTTPS with this certificate chain (PEM)")
    address.add_argument("--ssl-keyfile", metavar="FILE", help="its key (default: in the certificate's file)")
    address.add_argument(
        "--root-path", type=_root_path, default="", metavar="PATH", help="where a proxy shows this server, such as /llm"
    )
    address.add_argument(
        "--cors",
        nargs="+",
        action="extend",
        default=[],
        metavar="ORIGIN",
        help="origins whose pages may ask, such as https://chat.example; * for all",
    )
    access = parser.add_argument_group("keys")
    access.add_argument(
        "--api-key",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY",
        help="ask for one of these bearer keys (default: the environment's PLLM_API_KEY, by spaces)",
    )
    access.add_argument("--api-key-file", metavar="FILE", help="further keys, one a line")
    names = parser.add_argument_group("model")
    names.add_argument(
        "--served-model-name", nargs="+", action="extend", default=[], metavar="NAME", help="further names"
    )
    names.add_argument("--chat-template", metavar="FILE", help="a Jinja template instead of the model's own")
    names.add_argument(
        "--tool-call-parser",
        choices=("auto", *CALL_STYLES, "none"),
        default="auto",
        help="how the model writes calls of tools (%(default)s: as its chat template shows)",
    )
    names.add_argument(
        "--reasoning-parser",
        choices=("auto", "think", "none"),
        default="auto",
        help="whether thoughts stand before its answers (%(default)s: as its chat template shows)",
    )
    engine = parser.add_argument_group("engine")
    engine.add_argument("--max-num-seqs", type=_at_least_one, metavar="N", help="sequences that run at once")
    engine.add_argument("--memory", metavar="SIZE", help="memory for weights and KV cache together, such as 4GiB")
    engine.add_argument("--threads", type=_at_least_one, metavar="N", help="threads of the engine (default: as built)")
    engine.add_argument("--no-prefix-caching", action="store_true", help="do not reuse the KV blocks of equal prefixes")
    load = parser.add_argument_group("load")
    load.add_argument(
        "--max-queue", type=_at_least_none, default=256, metavar="N", help="requests that may wait (%(default)s)"
    )
    load.add_argument(
        "--grace", type=_seconds, default=30.0, metavar="S", help="seconds to finish after SIGTERM (%(default)s)"
    )
    load.add_argument(
        "--max-body", type=_at_least_one, default=32 << 20, metavar="BYTES", help="largest request (%(default)s)"
    )
    load.add_argument(
        "--client-timeout",
        type=_seconds,
        default=30.0,
        metavar="S",
        help="patience with clients that stall (%(default)s)",
    )
    load.add_argument(
        "--request-timeout",
        type=_seconds,
        metavar="S",
        help="end a request that has not finished after so long (default: never)",
    )
    load.add_argument(
        "--step-timeout", type=_seconds, default=300.0, metavar="S", help="restart an engine that is silent so long"
    )
    load.add_argument(
        "--max-restarts", type=_at_least_none, default=5, metavar="N", help="engine restarts in five minutes"
    )
    parser.add_argument(
        "--unknown-fields", choices=("ignore", "refuse"), default="ignore", help="of requests (%(default)s)"
    )
    parser.add_argument(
        "--metrics-prefix", choices=("pllm", "vllm"), default="pllm", help="of metrics' names (%(default)s)"
    )
    log = parser.add_argument_group("log")
    log.add_argument("--log-format", choices=("text", "json"), default="text", help="of the log (%(default)s)")
    log.add_argument("--log-requests", action="store_true", help="a line for each request: its id, never its content")
    # The seam of the server's tests: an engine core whose model is a function. Documented in engine_process.Core.
    parser.add_argument("--engine-core", default=ENGINE_CORE, help=argparse.SUPPRESS)


def read_flags(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Parses ``words`` over what ``--config`` holds over the defaults. Lists add up. Raises UserInputError."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    config = first.parse_known_args(words)[0].config
    if config is not None:
        from pllm.runtime.server.config_file import flags_of_file  # noqa: PLC0415  (most starts have no file)

        parser.set_defaults(**flags_of_file(parser, Path(config)))
    args = parser.parse_args(words)
    if args.model is None:
        parser.error("say what to serve: an artifact directory, a recipe, a checkpoint directory or a Hub id")
    return args


def _whole(text: str, low: int, high: float) -> int:
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        wanted = f"of at least {low}" if high == math.inf else f"from {low} to {high}"
        raise argparse.ArgumentTypeError(f"must be a whole number {wanted}, not {text!r}")
    return value


def _port(text: str) -> int:
    return _whole(text, 0, 65535)


def _at_least_one(text: str) -> int:
    return _whole(text, 1, math.inf)


def _at_least_none(text: str) -> int:
    return _whole(text, 0, math.inf)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of seconds, not {text!r}")
    return value


def _root_path(text: str) -> str:
    path = text.rstrip("/")
    if path and (not path.startswith("/") or not path.isascii() or any(sign in path for sign in "?#% ")):
        raise argparse.ArgumentTypeError(f"must be a path such as /llm, not {text!r}")
    return path
