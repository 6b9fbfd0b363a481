"""What the edge costs: tokens a second that one API process streams when the model costs nothing.

    make bench-edge

Three processes: the API process, which is measured; the engine, whose scheduler is real and whose model runner returns
at once (`core`); this client. A model that returns at once gives its tokens faster than an event each can go out, and
what waits goes out together: so it is asked again with steps that take a while, where every token is an event of its
own. ``tokens an event`` says which of the two a line is about. Meanwhile one more client sends requests that are wrong
and notes how long their 400 takes.
"""

import argparse
import asyncio
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import uvloop
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from .mistakes import send_mistakes, share_of

HERE = Path(__file__).parent
_USAGE = re.compile(rb'"completion_tokens":(\d+)')


class _Stream(asyncio.Protocol):
    """One connection, from its request to the server's end of it."""

    def __init__(self, request: bytes, done: "asyncio.Future[tuple[int, int]]") -> None:
        self._request, self._done = request, done
        self._events = 0
        self._last = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(self._request)  # type: ignore[attr-defined]  # uvloop's is one in all but name

    def data_received(self, data: bytes) -> None:
        self._events += data.count(b"data: {")
        self._last = (self._last + data)[-1024:]

    def connection_lost(self, exc: Exception | None) -> None:
        counts = _USAGE.findall(self._last)
        if exc is not None or not counts or b"[DONE]" not in self._last:
            self._done.set_exception(RuntimeError(f"a stream ended early: {exc or self._last[-200:]!r}"))
        else:
            self._done.set_result((int(counts[-1]), self._events))


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench-edge", description=__doc__.splitlines()[0])
    parser.add_argument("--connections", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=256, help="of each answer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=float, nargs="+", default=[0, 25, 10, 5], metavar="MS", help="a step takes")
    parser.add_argument("--json", metavar="FILE", type=Path)
    args = parser.parse_args()
    print(f"{args.connections} connections, {args.tokens} tokens each, {args.rounds} rounds, {os.cpu_count()} cores")
    print(
        "step ms   offered/s   tokens/s (median, range)        tokens an event   busy: API   engine   client"
        "   400 after: p50, p99 ms"
    )
    results = []
    for step in args.steps:
        with tempfile.TemporaryDirectory() as folder, _server(Path(folder), args.connections, step) as server:
            rounds = [_round(args, *server) for _ in range(args.rounds + 1)][1:]  # the first one warms up
        results.append({"step_ms": step, "rounds": rounds})
        middle = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
        rates = [each["tokens_per_s"] for each in rounds]
        offered = f"{args.connections / step * 1000:,.0f}" if step else "-"
        print(
            f"{step:7g}   {offered:>9}   {middle['tokens_per_s']:7,.0f} ({min(rates):7,.0f} to {max(rates):7,.0f})"
            f"   {middle['tokens_per_event']:17.2f}"
            f"   {middle['api_cpu']:9.2f}   {middle['engine_cpu']:6.2f}   {middle['client_cpu']:6.2f}"
            f"   {middle['error_p50_ms']:14.1f} {middle['error_p99_ms']:7.1f}"
        )
    if args.json is not None:
        machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        options = {"connections": args.connections, "tokens": args.tokens}
        document = {"measurement": "edge", "machine": machine, "python": platform.python_version(), "options": options}
        args.json.write_text(json.dumps(document | {"results": results}, indent=2) + "\n")


def _round(args: argparse.Namespace, port: int, api: psutil.Process, engine: psutil.Process) -> dict[str, float]:
    processes = {"api_cpu": api, "engine_cpu": engine, "client_cpu": psutil.Process()}
    before = {name: _cpu(process) for name, process in processes.items()}
    begin = time.perf_counter()
    results, errors = uvloop.run(_all(port, args.connections, args.tokens))
    seconds = time.perf_counter() - begin
    tokens, events = (sum(each) for each in zip(*results, strict=True))
    assert tokens == args.connections * args.tokens
    busy = {name: (_cpu(process) - before[name]) / seconds for name, process in processes.items()}
    waits = {f"error_p{share}_ms": share_of(errors, share) * 1000 for share in (50, 99)}
    pace = {"tokens_per_s": tokens / seconds, "tokens_per_event": tokens / max(events, 1), "seconds": seconds}
    return pace | busy | waits


async def _all(port: int, connections: int, tokens: int) -> tuple[list[tuple[int, int]], list[float]]:
    """Tokens and events of each stream; and the seconds that each wrong request waited for its answer meanwhile."""
    loop = asyncio.get_running_loop()
    body = {"prompt": "x" * 32, "max_tokens": tokens, "ignore_eos": True, "stream": True, "cache_salt": "edge"}
    text = json.dumps({**body, "stream_options": {"include_usage": True}}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(text)}\r\n"
    request = head.encode() + b"content-type: application/json\r\n\r\n" + text
    ends: list[asyncio.Future[tuple[int, int]]] = [loop.create_future() for _ in range(connections)]
    await asyncio.gather(
        *(loop.create_connection(lambda end=end: _Stream(request, end), "127.0.0.1", port) for end in ends)  # type: ignore[misc]
    )
    errors: list[float] = []
    mistakes = asyncio.ensure_future(send_mistakes(port, errors))
    results = list(await asyncio.gather(*ends))
    mistakes.cancel()
    return results, errors


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@contextmanager
def _server(folder: Path, connections: int, step_ms: float) -> Iterator[tuple[int, psutil.Process, psutil.Process]]:
    _write_text_side(folder)
    flags = ["--engine-core", "core:open_core", "--max-num-seqs", str(connections), "--port", "0"]
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-m", "pllm", "run", str(folder), *flags],
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path, "PLLM_EDGE_STEP": str(step_ms / 1000)},
        text=True,
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            match = re.search(r":(\d+) \(ready", line)
            if match:
                api = psutil.Process(process.pid)
                yield int(match[1]), api, api.children()[0]
                return
            print(line, end="", file=sys.stderr)
        raise RuntimeError("the server has not started")
    finally:
        process.kill()
        process.wait()


def _write_text_side(folder: Path) -> None:
    """What the API process reads of an artifact: a tokenizer with one token a byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    vocab = {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True, normalized=False)])
    (folder / "tokenizer").mkdir()
    tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    (folder / "generation.json").write_text(json.dumps({"eos_token_id": [256]}))
    (folder / "manifest.json").write_text("{}")


if __name__ == "__main__":
    main()
