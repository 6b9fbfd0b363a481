"""``pllm run``: the flags, and what is checked before anything is loaded.

The order is the start's speed and its safety: flags, the port, the engine process; and only then, while that opens the
artifact, the imports of this process.
"""

import argparse
import errno
import math
import os
import signal
import socket
import sys
import time
from ipaddress import ip_address
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pllm.runtime.server.launch import EngineProcess

__all__ = ["add_arguments", "main"]

ENGINE_CORE = "pllm.runtime.engine_core:EngineCore.open"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``pllm run``."""
    parser.add_argument(
        "model", help="an artifact directory; or a recipe, a checkpoint directory or a Hub id: built first"
    )
    address = parser.add_argument_group("address")
    address.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine only)"
    )
    address.add_argument("--port", type=_port, default=8000, help="port to listen on, 0 for any (default: %(default)s)")
    address.add_argument(
        "--api-key", metavar="KEY", help="ask for this bearer key (default: the environment's PLLM_API_KEY)"
    )
    names = parser.add_argument_group("model")
    names.add_argument(
        "--served-model-name", nargs="+", action="extend", default=[], metavar="NAME", help="further names"
    )
    names.add_argument("--chat-template", metavar="FILE", help="a Jinja template instead of the model's own")
    engine = parser.add_argument_group("engine")
    engine.add_argument("--max-num-seqs", type=_at_least_one, metavar="N", help="sequences that run at once")
    engine.add_argument("--memory", metavar="SIZE", help="memory for weights and KV cache together, such as 4GiB")
    engine.add_argument("--threads", type=_at_least_one, metavar="N", help="threads of the engine (default: the cores)")
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
    # The seam of the server's tests: an engine core whose model is a function. Documented in engine_process.Core.
    parser.add_argument("--engine-core", default=ENGINE_CORE, help=argparse.SUPPRESS)


def main(args: argparse.Namespace) -> int:
    """Runs the server. The exit code: 0 after a signal; 2 for a flag, a model or a port that cannot be used; 4 for an
    artifact that is damaged or does not fit this machine; 1 for an engine that keeps dying, and for a second signal.
    """
    started = time.monotonic()
    _raise_descriptor_limit()
    listener = _bind(args.host, args.port)
    if listener is None:
        return 2
    with listener:
        from pllm.runtime.server.launch import EngineProcess

        artifact = _artifact(args.model)
        if isinstance(artifact, int):
            return artifact
        if not _listen(listener):
            return 2
        options = {
            "artifact": str(artifact),
            "core": args.engine_core,
            "max_num_seqs": args.max_num_seqs,
            "memory": args.memory,
            "threads": args.threads,
            "enable_prefix_caching": False if args.no_prefix_caching else None,
        }
        engine = EngineProcess.start(options)
        try:
            return _serve(args, listener, engine, started)
        finally:
            engine.close()


def _serve(args: argparse.Namespace, listener: socket.socket, engine: "EngineProcess", started: float) -> int:
    """Everything that is imported while the engine process opens the artifact."""
    import logging

    from pllm.runtime.errors import PllmError
    from pllm.runtime.server.serve import run_server
    from pllm.runtime.server.service import Service
    from pllm.runtime.server.settings import EdgeLimits, ServerSettings
    from pllm.runtime.server.supervisor import RestartPolicy

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # clients' mistakes are answered, not logged
    key = args.api_key or os.environ.get("PLLM_API_KEY")
    host, port = listener.getsockname()[:2]
    if not key and not _is_loopback(host):
        logging.getLogger("pllm.server").warning(
            "LISTENING ON %s WITHOUT A KEY: anyone who reaches this machine can use the model. "
            "Give --api-key KEY, or listen on 127.0.0.1.",
            host,
        )
    settings = ServerSettings(
        served_names=tuple(args.served_model_name),
        api_key_digests=(ServerSettings.key_digest(key),) if key else (),
        chat_template=args.chat_template,
        max_queue=args.max_queue,
        grace=args.grace,
        refuse_unknown_fields=args.unknown_fields == "refuse",
        metrics_prefix=args.metrics_prefix,
        limits=EdgeLimits(
            max_body_bytes=args.max_body,
            max_held_bytes=16 * args.max_body,
            client_timeout=args.client_timeout,
        ),
    )
    policy = RestartPolicy(step_timeout=args.step_timeout, max_restarts=args.max_restarts)

    def announce(service: Service) -> None:
        where = f"[{host}]" if ":" in host else host
        seconds = time.monotonic() - started
        name = service.ready().model.name
        print(f"Serving {name} on http://{where}:{port} (ready in {seconds:.2f} s)", file=sys.stderr, flush=True)

    try:
        return run_server(settings, listener, engine, policy, announce)
    except PllmError as error:
        print(f"pllm run: {error}", file=sys.stderr)
        return error.exit_code


def _artifact(model: str) -> Path | int:
    """The artifact's directory; what is not one yet is built, in a process of its own, with its progress shown.

    The exit code, said why, if that cannot be.
    """
    path = Path(model)
    if (path / "manifest.json").is_file():
        return path
    from pllm.runtime.errors import PllmError
    from pllm.runtime.model_options import ModelOptions

    # A server that is stopped while it builds stops the build, too.
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        return ModelOptions(model=model).artifact()
    except PllmError as error:
        print(f"pllm run: {error}", file=sys.stderr)
        return error.exit_code
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminated(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _bind(host: str, port: int) -> socket.socket | None:
    """A listening address that is ours before anything is loaded; None, said why, if it cannot be."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        print(f"pllm run: --host {host}: {error.strerror}. Give an address of this machine.", file=sys.stderr)
        return None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        remedy = {
            errno.EADDRINUSE: f"port {port} is in use: end the other server, or give another with --port",
            errno.EACCES: f"port {port} needs privileges: give one above 1023 with --port",
            errno.EADDRNOTAVAIL: f"{host} is no address of this machine: give another with --host",
        }.get(error.errno or 0, str(error))
        print(f"pllm run: {remedy}.", file=sys.stderr)
        return None
    return listener


def _listen(listener: socket.socket) -> bool:
    """From here on the kernel keeps connections for us. Linux lets two sockets bind one address until one of them
    listens, so the port may have been taken meanwhile.
    """
    try:
        listener.listen(socket.SOMAXCONN)
    except OSError as error:
        print(f"pllm run: the port was taken meanwhile ({error.strerror}): give another with --port.", file=sys.stderr)
        return False
    return True


def _raise_descriptor_limit() -> None:
    """As many connections as the system lets this process have: the soft limit is often 1024."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _is_loopback(host: str) -> bool:
    return ip_address(host.partition("%")[0]).is_loopback


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
