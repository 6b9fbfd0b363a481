"""A KV cache in int8: the graph over it computes what it does over a wide one, but for rounding."""

from pathlib import Path

import pytest
import torch

from pllm.build.passes import apply_passes

from .graphs import PagedModel, checkpoint_of, traced_of

PROMPTS = {0: [5, 9, 40, 71, 8], 1: list(range(20, 65))}


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_graph_computes_what_it_did_but_for_rounding(family: str, tmp_path: Path) -> None:
    """A scale in the wrong place makes an error of the logits' own size."""
    checkpoint = checkpoint_of(family, tmp_path)
    logits = []
    for dtype in ("float32", "int8"):
        traced, kv = traced_of(checkpoint, dtype)
        assert kv.block_shape == (2, 2, 2, 16, 20 if dtype == "int8" else 16)
        apply_passes(traced, torch.float32)
        model = PagedModel(traced, kv, checkpoint)
        steps = [model.step(PROMPTS), *(model.step({0: [3 + i], 1: [4 + i]}) for i in range(12))]
        logits.append(torch.cat(steps))
    error = (logits[1] - logits[0]).abs().max() / (logits[0].max() - logits[0].min())
    assert 1e-4 < float(error) < 0.02
