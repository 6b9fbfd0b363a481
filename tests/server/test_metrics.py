"""What /metrics says after real requests."""

import json
import re
import time
from collections.abc import Iterator
from importlib.resources import files

import httpx
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from .servers import Server, StartServer, eventually
from .test_lifecycle import LONG, SLOW, raw_request

GAUGES = {"num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "cache_config_info"}
COUNTERS = {
    "prefix_cache_queries",
    "prefix_cache_hits",
    "num_preemptions",
    "prompt_tokens",
    "prompt_tokens_cached",
    "generation_tokens",
    "request_success",
}
TIMES = {
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "request_time_per_output_token_seconds",
    "e2e_request_latency_seconds",
    "request_queue_time_seconds",
    "request_inference_time_seconds",
    "request_prefill_time_seconds",
    "request_decode_time_seconds",
}
SIZES = {"request_prompt_tokens", "request_generation_tokens", "iteration_tokens_total"}


class Scrape:
    """One reading of /metrics."""

    def __init__(self, server: Server, prefix: str = "pllm") -> None:
        answer = httpx.get(f"{server.url}/metrics", timeout=30)
        assert answer.headers["content-type"].startswith("text/plain")
        self.families: dict[str, Metric] = {
            family.name.removeprefix(f"{prefix}:"): family
            for family in text_string_to_metric_families(answer.text)
            if family.name.startswith(f"{prefix}:")
        }

    def value(self, sample: str, **labels: str) -> float:
        """The one sample of this name, without its prefix, that has these labels."""
        (found,) = [
            each.value
            for family in self.families.values()
            for each in family.samples
            if each.name.partition(":")[2] == sample and labels.items() <= each.labels.items()
        ]
        return float(found)

    def count(self, histogram: str) -> float:
        return self.value(f"{histogram}_count")

    def sum(self, histogram: str) -> float:
        return self.value(f"{histogram}_sum")


def complete(server: Server, prompt: str = "hello", **fields: object) -> httpx.Response:
    body = {"prompt": prompt, "max_tokens": 64, **fields}
    return httpx.post(f"{server.url}/v1/completions", json=body, timeout=30)


@pytest.fixture(scope="module", params=["pllm", "vllm"])
def prefix(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def fresh(start: StartServer) -> Iterator[Server]:
    """A server of the test's own, so that its counts are the test's."""
    yield start().wait_ready()


def test_every_metric_under_both_prefixes(start: StartServer, prefix: str) -> None:
    server = start("--metrics-prefix", prefix).wait_ready()
    complete(server)
    scrape = Scrape(server, prefix)
    kinds = {name: family.type for name, family in scrape.families.items()}
    assert {name for name, kind in kinds.items() if kind == "gauge"} >= GAUGES
    assert {name for name, kind in kinds.items() if kind == "counter"} >= COUNTERS
    assert {name for name, kind in kinds.items() if kind == "histogram"} >= TIMES | SIZES
    for name in TIMES | SIZES - {"iteration_tokens_total"}:
        assert scrape.count(name) >= 1, name
    for family in scrape.families.values():
        for sample in family.samples:
            assert sample.labels["model_name"] == "parrot"
    config = scrape.families["cache_config_info"].samples[0].labels
    assert (config["block_size"], config["num_gpu_blocks"]) == ("16", "256")


def test_the_dashboard_reads_metrics_that_exist(start: StartServer, prefix: str) -> None:
    dashboard = json.loads(files("pllm.runtime.server").joinpath("grafana.json").read_text())
    panels = dashboard["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    queries += [each["query"] for each in dashboard["templating"]["list"] if each["type"] == "query"]
    read = {name for query in queries for name in re.findall(r"\$\{prefix\}:(\w+)", query)}
    assert len(read) > 15
    server = start("--metrics-prefix", prefix).wait_ready()
    complete(server)
    samples = {sample.name for family in Scrape(server, prefix).families.values() for sample in family.samples}
    assert {f"{prefix}:{name}" for name in read} <= samples
    labels = {
        label for query in queries for label in re.findall(r"(\w+)=~", query) + re.findall(r"by \((\w+)\)", query)
    }
    assert labels <= {"model_name", "le", "state", "finished_reason"}
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_blocks_by_state_add_up(fresh: Server) -> None:
    complete(fresh, "x" * 40)
    scrape = Scrape(fresh)
    used, cached, free = (scrape.value("kv_blocks", state=state) for state in ("used", "cached", "free"))
    assert (used, used + cached + free) == (0, 256)
    assert cached >= 2


def test_counts(fresh: Server) -> None:
    complete(fresh, "hello")
    complete(fresh, "hello", n=2, max_tokens=3)
    streamed = complete(fresh, "hello", stream=True)
    assert streamed.text.endswith("data: [DONE]\n\n")
    scrape = Scrape(fresh)
    assert scrape.value("generation_tokens_total") == 18
    assert scrape.value("prompt_tokens_total") == 15
    assert scrape.value("request_success_total", finished_reason="stop") == 2
    assert scrape.value("request_success_total", finished_reason="length") == 2
    for name in TIMES - {"inter_token_latency_seconds"} | SIZES - {"iteration_tokens_total"}:
        assert scrape.count(name) == 3, name
    assert scrape.count("inter_token_latency_seconds") == 14
    assert scrape.sum("request_prompt_tokens") == 15
    assert scrape.sum("request_generation_tokens") == 18


def test_the_parts_of_a_request_s_time_add_up(start: StartServer) -> None:
    server = start(env=SLOW).wait_ready()
    for length in (3, 6, 9):
        complete(server, max_tokens=length, ignore_eos=True)
    scrape = Scrape(server)
    queue, inference, prefill, decode, whole = (
        scrape.sum(name)
        for name in (
            "request_queue_time_seconds",
            "request_inference_time_seconds",
            "request_prefill_time_seconds",
            "request_decode_time_seconds",
            "e2e_request_latency_seconds",
        )
    )
    assert queue + inference == pytest.approx(whole)
    assert prefill + decode == pytest.approx(inference)
    # Steps take 50 ms each at least: one a prompt, and one for each token but the first.
    assert prefill >= 3 * 0.05
    assert decode >= (2 + 5 + 8) * 0.05
    assert scrape.sum("time_to_first_token_seconds") == pytest.approx(queue + prefill)


def test_who_waits_for_a_place_is_in_the_queue(start: StartServer) -> None:
    server = start("--max-num-seqs", "1", env=SLOW).wait_ready()
    running = raw_request(server, LONG)
    eventually(lambda: server.gauge("num_requests_running") == 1)
    waiting = raw_request(server, {**LONG, "max_tokens": 1})
    eventually(lambda: server.gauge("num_requests_waiting") == 1)
    seen_waiting = time.monotonic()
    time.sleep(0.3)
    waited = time.monotonic() - seen_waiting
    running.close()
    assert b"200 OK" in waiting.recv(65536)
    waiting.close()
    scrape = Scrape(server)
    assert scrape.count("request_queue_time_seconds") == 1, "the other was aborted"
    assert scrape.sum("request_queue_time_seconds") >= waited
    assert scrape.sum("e2e_request_latency_seconds") >= scrape.sum("request_queue_time_seconds")


def test_the_tokens_of_a_step_are_those_read_and_those_made(fresh: Server) -> None:
    prompt = "x" * 40
    complete(fresh, prompt, max_tokens=5, ignore_eos=True)
    scrape = Scrape(fresh)
    assert scrape.count("iteration_tokens_total") == 5
    assert scrape.sum("iteration_tokens_total") == 40 + 5
    complete(fresh, prompt, max_tokens=5, ignore_eos=True)
    scrape = Scrape(fresh)
    cached = scrape.value("prompt_tokens_cached_total")
    assert cached == 32
    assert scrape.sum("iteration_tokens_total") == 2 * (40 + 5) - cached


def test_a_restarted_engine_counts_from_nothing(fresh: Server) -> None:
    complete(fresh, "x" * 40, max_tokens=1, ignore_eos=True)
    fresh.kill_engine()
    complete(fresh, "y" * 10, max_tokens=1, ignore_eos=True)
    scrape = Scrape(fresh)
    assert scrape.sum("iteration_tokens_total") == 40 + 1 + 10 + 1
    assert scrape.value("prompt_tokens_total") == 50


def test_a_sequence_that_fails_before_its_first_token_has_no_times(fresh: Server) -> None:
    assert complete(fresh, seed=9003).status_code == 500
    scrape = Scrape(fresh)
    assert scrape.value("request_success_total", finished_reason="error") == 1
    assert scrape.count("time_to_first_token_seconds") == 1
    assert scrape.count("inter_token_latency_seconds") == 1, "the failure itself is no token"


def test_what_the_engine_refuses_has_not_ended(fresh: Server) -> None:
    assert complete(fresh, n=9).status_code == 400
    assert Scrape(fresh).families["request_success"].samples == []


def test_who_loses_the_engine_has_ended_with_an_error(start: StartServer) -> None:
    server = start(env=SLOW).wait_ready()
    connection = raw_request(server, {**LONG, "n": 2})
    eventually(lambda: server.gauge("num_requests_running") == 2)
    server.engine.kill()
    assert b"503 Service Unavailable" in connection.recv(65536)
    connection.close()
    assert Scrape(server).value("request_success_total", finished_reason="error") == 2
