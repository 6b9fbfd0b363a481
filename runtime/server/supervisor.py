"""Keeps an engine process running: notices that one has died or hangs, and starts the next.

A restart is cheap (that is what the artifact is for), so the server survives its engine. An engine that keeps dying is
given up, and the server with it, so that whoever runs it sees.
"""

import asyncio
import contextlib
import logging
from collections import deque
from dataclasses import dataclass

from pllm.runtime.engine_client import EngineClient
from pllm.runtime.server.launch import EngineProcess

__all__ = ["RestartPolicy", "Supervisor"]

_LOG = logging.getLogger("pllm.server")


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """All in seconds but ``max_restarts``, which counts restarts within ``window``.

    ``step_timeout``: how long an engine with work may say nothing; a step of a large model on a slow machine must fit.
    ``stopped_timeout``: how long a process may be held by a signal before it is given up.
    """

    max_restarts: int = 5
    window: float = 300.0
    first_delay: float = 0.1
    longest_delay: float = 10.0
    step_timeout: float = 300.0
    stopped_timeout: float = 3.0
    poll_interval: float = 0.5


class Supervisor:
    """Runs engine processes one after another and attaches each to the client.

    ``run`` ends only when the engine is given up, with the exit code for the server; ``close`` ends the engine.
    """

    def __init__(
        self,
        client: EngineClient,
        first: EngineProcess,
        policy: RestartPolicy,
    ) -> None:
        self._client = client
        self._process = first
        self._policy = policy
        self.num_restarts = 0

    @property
    def engine_pid(self) -> int:
        """The process id of the present engine."""
        return self._process.pid

    async def run(self) -> int:
        """Serves until the engine is given up: one that could not be opened, or that died too often."""
        policy = self._policy
        restarts: deque[float] = deque()
        loop = asyncio.get_running_loop()
        while True:
            reason = await self._live()
            was_ready = self._client.ready
            self._client.detach(f"The engine has stopped ({reason}) and is being started again. Try again soon.")
            self._process.close()
            failure = self._client.failure
            if failure is not None and failure.permanent:
                _LOG.error("%s", failure.message)
                return failure.exit_code
            if failure is not None:
                reason = failure.message
            now = loop.time()
            while restarts and now - restarts[0] > policy.window:
                restarts.popleft()
            if len(restarts) >= policy.max_restarts or (not was_ready and self.num_restarts == 0):
                _LOG.error("The engine has stopped (%s) and is given up after %d restarts.", reason, len(restarts))
                return 1
            delay = min(policy.first_delay * 2 ** len(restarts), policy.longest_delay)
            _LOG.error("The engine has stopped (%s); starting it again in %.1f s.", reason, delay)
            restarts.append(now)
            await asyncio.sleep(delay)
            self.num_restarts += 1
            self._process = EngineProcess.start(self._process.options)

    async def close(self, *, at_once: bool) -> None:
        """Ends the engine process: by the end of its socket, and if that does not do within a second, by force."""
        self._client.detach("The server is shutting down.")
        for _ in range(0 if at_once else 100):
            if self._process.exit_code() is not None:
                break
            await asyncio.sleep(0.01)
        self._process.close()

    async def _live(self) -> str:
        """One life of an engine process, until it should be replaced; why, in words."""
        process, client, policy = self._process, self._client, self._policy
        lost = asyncio.Event()
        await client.attach(process.socket, lost.set)
        heard, silent, stopped = -1, 0.0, 0.0
        while process.exit_code() is None and not lost.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(lost.wait(), policy.poll_interval)
            # Counted in polls, not read off a clock: a server that was itself stopped or suspended for an hour must
            # not blame its engine.
            stopped = stopped + policy.poll_interval if process.is_stopped() else 0.0
            if stopped > policy.stopped_timeout:
                return "held by a signal"
            busy = client.ready and client.num_requests > 0
            silent = silent + policy.poll_interval if busy and client.num_messages == heard else 0.0
            heard = client.num_messages
            if silent > policy.step_timeout:
                return f"no step finished in {policy.step_timeout:.0f} s"
        for _ in range(100):  # a dying process closes its socket a moment before it can be reaped
            if (code := process.exit_code()) is not None:
                return f"killed by signal {-code}" if code < 0 else f"exit code {code}"
            await asyncio.sleep(0.01)
        return "it closed its socket"
