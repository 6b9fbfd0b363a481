"""transformers in float32: ``generate`` over left-padded batches, or its continuous batching."""

import time
from typing import Any

from pllm.runtime.bench.processes import process_age
from pllm.runtime.bench.workload import Workload, WorkloadRequest, warmup

from .worker import Job, Pass, answer

_PAGE = 32  # tokens a page of the continuous cache; 256 of them hold 16 sequences of 512 tokens


def load(job: Job) -> Any:
    """The model with its weights widened to float32: arithmetic as pllm's."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(job.threads)
    torch.set_grad_enabled(False)
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32, attn_implementation="sdpa").eval()
    model.generation_config.eos_token_id = None  # every request runs to the length that it asks for
    return model


class Stamps:
    """A streamer that keeps nothing but the times at which tokens came. What comes first is the prompt."""

    def __init__(self) -> None:
        self._times: list[float] = []

    def put(self, _: object) -> None:
        self._times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is held back."""

    @property
    def first_token(self) -> float:
        return self._times[1]


class Static:
    """As many requests at a time as the workload allows, in order of arrival, padded on the left to the longest prompt
    and run to the longest output. What is computed beyond a request's own output is thrown away."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.first_token_at = 0.0  # on the performance counter, of the last pass over one request

    def run(self, workload: Workload) -> Pass:
        width = workload.concurrency
        groups = [workload.requests[i : i + width] for i in range(0, len(workload.requests), width)]
        began = time.perf_counter()
        token_ids = [ids for group in groups for ids in self._batch(group)]
        ended = time.perf_counter()
        single = len(workload.requests) == 1
        return Pass(self.first_token_at - began if single else None, ended - began, token_ids)

    def _batch(self, group: tuple[WorkloadRequest, ...]) -> list[list[int]]:
        import torch

        longest = max(len(request.prompt_token_ids) for request in group)
        steps = max(request.num_output_tokens for request in group)
        ids = torch.zeros((len(group), longest), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, request in enumerate(group):
            prompt = torch.tensor(request.prompt_token_ids)
            ids[row, longest - len(prompt) :] = prompt
            mask[row, longest - len(prompt) :] = 1
        stamps = Stamps() if len(group) == 1 else None
        out = self._model.generate(
            ids,
            attention_mask=mask,
            do_sample=False,
            min_new_tokens=steps,
            max_new_tokens=steps,
            pad_token_id=0,
            streamer=stamps,
        )
        if stamps is not None:
            self.first_token_at = stamps.first_token
        generated = out[:, longest:].tolist()
        assert all(len(row) == steps for row in generated)
        return [row[: request.num_output_tokens] for row, request in zip(generated, group, strict=True)]

    def close(self) -> None:
        """Nothing runs beside a pass."""


class Continuous:
    """transformers' own scheduler and paged cache, as large as pllm's, without sharing of prefixes."""

    def __init__(self, model: Any, width: int) -> None:
        from transformers import ContinuousBatchingConfig, GenerationConfig

        self._manager = model.init_continuous_batching(
            generation_config=GenerationConfig(do_sample=False, max_new_tokens=64, eos_token_id=-1, pad_token_id=0),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=_PAGE,
                num_blocks=16 * 512 // _PAGE,
                max_batch_tokens=512,
                max_requests_per_batch=width,
                allow_block_sharing=False,
            ),
        )
        self._manager.start()

    def run(self, workload: Workload) -> Pass:
        """All requests are given at once; no more than its limit run together."""
        single = len(workload.requests) == 1
        began = time.perf_counter()
        places = {
            self._manager.add_request(
                list(request.prompt_token_ids), max_new_tokens=request.num_output_tokens, streaming=single
            ): place
            for place, request in enumerate(workload.requests)
        }
        found: dict[int, list[int]] = {}
        first = None
        while len(found) < len(places):
            result = self._manager.get_result(timeout=1)
            if result is None:
                if not self._manager.is_running():
                    raise SystemExit("transformers' continuous batching has ended early")
                continue
            if result.error:
                raise SystemExit(f"transformers' continuous batching failed: {result.error}")
            if single and first is None and result.generated_tokens:
                first = time.perf_counter() - began
            if result.is_finished():
                found[places[result.request_id]] = list(result.generated_tokens)
        ended = time.perf_counter()
        for place, request in enumerate(workload.requests):
            assert len(found[place]) == request.num_output_tokens
        return Pass(first, ended - began, [found[place] for place in range(len(places))])

    def close(self) -> None:
        self._manager.stop(block=True, timeout=10)


def main() -> None:
    job = Job.parse(["static", "continuous"])
    model = load(job)
    ready = process_age()
    engine = Static(model) if job.engine == "static" else Continuous(model, job.workload.concurrency)
    import torch
    import transformers

    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    if job.cold:
        assert isinstance(engine, Static), "a cold start is measured with generate"
        engine.run(job.workload)
        first_token = process_age() - (time.perf_counter() - engine.first_token_at)
        answer([], versions, cold_ready=ready, cold_first_token=first_token)
    else:
        engine.run(warmup(job.vocab_size))
        answer([engine.run(job.workload) for _ in range(job.reps)], versions)
    engine.close()


if __name__ == "__main__":
    main()
