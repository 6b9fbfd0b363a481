"""CTranslate2's generator, greedy: static batches of as many requests as the workload allows, in order of arrival, each
run to its longest output. What is computed beyond a request's own output is thrown away."""

import json
import time
from pathlib import Path

import ctranslate2

from pllm.runtime.bench.workload import Workload, WorkloadRequest

from .worker import Job, Pass, work

_ARITHMETIC = {"f32": "float32", "int8": "int8_float32"}


class CTranslate2:
    """An open model; its vocabulary gives the words that stand for token ids."""

    def __init__(self, job: Job) -> None:
        self._generator = ctranslate2.Generator(
            job.model,
            device="cpu",
            compute_type=_ARITHMETIC[job.engine],
            intra_threads=job.threads,
            inter_threads=1,
        )
        self._words = json.loads((Path(job.model) / "vocabulary.json").read_text(encoding="utf-8"))

    def run(self, workload: Workload) -> Pass:
        width = workload.concurrency
        first, token_ids = None, []
        began = time.perf_counter()
        for start in range(0, len(workload.requests), width):
            first, found = self._batch(workload.requests[start : start + width])
            token_ids += found
        ended = time.perf_counter()
        return Pass(None if first is None else first - began, ended - began, token_ids)

    def _batch(self, group: tuple[WorkloadRequest, ...]) -> tuple[float | None, list[list[int]]]:
        steps = max(request.num_output_tokens for request in group)
        stamps: list[float] = []

        def stamp(_: object) -> bool:
            stamps.append(time.perf_counter())
            return False

        found = self._generator.generate_batch(
            [[self._words[i] for i in request.prompt_token_ids] for request in group],
            max_length=steps,
            min_length=steps,
            sampling_topk=1,
            include_prompt_in_result=False,
            end_token=[],
            callback=stamp if len(group) == 1 else None,  # of one request alone
        )
        rows = [result.sequences_ids[0] for result in found]
        assert all(len(row) == steps for row in rows)
        outputs = [row[: request.num_output_tokens] for row, request in zip(rows, group, strict=True)]
        return (stamps[0] if stamps else None), outputs


def main() -> None:
    job = Job.parse(list(_ARITHMETIC))
    work(job, "ctranslate2", CTranslate2(job).run)


if __name__ == "__main__":
    main()
