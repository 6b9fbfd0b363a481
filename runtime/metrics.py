"""What the server counts, as Prometheus reads it. Names and buckets are vLLM's, so that its dashboards work.

Gauges and the engine's own counters are read from its last step when somebody asks; only what belongs to a request or
a token is counted as it happens.
"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from pllm.runtime.engine_client import EngineClient
from pllm.runtime.messages import Step
from pllm.runtime.outputs import RequestMetrics

__all__ = ["CONTENT_TYPE", "ServerMetrics"]

CONTENT_TYPE = CONTENT_TYPE_LATEST

_FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560),
)
_PER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_REQUEST = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
_ITERATION = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


class ServerMetrics:
    """The metrics of one server. ``prefix`` is what names begin with, before a colon: pllm, or vllm."""

    def __init__(self, client: EngineClient, *, prefix: str, model_name: str) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._labels = {"model_name": model_name, "engine": "0"}
        self._prefix = prefix
        self._registry.register(_EngineCollector(client, prefix, self._labels))

        def counter(name: str, what: str) -> Counter:
            metric = Counter(f"{prefix}:{name}", what, list(self._labels), registry=self._registry)
            return metric.labels(**self._labels)

        def histogram(name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
            metric = Histogram(f"{prefix}:{name}", what, list(self._labels), registry=self._registry, buckets=buckets)
            return metric.labels(**self._labels)

        self._prompt_tokens = counter("prompt_tokens", "Prompt tokens of requests that have given a first token")
        self._cached_tokens = counter("prompt_tokens_cached", "Those of them that were in the prefix cache")
        self._generation_tokens = counter("generation_tokens", "Tokens generated")
        self._success = Counter(
            f"{prefix}:request_success",
            "Sequences that have ended, by reason",
            [*self._labels, "finished_reason"],
            registry=self._registry,
        )
        self._first_token = histogram("time_to_first_token_seconds", "From arrival to the first token", _FIRST_TOKEN)
        self._between = histogram("inter_token_latency_seconds", "From one token to the next", _PER_TOKEN)
        self._per_token = histogram(
            "request_time_per_output_token_seconds", "A request's mean time from one token to the next", _PER_TOKEN
        )
        # A request's time in parts: e2e = queue + inference, and inference = prefill + decode.
        self._whole = histogram("e2e_request_latency_seconds", "From arrival to the last token", _REQUEST)
        self._queue = histogram("request_queue_time_seconds", "From arrival to the first step that ran it", _REQUEST)
        self._inference = histogram("request_inference_time_seconds", "From that step to the last token", _REQUEST)
        self._prefill = histogram("request_prefill_time_seconds", "From that step to the first token", _REQUEST)
        self._decode = histogram("request_decode_time_seconds", "From the first token to the last", _REQUEST)
        self._request_prompt = histogram("request_prompt_tokens", "Prompt tokens of a request", _TOKENS)
        self._request_generation = histogram("request_generation_tokens", "Generated tokens of a request", _TOKENS)
        self._iteration = histogram(
            "iteration_tokens_total", "Prompt tokens computed and tokens generated in a step of the engine", _ITERATION
        )
        self._prompt_tokens_computed = 0  # as the engine counted them at its last step

    def step(self, step: Step) -> None:
        """A step of the engine has arrived."""
        generated = sum(len(delta.token_ids) for delta in step.deltas)
        earlier, now = self._prompt_tokens_computed, step.stats.prompt_tokens_computed
        computed = now - earlier if now >= earlier else now  # an engine that was started again counts from 0
        self._prompt_tokens_computed = now
        if generated:
            self._generation_tokens.inc(generated)
        if generated or computed:
            self._iteration.observe(generated + computed)

    def first_token(self, seconds: float, prompt_tokens: int, cached_tokens: int) -> None:
        """A request has given its first token, so its prompt was read."""
        self._first_token.observe(seconds)
        self._prompt_tokens.inc(prompt_tokens)
        self._cached_tokens.inc(cached_tokens)

    def next_token(self, seconds: float) -> None:
        """A sequence has given one more token, this long after its last."""
        self._between.observe(seconds)

    def sequence_ended(self, reason: str) -> None:
        """A sequence is over: stop, length, abort or error."""
        self._success.labels(**self._labels, finished_reason=reason).inc()

    def request_ended(self, times: RequestMetrics, prompt_tokens: int, generated_tokens: int) -> None:
        """A request is over, all its answers complete."""
        self._request_prompt.observe(prompt_tokens)
        self._request_generation.observe(generated_tokens)
        scheduled, first, last = times.first_scheduled_time, times.first_token_time, times.last_token_time
        if scheduled is None or first is None or last is None:
            return  # it failed before it gave a token
        self._whole.observe(last - times.arrival_time)
        self._queue.observe(scheduled - times.arrival_time)
        self._inference.observe(last - scheduled)
        self._prefill.observe(first - scheduled)
        decode = last - first
        self._decode.observe(decode)
        if generated_tokens > 1:
            self._per_token.observe(decode / (generated_tokens - 1))

    def exposition(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)


class _EngineCollector(Collector):
    """The engine's own numbers, as of its last message; none while no engine runs."""

    def __init__(self, client: EngineClient, prefix: str, labels: dict[str, str]) -> None:
        self._client, self._prefix, self._labels = client, prefix, labels

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        stats, info = self._client.stats, self._client.info
        if stats is None or info is None:
            return
        yield self._gauge("num_requests_running", "Sequences in the running batch", stats.num_running)
        yield self._gauge("num_requests_waiting", "Requests waiting to run", stats.num_waiting)
        used = stats.kv_blocks_used / max(stats.kv_blocks_total, 1)
        yield self._gauge("kv_cache_usage_perc", "Part of the KV blocks in use, 0 to 1", used)
        blocks = GaugeMetricFamily(f"{self._prefix}:kv_blocks", "KV blocks by state", labels=[*self._labels, "state"])
        free = stats.kv_blocks_total - stats.kv_blocks_used - stats.kv_blocks_cached
        for state, count in (("used", stats.kv_blocks_used), ("cached", stats.kv_blocks_cached), ("free", free)):
            blocks.add_metric([*self._labels.values(), state], count)
        yield blocks
        what = "Decoding steps' times over those that the build measured: above 1 is slower; NaN before the first"
        yield self._gauge("perf_ratio_vs_build", what, self._client.perf_ratio)
        yield self._gauge("kv_tokens_held", "Tokens in used KV blocks", stats.kv_tokens_held)
        yield self._counter("prefix_cache_queries", "Prompt tokens looked up", stats.prefix_cache_queries)
        yield self._counter("prefix_cache_hits", "Prompt tokens found cached", stats.prefix_cache_hits)
        yield self._counter("num_preemptions", "Sequences that had to give up their blocks", stats.num_preemptions)
        config = {
            "block_size": str(info.block_size),
            "num_gpu_blocks": str(info.num_blocks),  # vLLM's name, whatever the device
            "enable_prefix_caching": str(info.enable_prefix_caching),
            "max_num_seqs": str(info.max_num_seqs),
            "max_model_len": str(info.max_model_len),
        }
        labels = self._labels | config
        name = f"{self._prefix}:cache_config_info"
        family = GaugeMetricFamily(name, "How the KV cache is set up", labels=list(labels))
        family.add_metric(list(labels.values()), 1)
        yield family

    def _gauge(self, name: str, what: str, value: float) -> GaugeMetricFamily:
        family = GaugeMetricFamily(f"{self._prefix}:{name}", what, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family

    def _counter(self, name: str, what: str, value: float) -> CounterMetricFamily:
        family = CounterMetricFamily(f"{self._prefix}:{name}", what, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family
