"""Real servers: two real processes and real sockets; only the model is a function (`fake_core`)."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

HERE = Path(__file__).parent
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
TEMPLATE = """\
{%- if tools %}{{ '<|im_start|>tools ' + tools | tojson + '<|im_end|>' }}{% endif -%}
{%- for message in messages -%}
{%- if message.role == 'refused' %}{{ raise_exception('no such role') }}{% endif -%}
{{- '<|im_start|>' }}{{ message.content or '' }}
{%- for call in message.tool_calls or [] %}{{ call.function.name }}{{ call.function.arguments | tojson }}{% endfor %}
{{- '<|im_end|>' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>' }}{% endif -%}
{%- if shout %}{{ shout }}{% endif -%}
"""


def byte_tokenizer() -> Tokenizer:
    """One token a byte, its id the byte; and four special tokens behind them."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    vocab = {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer


class Server:
    """One running ``pllm run``."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.log: list[str] = []
        self._ready = threading.Event()
        self.port = 0
        self.announced = ""  # the address as the log tells it
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for raw in self.process.stderr:
            line = raw.decode()
            self.log.append(line)
            match = re.search(r" on (http\S+?)(?::(\d+))? \(ready", line)
            if match:
                self.announced = match[0].removeprefix(" on ").removesuffix(" (ready")
                self.port = int(match[2] or 0)
                self._ready.set()
        self._ready.set()

    def wait_ready(self) -> "Server":
        assert self._ready.wait(30) and self.announced, "".join(self.log)
        return self

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30, **options)

    @property
    def engine(self) -> psutil.Process:
        """The engine process of this moment."""
        children = psutil.Process(self.process.pid).children()
        return next(child for child in children if "pllm.runtime.engine_process" in child.cmdline())

    def kill_engine(self) -> None:
        """Kills the engine process and waits for the next to serve: right after the first has died, health still says
        what was true before."""
        before = self.engine.pid
        self.engine.kill()
        eventually(lambda: self._serves_from_another(before), 30)

    def _serves_from_another(self, before: int) -> bool:
        with suppress(StopIteration, psutil.NoSuchProcess):
            return self.engine.pid != before and httpx.get(f"{self.url}/health", timeout=30).status_code == 200
        return False

    def gauge(self, name: str) -> float:
        text = httpx.get(f"{self.url}/metrics", timeout=30).text
        match = re.search(rf"^pllm:{name}{{[^}}]*}} (\S+)$", text, re.MULTILINE)
        assert match, text
        return float(match[1])

    def is_idle(self) -> bool:
        """No sequence left in the engine, and no block held."""
        return self.gauge("num_requests_running") == 0 == self.gauge("kv_cache_usage_perc")

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


StartServer = Callable[..., Server]


def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """This process's environment, in which `fake_core` can be imported."""
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, **(extra or {})}


@contextmanager
def running_server(artifact: Path, *flags: str, env: dict[str, str] | None = None) -> Iterator[Server]:
    process = subprocess.Popen(
        [sys.executable, str(HERE / "run_server.py"), str(artifact), "--port", "0", *flags],
        stderr=subprocess.PIPE,
        env=environment(env),
    )
    try:
        yield Server(process)
    finally:
        process.kill()
        process.wait()


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Waits until the condition holds; liveness, not speed."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
