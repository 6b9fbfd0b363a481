"""``pllm run``: what is checked before anything is loaded.

The order is the start's speed and its safety: flags, the port, the engine process; and only then, while that opens the
artifact, the imports of this process.
"""

import argparse
import os
import signal
import sys
import time
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from pllm.runtime.errors import PllmError
from pllm.runtime.server.address import Address
from pllm.runtime.server.flags import add_flags as add_arguments
from pllm.runtime.server.flags import read_flags as read_arguments
from pllm.runtime.server.keys import api_keys

if TYPE_CHECKING:
    from pllm.runtime.server.launch import EngineProcess

__all__ = ["add_arguments", "main", "read_arguments"]


def main(args: argparse.Namespace) -> int:
    """Runs the server. The exit code: 0 after a signal; 2 for a flag, a model or a port that cannot be used; 4 for an
    artifact that is damaged or does not fit this machine; 1 for an engine that keeps dying, and for a second signal.
    """
    started = time.monotonic()
    _raise_descriptor_limit()
    try:
        keys = api_keys(args.api_key, args.api_key_file, os.environ)
        address = Address.bind(
            host=args.host,
            port=args.port,
            uds=args.uds,
            ssl_certfile=args.ssl_certfile,
            ssl_keyfile=args.ssl_keyfile,
        )
        with closing(address):
            return _start(args, address, keys, started)
    except PllmError as error:
        print(f"pllm run: {error}", file=sys.stderr)
        return error.exit_code


def _start(args: argparse.Namespace, address: Address, keys: tuple[str, ...], started: float) -> int:
    from pllm.runtime.server.launch import EngineProcess

    artifact = _artifact(args.model)
    address.listen()
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
        return _serve(args, address, keys, engine, started)
    finally:
        engine.close()


def _serve(
    args: argparse.Namespace, address: Address, keys: tuple[str, ...], engine: "EngineProcess", started: float
) -> int:
    """Everything that is imported while the engine process opens the artifact."""
    import logging

    from pllm.runtime.server.log import start_log
    from pllm.runtime.server.serve import run_server
    from pllm.runtime.server.service import Service
    from pllm.runtime.server.settings import EdgeLimits, ServerSettings
    from pllm.runtime.server.supervisor import RestartPolicy

    start_log(args.log_format)
    if not keys and not address.is_private:
        logging.getLogger("pllm.server").warning(
            "LISTENING ON %s WITHOUT A KEY: anyone who reaches this machine can use the model. "
            "Give --api-key KEY, or listen on 127.0.0.1.",
            address.host,
        )
    settings = ServerSettings(
        served_names=tuple(args.served_model_name),
        api_key_digests=tuple(map(ServerSettings.key_digest, keys)),
        chat_template=args.chat_template,
        tool_call_parser=args.tool_call_parser,
        reasoning_parser=args.reasoning_parser,
        max_queue=args.max_queue,
        grace=args.grace,
        request_timeout=args.request_timeout,
        root_path=args.root_path,
        cors_origins=frozenset(args.cors),
        log_requests=args.log_requests,
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
        seconds = time.monotonic() - started
        name = service.ready().model.name
        print(f"Serving {name} on {address.url} (ready in {seconds:.2f} s)", file=sys.stderr, flush=True)

    return run_server(settings, address, engine, policy, announce)


def _artifact(model: str) -> Path:
    """The artifact's directory; what is not one yet is built, in a process of its own, with its progress shown.

    Raises PllmError if that cannot be.
    """
    path = Path(model)
    if (path / "manifest.json").is_file():
        return path
    from pllm.runtime.model_options import ModelOptions

    # A server that is stopped while it builds stops the build, too.
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        return ModelOptions(model=model).artifact()
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminated(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _raise_descriptor_limit() -> None:
    """As many connections as the system lets this process have: the soft limit is often 1024."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
