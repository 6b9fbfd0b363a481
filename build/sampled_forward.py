"""The model with its sampler: what a program for CUDA computes. The token is drawn where the logits are.

Rows that ask for it are penalised first, over a history that the program keeps up; others cost nothing.
"""

from typing import Any

import torch

from pllm.build.export import DIMS, PackedForward
from pllm.runtime.manifest import DimRange, TensorInfo

__all__ = ["SAMPLED_DIMS", "SampledForward", "sampler_inputs"]

SAMPLED_DIMS = DIMS | {"history_slots": DimRange(min=1, max=2**31 - 1)}


def sampler_inputs(vocab_size: int) -> tuple[TensorInfo, ...]:
    """What a program takes after the inputs of every program, in order: how each row of logits is drawn from.

    As the operators `penalize`, `sample_tokens` and `record` take them (`kernels/reference.py`). A temperature below 0
    is that of a row that nothing is drawn from, a history_slot below 0 of one that is not penalised.
    """
    rows: dict[str, str] = {
        "temperature": "float32", "top_k": "int32", "top_p": "float32", "min_p": "float32", "seeds": "int64",
        "draws": "int64", "history_slot": "int32", "repetition": "float32", "frequency": "float32",
        "presence": "float32",
    }  # fmt: skip
    history = TensorInfo(name="history", dtype="int32", shape=("history_slots", vocab_size))
    return (*(TensorInfo(name=name, dtype=dtype, shape=("rows",)) for name, dtype in rows.items()), history)


class SampledForward(PackedForward):
    """Logits [R, V], penalised where asked for, and a token drawn from each row, int64 [R], -1 where there is none."""

    def __init__(self, model: torch.nn.Module, max_rows: int) -> None:
        super().__init__(model)
        self._max_rows = max_rows

    def forward(  # type: ignore[override]  # noqa: PLR0917  it takes more than every program does
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        block_table: torch.Tensor,
        query_start: torch.Tensor,
        context_len: torch.Tensor,
        logits_index: torch.Tensor,
        kv: torch.Tensor,
        temperature: torch.Tensor,
        top_k: torch.Tensor,
        top_p: torch.Tensor,
        min_p: torch.Tensor,
        seeds: torch.Tensor,
        draws: torch.Tensor,
        history_slot: torch.Tensor,
        repetition: torch.Tensor,
        frequency: torch.Tensor,
        presence: torch.Tensor,
        history: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ops: Any = torch.ops.pllm
        inputs = (input_ids, positions, block_table, query_start, context_len, logits_index, kv)
        # Not [0]: what is written into a selection would be scattered back, by a copy.
        logits = self.logits(*inputs).squeeze(0)
        ops.penalize(logits, history, history_slot, repetition, frequency, presence)
        tokens = ops.sample_tokens(logits, temperature, top_k, top_p, min_p, seeds, draws)
        ops.record(history, history_slot, tokens, self._max_rows)
        return logits, tokens
