"""A kernel more in every layer is caught by what the build records of its graphs."""

from pathlib import Path

import torch

from pllm.build.count_cuda import step_counts
from pllm.build.graph_record import record
from pllm.build.passes import apply_passes
from pllm.runtime.gate.check import Verdict
from pllm.runtime.gate.counts import check_counts

from .graphs import SIZES, checkpoint_of, traced_of

LAYERS = SIZES["num_hidden_layers"]


def test_a_kernel_a_layer_is_counted(tmp_path: Path) -> None:
    traced, _ = traced_of(checkpoint_of("qwen3", tmp_path))
    apply_passes(traced, torch.float32)
    before = record(traced.graph, ()).nodes
    for call in traced.calls(torch.ops.pllm.paged_attention.default):
        with traced.graph.inserting_after(call):
            copy = traced.graph.call_function(torch.ops.aten.clone.default, (call,))
        call.replace_all_uses_with(copy, delete_user_cb=lambda user, copy=copy: user is not copy)
    after = record(traced.graph, ()).nodes
    nodes = [{"graph nodes, main": sum(each.values())} for each in (before, after)]
    (check,) = check_counts(*nodes)
    assert (check.verdict, check.reason) == (Verdict.REGRESSION, f"+{LAYERS}")
    assert after.get("aten.clone.default", 0) - before.get("aten.clone.default", 0) == LAYERS


def test_the_pipelined_runner_replays_once_a_step_and_waits_once() -> None:
    found = step_counts()
    for where in ("16 steps of 1 sequence", "16 steps of 8 sequences"):
        assert (found[f"decode, {where}"], found[f"replay, {where}"], found[f"wait, {where}"]) == (16, 16, 16)
        assert found[f"mixed, {where}"] == found[f"copy of KV blocks, {where}"] == 0
        assert found[f"order, {where}"] == "decode replay wait", "the next step is launched, then this one waited for"
    assert step_counts() == found
