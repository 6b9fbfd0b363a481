"""llama.cpp, in the form of the file that it is given, through its C interface (llama-cpp-python): continuous batching,
greedy, from token ids.

The loop is that of llama.cpp's own server: in each step every sequence that decodes gets a token, prompts fill the rest
of the batch, and a sequence that ends makes room for the next. The KV cache is as llama.cpp has it by default, f16.
"""

import ctypes
import sys
import time
from collections import deque
from typing import Any

import llama_cpp
import numpy as np

from pllm.runtime.bench.workload import Workload, WorkloadRequest

from .worker import Job, Pass, work

_BATCH = 512  # tokens of one step
_CONTEXT = 512  # tokens of one sequence


class Sequence:
    """One request in one of the cache's sequences; computed tokens catch up with tokens."""

    def __init__(self, place: int, slot: int, request: WorkloadRequest) -> None:
        self.place, self.slot = place, slot
        self.tokens = list(request.prompt_token_ids)
        self.computed = 0
        self.end = len(self.tokens) + request.num_output_tokens
        self.num_output_tokens = request.num_output_tokens

    @property
    def pending(self) -> list[int]:
        return self.tokens[self.computed :]

    @property
    def output(self) -> list[int]:
        return self.tokens[self.end - self.num_output_tokens :]


class LlamaCpp:
    """An open model with room for ``width`` sequences."""

    def __init__(self, job: Job) -> None:
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(job.model.encode(), llama_cpp.llama_model_default_params())
        if not model:
            sys.exit(f"llama.cpp cannot load {job.model}")
        self._width = job.workload.concurrency
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = _CONTEXT * self._width
        params.n_batch = params.n_ubatch = _BATCH
        params.n_seq_max = self._width
        params.n_threads = params.n_threads_batch = job.threads
        self._context = llama_cpp.llama_init_from_model(model, params)
        if not self._context:
            sys.exit("llama.cpp cannot make a context")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(_BATCH, 0, 1)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def run(self, workload: Workload) -> Pass:
        waiting = deque(enumerate(workload.requests))
        free = list(range(self._width))
        running: list[Sequence] = []
        found: dict[int, list[int]] = {}
        first = None
        began = time.perf_counter()
        while waiting or running:
            while waiting and free:
                place, request = waiting.popleft()
                running.append(Sequence(place, free.pop(0), request))
            self._step(running)
            if first is None and len(running[0].tokens) > len(workload.requests[0].prompt_token_ids):
                first = time.perf_counter() - began
            for sequence in [each for each in running if len(each.tokens) == each.end]:
                found[sequence.place] = sequence.output
                llama_cpp.llama_memory_seq_rm(self._memory, sequence.slot, -1, -1)
                running.remove(sequence)
                free.append(sequence.slot)
        makespan = time.perf_counter() - began
        single = len(workload.requests) == 1
        return Pass(first if single else None, makespan, [found[place] for place in range(len(found))])

    def _step(self, running: list[Sequence]) -> None:
        """Compute pending tokens, decoding sequences first, and give a token to each that has none left."""
        batch: Any = self._batch
        batch.n_tokens = 0
        samples: list[tuple[Sequence, int]] = []
        for sequence in sorted(running, key=lambda each: len(each.pending) > 1):
            tokens = sequence.pending[: _BATCH - batch.n_tokens]
            for token in tokens:
                i = batch.n_tokens
                batch.token[i], batch.pos[i] = token, sequence.computed
                batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, sequence.slot, 0
                sequence.computed += 1
                batch.n_tokens += 1
            if tokens and not sequence.pending:
                batch.logits[batch.n_tokens - 1] = 1
                samples.append((sequence, batch.n_tokens - 1))
        code = llama_cpp.llama_decode(self._context, batch)
        if code != 0:
            sys.exit(f"llama_decode failed with {code}")
        for sequence, row in samples:
            logits = llama_cpp.llama_get_logits_ith(self._context, row)
            sequence.tokens.append(int(np.ctypeslib.as_array(logits, (self._vocab_size,)).argmax()))


def main() -> None:
    job = Job.parse(["f32", "q8_0", "q4_0"])
    work(job, "llama-cpp-python", LlamaCpp(job).run)


if __name__ == "__main__":
    main()
