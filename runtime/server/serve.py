"""A server's life: open, serve, drain, end."""

import asyncio
import contextlib
import gc
import logging
import signal
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path

import uvloop
from uvicorn.config import Config
from uvicorn.server import ServerState

from pllm.runtime.errors import PllmError
from pllm.runtime.server.address import Address
from pllm.runtime.server.app import build_app
from pllm.runtime.server.connection import Connection
from pllm.runtime.server.launch import EngineProcess
from pllm.runtime.server.service import Service
from pllm.runtime.server.settings import ServerSettings
from pllm.runtime.server.supervisor import RestartPolicy, Supervisor

__all__ = ["run_server"]

_LOG = logging.getLogger("pllm.server")
_BACKLOG = 4096  # connections that the kernel holds for us; it takes its own limit where that is lower
_FLUSH = 5.0  # seconds for the last answers to leave the sockets


def run_server(
    settings: ServerSettings,
    address: Address,
    engine: EngineProcess,
    policy: RestartPolicy,
    on_ready: Callable[[Service], None],
) -> int:
    """Serves on ``address`` (bound) from ``engine`` (just started) until a signal, or until the engine is given up.

    Returns the exit code. ``on_ready`` is called once, when the first request can be served.
    """

    async def main() -> int:
        return await _Server(settings, engine, policy).run(address, on_ready)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())


class _Server:
    def __init__(self, settings: ServerSettings, engine: EngineProcess, policy: RestartPolicy) -> None:
        self._settings = settings
        self._service = Service(settings, Path(str(engine.options["artifact"])))
        self._supervisor = Supervisor(self._service.engine, engine, policy)
        self._http = ServerState()
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()

    async def run(self, address: Address, on_ready: Callable[[Service], None]) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        clock = asyncio.ensure_future(self._keep_date())
        supervision = asyncio.ensure_future(self._supervisor.run())
        stop = asyncio.ensure_future(self._stop.wait())
        listening = await self._listen(address)
        try:
            opening = asyncio.ensure_future(self._open())
            await asyncio.wait((opening, supervision, stop), return_when=asyncio.FIRST_COMPLETED)
            if opening.done() and not supervision.done():
                try:
                    opening.result()
                except PllmError as error:
                    _LOG.error("%s", error)
                    return error.exit_code
                gc.freeze()  # what the start has made stays: no later collection walks it
                on_ready(self._service)
                await asyncio.wait((supervision, stop), return_when=asyncio.FIRST_COMPLETED)
            opening.cancel()
            if supervision.done():
                return supervision.result()
            await self._drain()
            return 1 if self._stop_now.is_set() else 0
        finally:
            listening.close()
            for task in (clock, stop, supervision):
                task.cancel()
            await self._supervisor.close(at_once=self._stop_now.is_set())
            await self._flush()
            self._service.close()

    async def _open(self) -> None:
        await self._service.open_text()
        await self._service.opened.wait()

    async def _listen(self, address: Address) -> asyncio.Server:
        settings = self._settings
        config = Config(
            build_app(self._service),
            http=Connection,
            ws="none",
            loop="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=settings.limits.keep_alive,
        )
        config.load()

        def connection() -> Connection:
            return Connection(config, self._http, {}, limits=settings.limits)

        loop = asyncio.get_running_loop()
        if address.uds is not None:
            return await loop.create_unix_server(connection, sock=address.listener, backlog=_BACKLOG, ssl=address.tls)
        return await loop.create_server(connection, sock=address.listener, backlog=_BACKLOG, ssl=address.tls)

    async def _keep_date(self) -> None:
        """The date header, made once a second instead of once an answer."""
        while True:
            self._http.default_headers = [(b"date", formatdate(usegmt=True).encode())]
            await asyncio.sleep(1)

    def _on_signal(self) -> None:
        if self._stop.is_set():
            self._stop_now.set()
        self._stop.set()

    async def _drain(self) -> None:
        """Takes nothing new, and lets what runs finish: until the grace time is over, or a second signal comes."""
        self._service.draining = True
        running = set(self._http.tasks)
        if not running:
            return
        _LOG.info("Shutting down: %d requests may take up to %.0f s to finish.", len(running), self._settings.grace)
        hurry = asyncio.ensure_future(self._stop_now.wait())
        finished = asyncio.ensure_future(asyncio.wait(running))
        await asyncio.wait((finished, hurry), timeout=self._settings.grace, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        finished.cancel()
        left = sum(not task.done() for task in running)
        if left:
            _LOG.warning("%d requests have not finished and are ended with an error.", left)

    async def _flush(self) -> None:
        """What has been written leaves the sockets; then they are closed."""
        if self._http.tasks and not self._stop_now.is_set():
            await asyncio.wait(set(self._http.tasks), timeout=1.0)  # the engine's end has failed them: they say so
        for connection in list(self._http.connections):
            connection.shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0 if self._stop_now.is_set() else _FLUSH):
                while self._http.connections:
                    await asyncio.sleep(0.01)
        for task in list(self._http.tasks):
            task.cancel()
