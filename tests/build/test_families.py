"""Every family that the build supports: the rewritten graph over a paged cache computes what transformers computes."""

from pathlib import Path

import pytest
import torch

from pllm.build.model_source import load_reference
from pllm.build.passes import apply_passes

from .graphs import FAMILIES, VOCABULARY, PagedModel, checkpoint_of, traced_of

PROMPT_LENGTHS = (1, 21, 37)
NEW_TOKENS = 8
TOLERANCE = 2e-4
"""Of a logit: float32 arithmetic in another order, over logits of about ten."""


@pytest.mark.parametrize("family", FAMILIES)
def test_graph_agrees_with_transformers_on_a_ragged_batch(family: str, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(family, tmp_path)
    traced, kv = traced_of(checkpoint)
    apply_passes(traced, torch.float32)
    model, reference = PagedModel(traced, kv, checkpoint), load_reference(checkpoint)
    generator = torch.Generator().manual_seed(3)
    texts = [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in PROMPT_LENGTHS]

    # The longest prompt's first chunk runs beside the others' whole prompts; its second beside their first token.
    model.step({2: texts[2][:19]})
    logits = model.step({0: texts[0], 1: texts[1], 2: texts[2][19:]})
    for _ in range(NEW_TOKENS):
        for seq, tokens in enumerate(texts):
            with torch.no_grad():
                expected = reference(torch.tensor([tokens]), use_cache=False).logits[0, -1]
            torch.testing.assert_close(logits[seq], expected, atol=TOLERANCE, rtol=0)
            best = expected.topk(2)
            if best.values[0] - best.values[1] > 2 * TOLERANCE:
                assert logits[seq].argmax() == best.indices[0]
            tokens.append(int(best.indices[0]))
        logits = model.step({seq: tokens[-1:] for seq, tokens in enumerate(texts)})
    assert len({token for tokens in texts for token in tokens[-NEW_TOKENS:]}) > 2, "the model repeats one token"
