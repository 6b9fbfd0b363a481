"""OpenVINO GenAI's continuous batching on a CPU, greedy, from token ids, one step at a time.

Weights as the model was exported (float16, int8 or int4); arithmetic and KV cache as the library chooses them, which is
bfloat16 where the CPU has it. Beside float32 arithmetic (float16 weights) it is told to compute in float32, too.
"""

import time

import numpy as np
import openvino
import openvino_genai

from pllm.runtime.bench.workload import Workload

from .worker import Job, Pass, work

_STEP_TOKENS = 2048
_CACHE_GB = 2  # 16 sequences of 512 tokens take 1.9 GB in float32


class OpenVino:
    """An open pipeline that runs ``width`` sequences at once."""

    def __init__(self, job: Job) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_seqs = job.workload.concurrency
        scheduler.max_num_batched_tokens = _STEP_TOKENS
        scheduler.cache_size = _CACHE_GB
        scheduler.enable_prefix_caching = False
        properties = {"INFERENCE_NUM_THREADS": job.threads, "PERFORMANCE_HINT": "LATENCY"}
        if job.engine == "f16":
            properties["INFERENCE_PRECISION_HINT"] = "f32"
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(job.model, scheduler, "CPU", properties)
        self._given = 0

    def run(self, workload: Workload) -> Pass:
        """All requests are given at once; no more than its limit run together."""
        began = time.perf_counter()
        handles = []
        for request in workload.requests:
            config = openvino_genai.GenerationConfig()
            config.max_new_tokens = config.min_new_tokens = request.num_output_tokens
            config.ignore_eos = True
            config.do_sample = False
            config.apply_chat_template = False
            ids = openvino.Tensor(np.asarray([request.prompt_token_ids], np.int64))
            handles.append(self._pipeline.add_request(self._given, ids, config))
            self._given += 1
        first = None
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            if first is None:
                first = time.perf_counter() - began
        makespan = time.perf_counter() - began
        token_ids = [list(handle.read_all()[0].generated_ids) for handle in handles]
        for ids, request in zip(token_ids, workload.requests, strict=True):
            assert len(ids) == request.num_output_tokens
        return Pass(first if len(handles) == 1 else None, makespan, token_ids)


def main() -> None:
    job = Job.parse(["f16", "int8", "int4"])
    work(job, "openvino-genai", OpenVino(job).run)


if __name__ == "__main__":
    main()
