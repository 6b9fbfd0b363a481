"""``pllm bench {latency,throughput,serve,startup}``: the flags. What measures is imported when it is asked for."""

import os
from argparse import ArgumentParser, ArgumentTypeError, Namespace, _SubParsersAction
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pllm.runtime.bench.engine_options import EngineOptions
from pllm.runtime.errors import UserInputError

__all__ = ["add_arguments", "main"]

_EPILOG = "exit codes: 0 fine, 2 the input is wrong, 3 the measurement is void, 4 the artifact does not open here"
_MOST_REQUESTS = 100_000
_MOST_AT_ONCE = 4_096


def add_arguments(parser: ArgumentParser) -> None:
    """The four measurements, a subcommand each."""
    parser.epilog = _EPILOG
    commands = parser.add_subparsers(dest="measurement", required=True, metavar="MEASUREMENT")
    _latency(commands)
    _throughput(commands)
    _serve(commands)
    _startup(commands)


def main(arguments: Namespace) -> int:
    """Measure, print and write. Raises UserInputError (2), MeasurementError (3), and as `EngineCore.open` (4)."""
    from pllm.runtime.bench.report import check_target

    check_target(arguments.json)
    measure: Callable[[Namespace], None] = arguments.measure
    measure(arguments)
    return 0


def _latency(commands: "_SubParsersAction[ArgumentParser]") -> None:
    parser = commands.add_parser(
        "latency", help="one batch, in this process: TTFT, TPOT, decode tokens/s", epilog=_EPILOG
    )
    _artifact(parser)
    parser.add_argument("--batch", type=_count(_MOST_AT_ONCE), default=1, metavar="N", help="requests at once (1)")
    _lengths(parser)
    parser.add_argument("--reps", type=_count(10_000), default=10, metavar="N", help="passes that are measured (10)")
    parser.add_argument("--warmup", type=_count(1_000), default=1, metavar="N", help="passes before them (1)")
    _engine(parser)
    parser.set_defaults(measure=_measure_latency)


def _throughput(commands: "_SubParsersAction[ArgumentParser]") -> None:
    parser = commands.add_parser(
        "throughput", help="many requests, in this process: tokens/s, KV utilisation", epilog=_EPILOG
    )
    _artifact(parser)
    _workload(parser)
    parser.add_argument("--reps", type=_count(1_000), default=3, metavar="N", help="passes that are measured (3)")
    _engine(parser)
    parser.set_defaults(measure=_measure_throughput)


def _serve(commands: "_SubParsersAction[ArgumentParser]") -> None:
    parser = commands.add_parser("serve", help="a server over HTTP: TTFT, TPOT, ITL, latency, goodput", epilog=_EPILOG)
    parser.add_argument("artifact", nargs="?", type=Path, metavar="ARTIFACT", help="served for the measurement")
    parser.add_argument("--url", metavar="URL", help="a running server instead, such as http://127.0.0.1:8000")
    parser.add_argument("--allow-remote", action="store_true", help="let --url be another machine")
    parser.add_argument(
        "--vocab-size", type=_count(1 << 31), default=4_000, metavar="N", help="of the model at --url (%(default)s)"
    )
    _workload(parser)
    parser.add_argument(
        "--request-rate", type=_positive, default=float("inf"), metavar="R", help="arrivals a second (all at once)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the arrivals (%(default)s)")
    parser.add_argument(
        "--goodput", nargs="+", default=[], metavar="NAME:MS", help="targets: ttft:MS, tpot:MS, e2el:MS"
    )
    parser.add_argument(
        "--time-limit", type=_positive, default=600.0, metavar="S", help="seconds for all requests (%(default)g)"
    )
    parser.add_argument("--api-key", metavar="KEY", help="the server's (default: the environment's PLLM_API_KEY)")
    _engine(parser)
    parser.set_defaults(measure=_measure_serve)


def _startup(commands: "_SubParsersAction[ArgumentParser]") -> None:
    parser = commands.add_parser("startup", help="cold processes: time to ready and to first token", epilog=_EPILOG)
    _artifact(parser)
    parser.add_argument("--reps", type=_count(1_000), default=5, metavar="N", help="starts of each kind (5)")
    parser.add_argument("--only", choices=["library", "server"], help="one kind of start")
    _engine(parser)
    parser.set_defaults(measure=_measure_startup)


def _measure_latency(arguments: Namespace) -> None:
    from pllm.runtime.bench.latency import LatencyOptions, measure_latency

    options = LatencyOptions(
        batch=arguments.batch,
        input_len=arguments.input_len,
        output_len=arguments.output_len,
        reps=arguments.reps,
        warmup=arguments.warmup,
    )
    measure_latency(arguments.artifact, options, _options(arguments)).publish(arguments.json)


def _measure_throughput(arguments: Namespace) -> None:
    from pllm.runtime.bench.throughput import ThroughputOptions, measure_throughput
    from pllm.runtime.bench.workload import WorkloadChoice

    choice = WorkloadChoice(**_chosen(arguments))
    options = ThroughputOptions(choice=choice, reps=arguments.reps)
    measure_throughput(arguments.artifact, options, _options(arguments)).publish(arguments.json)


def _measure_serve(arguments: Namespace) -> None:
    from pllm.runtime.bench.http_client import Endpoint
    from pllm.runtime.bench.load import Load
    from pllm.runtime.bench.serve import ServeOptions, measure_artifact, measure_server, refuse_void
    from pllm.runtime.bench.timing import ServiceTargets
    from pllm.runtime.bench.workload import WorkloadChoice

    if (arguments.artifact is None) == (arguments.url is None):
        raise UserInputError("give either an ARTIFACT, which is served for the measurement, or --url of a server")
    load = Load(request_rate=arguments.request_rate, seed=arguments.seed, time_limit=arguments.time_limit)
    choice = WorkloadChoice(**_chosen(arguments))
    options = ServeOptions(choice=choice, load=load, targets=ServiceTargets.parse(arguments.goodput))
    key = arguments.api_key or os.environ.get("PLLM_API_KEY")
    if arguments.url is None:
        report, run = measure_artifact(arguments.artifact, options, _options(arguments), key)
    else:
        endpoint = Endpoint.parse(arguments.url, api_key=key, allow_remote=arguments.allow_remote)
        report, run = measure_server(endpoint, options, arguments.vocab_size)
    report.publish(arguments.json)
    refuse_void(run)


def _measure_startup(arguments: Namespace) -> None:
    from pllm.runtime.bench.startup import StartupOptions, measure_startup

    options = StartupOptions(
        reps=arguments.reps, library=arguments.only != "server", server=arguments.only != "library"
    )
    key = os.environ.get("PLLM_API_KEY")
    measure_startup(arguments.artifact, options, _options(arguments), key).publish(arguments.json)


def _artifact(parser: ArgumentParser) -> None:
    parser.add_argument("artifact", type=Path, metavar="ARTIFACT", help="the folder that pllm build made")


def _lengths(parser: ArgumentParser) -> None:
    parser.add_argument("--input-len", type=_count(1 << 20), default=128, metavar="N", help="tokens of a prompt (128)")
    parser.add_argument("--output-len", type=_count(1 << 20), default=32, metavar="N", help="tokens that follow (32)")


def _workload(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--workload",
        choices=["W1", "W2", "W3"],
        help="W1: one request, 128 tokens in, 32 out; W2: eight at once; W3: 32 of mixed lengths, 16 at a time",
    )
    group = parser.add_argument_group("a workload of equal requests, where --workload names none")
    group.add_argument("--num-requests", type=_count(_MOST_REQUESTS), default=None, metavar="N", help="in all (32)")
    group.add_argument("--input-len", type=_count(1 << 20), default=None, metavar="N", help="tokens of a prompt (128)")
    group.add_argument("--output-len", type=_count(1 << 20), default=None, metavar="N", help="tokens that follow (32)")
    group.add_argument(
        "--concurrency", type=_count(_MOST_AT_ONCE), default=None, metavar="N", help="unfinished at once (8)"
    )


def _engine(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("engine")
    group.add_argument("--threads", type=_count(1024), metavar="N", help="threads of the engine (default: as built)")
    group.add_argument("--max-num-seqs", type=_count(_MOST_AT_ONCE), metavar="N", help="sequences that run at once")
    group.add_argument("--memory", metavar="SIZE", help="memory for weights and KV cache together, such as 4GiB")
    group.add_argument(
        "--prefix-caching", action="store_true", help="reuse the KV blocks of equal prefixes: repeats then hit them"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all of it there")


def _options(arguments: Namespace) -> EngineOptions:
    return EngineOptions(
        threads=arguments.threads,
        max_num_seqs=arguments.max_num_seqs,
        memory=arguments.memory,
        prefix_caching=arguments.prefix_caching,
    )


def _chosen(arguments: Namespace) -> dict[str, Any]:
    """The flags of a workload that were given. Raises UserInputError for a name and lengths together."""
    names = ("num_requests", "input_len", "output_len", "concurrency")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if arguments.workload is None:
        return given
    if given:
        flags = ", ".join("--" + name.replace("_", "-") for name in given)
        raise UserInputError(f"--workload {arguments.workload} is fixed: leave out {flags}, or leave out --workload")
    return {"workload": arguments.workload}


def _count(most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if not 1 <= value <= most:
            raise ArgumentTypeError(f"must be from 1 to {most}, not {value}")
        return value

    parse.__name__ = "whole number"  # what argparse calls it where the text is none
    return parse


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise ArgumentTypeError(f"must be above 0, not {text}")
    return value
