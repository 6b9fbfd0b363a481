"""A StepDevice over torch's tensors: static buffers that captured graphs read, and the buffer of drawn tokens.

    host      rows --> staging --one copy-->  device arrays [max_num_seqs, ...]
    device    places --gather--> input_ids --> program --> tokens --> places[:bucket], and to the host
              ^------------------------------------------------------'

A graph of `bucket` rows reads the first rows of each array. Rows beyond a batch are of no sequence: their query_start
does not advance, so that nothing is attended to or written, and their temperature is -1, so that nothing is drawn.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pllm.runtime.cuda.graphs import BucketGraphs, CaptureTime, GraphDevice
from pllm.runtime.cuda.pipelined_runner import DecodeRow, Draw
from pllm.runtime.cuda.staging import Layout, Staging
from pllm.runtime.inputs import StagedStep
from pllm.runtime.sampling import SMALLEST_TOP_P
from pllm.runtime.scheduler_config import SchedulerConfig

__all__ = ["Forward", "TorchStepDevice"]

Forward = Callable[[Mapping[str, Tensor]], tuple[Tensor, Tensor]]
"""A program: its inputs by name, with those of the sampler (one for each row of logits, and the history); returns
logits [R, V] and tokens int64 [R], -1 where there are none."""

_SAMPLER = {
    "temperature": torch.float32,
    "top_k": torch.int32,
    "top_p": torch.float32,
    "min_p": torch.float32,
    "seeds": torch.int64,
    "draws": torch.int64,
    "history_slot": torch.int32,
    "repetition": torch.float32,
    "frequency": torch.float32,
    "presence": torch.float32,
}
_NOBODY = {"temperature": -1.0, "history_slot": -1}
"""Of a row that nothing is drawn from."""


class _Launched:
    """Tokens, and maybe logits, on their way to the host."""

    def __init__(self, tokens: Tensor, count: int, logits: Tensor | None = None) -> None:
        self._logits = logits
        self._count = count
        self._event: torch.cuda.Event | None = None
        if tokens.device.type == "cuda":
            self._tokens = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
            self._tokens.copy_(tokens, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._tokens = tokens.clone()

    def tokens(self) -> list[int]:
        if self._event is not None:
            self._event.synchronize()
        found: list[int] = self._tokens[: self._count].tolist()
        return found

    def logits(self) -> NDArray[np.float32]:
        assert self._logits is not None, "a decode launch keeps no logits"
        found: NDArray[np.float32] = self._logits.cpu().float().numpy()
        return found


class TorchStepDevice:
    """Carries out launches on the current stream of one torch device. `capture` comes before the first `decode`."""

    def __init__(
        self, config: SchedulerConfig, device: torch.device, kv: Tensor, *, decode: Forward, mixed: Forward
    ) -> None:
        """decode: for steps of one new token a sequence, whatever its program; mixed: for any step."""
        self.config = config
        self._device = device
        self.pool = kv
        self._decode = decode
        self._mixed = mixed
        most, width = config.max_num_seqs, -(-config.max_model_len // config.block_size)
        tables: Layout = {
            "block_table": (torch.int32, (most, width)),
            "query_start": (torch.int32, (most + 1,)),
            "context_len": (torch.int32, (most,)),
        }
        self._staging = Staging(
            {
                "known": (torch.int64, (most,)),
                "place": (torch.int64, (most,)),
                "positions": (torch.int64, (most,)),
                **tables,
                **{name: (dtype, (most,)) for name, dtype in _SAMPLER.items()},
            },
            device,
        )
        tokens, rows = config.max_num_batched_tokens, config.max_logit_rows
        self._mixed_staging = Staging(
            {
                "input_ids": (torch.int64, (tokens,)),
                "positions": (torch.int64, (tokens,)),
                "logits_index": (torch.int64, (rows,)),
                "sample_rows": (torch.int64, (most,)),
                **tables,
                **{name: (dtype, (rows,)) for name, dtype in _SAMPLER.items()},
            },
            device,
        )
        self._history = torch.zeros((most, config.vocab_size), dtype=torch.int32, device=device)
        self._input_ids = torch.zeros(most, dtype=torch.int64, device=device)
        self._logits_index = torch.arange(most, dtype=torch.int64, device=device)
        self._places = torch.zeros(2 * most, dtype=torch.int64, device=device)
        self._graphs: BucketGraphs[object] | None = None

    def capture(
        self,
        graph_device: GraphDevice[object],
        buckets: Sequence[int],
        captured: Callable[[CaptureTime], None] | None = None,
    ) -> BucketGraphs[object]:
        """Run every bucket over no sequences, then capture it; `captured` hears of each as it is done."""
        self._stage([])
        self._graphs = BucketGraphs.capture(graph_device, buckets, self.run, captured)
        return self._graphs

    def drop_graphs(self) -> None:
        """Give them back; `capture` makes others."""
        self._graphs = None

    def replay(self, bucket: int, rows: Sequence[DecodeRow]) -> None:
        """Stage the rows and launch the bucket's graph, for whoever measures it. Does not wait."""
        assert self._graphs is not None, "capture comes first"
        self._stage(rows)
        self._graphs.replay(bucket)

    def replay_again(self, bucket: int) -> None:
        """Launch the bucket's graph over what was staged last. Does not wait."""
        assert self._graphs is not None, "capture comes first"
        self._graphs.replay(bucket)

    def run(self, bucket: int) -> None:
        """What a graph of the bucket holds: the first `bucket` rows of the buffers, whatever is in them."""
        arrays = self._staging.device
        known, place = arrays["known"][:bucket], arrays["place"][:bucket]
        # A token that could not be drawn is -1; its sequence ends, and until then a row may read any token.
        torch.where(known < 0, self._places[place], known, out=self._input_ids[:bucket])
        self._input_ids[:bucket].clamp_(min=0)
        inputs = {
            "input_ids": self._input_ids[:bucket],
            "positions": arrays["positions"][:bucket],
            "block_table": arrays["block_table"][:bucket],
            "query_start": arrays["query_start"][: bucket + 1],
            "context_len": arrays["context_len"][:bucket],
            "logits_index": self._logits_index[:bucket],
            "kv": self.pool,
            "history": self._history,
            **{name: arrays[name][:bucket] for name in _SAMPLER},
        }
        _, tokens = self._decode(inputs)
        self._places[:bucket].copy_(tokens)

    def drawn(self, bucket: int) -> Tensor:
        """The tokens that the last run or replay of the bucket drew, where they lie: int64 [bucket]."""
        return self._places[:bucket]

    def decode(self, rows: Sequence[DecodeRow]) -> _Launched:
        assert self._graphs is not None, "capture comes first"
        self._write_histories([row.draw for row in rows])
        self._stage(rows)
        self._graphs.replay(self._graphs.bucket_of(len(rows)))
        return _Launched(self._places[: self.config.max_num_seqs], len(rows))

    def mixed(self, step: StagedStep, draws: Sequence[Draw | None]) -> _Launched:
        self._write_histories([draw for draw in draws if draw is not None])
        arrays = self._mixed_staging.fill()
        sizes = {name: len(array) for name, array in step.arrays.items()}
        rows, drawn = sizes["logits_index"], len(step.sample_rows)
        for name, array in step.arrays.items():
            arrays[name][tuple(map(slice, array.shape))] = array
        arrays["sample_rows"][:drawn] = step.sample_rows
        for name, nothing in _NOBODY.items():
            arrays[name][:rows] = nothing
        for row, draw in zip(step.sample_rows, draws, strict=True):
            if draw is not None:
                _set_draw(arrays, row, draw)
        self._mixed_staging.send()
        there = self._mixed_staging.device
        inputs = {name: there[name][:size] for name, size in (sizes | dict.fromkeys(_SAMPLER, rows)).items()}
        logits, tokens = self._mixed({**inputs, "kv": self.pool, "history": self._history})
        found = tokens[there["sample_rows"][:drawn]]
        first = self.config.max_num_seqs
        self._places[first : first + drawn] = found
        return _Launched(found, drawn, logits)

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        for source, target in pairs:
            self.pool[target].copy_(self.pool[source])

    def _stage(self, rows: Sequence[DecodeRow]) -> None:
        arrays, count = self._staging.fill(), len(rows)
        for i, row in enumerate(rows):
            arrays["known"][i], arrays["place"][i] = row.token_id, max(row.place, 0)
            arrays["positions"][i], arrays["context_len"][i] = row.position, row.position + 1
            arrays["block_table"][i, : len(row.block_table)] = row.block_table
            _set_draw(arrays, i, row.draw)
        arrays["query_start"][:] = np.minimum(np.arange(len(arrays["query_start"])), count)
        for name in ("known", "place", "positions", "context_len"):
            arrays[name][count:] = 0
        for name, nothing in _NOBODY.items():
            arrays[name][count:] = nothing
        self._staging.send()

    def _write_histories(self, draws: Sequence[Draw]) -> None:
        """Of sequences whose tokens the CPU knows, in the form that `penalize` takes."""
        for draw in draws:
            if draw.slot >= 0 and draw.is_known:
                spec, size = draw.spec, self.config.vocab_size
                counts = 2 * np.bincount(np.asarray(spec.output_token_ids, np.int64), minlength=size)
                counts[np.asarray(spec.prompt_token_ids, np.int64)] += 1
                self._history[draw.slot].copy_(torch.from_numpy(counts.astype(np.int32)), non_blocking=True)


def _set_draw(arrays: Mapping[str, NDArray[Any]], row: int, draw: Draw) -> None:
    params = draw.spec.params
    arrays["temperature"][row] = 0.0 if params.greedy else params.temperature
    arrays["top_k"][row] = params.top_k
    arrays["top_p"][row] = max(params.top_p, SMALLEST_TOP_P)
    arrays["min_p"][row] = params.min_p
    # The seed's 64 bits, as torch has them.
    arrays["seeds"][row] = draw.spec.seed - (1 << 64) if draw.spec.seed >> 63 else draw.spec.seed
    arrays["draws"][row] = draw.index
    arrays["history_slot"][row] = draw.slot
    arrays["repetition"][row] = params.repetition_penalty
    arrays["frequency"][row] = params.frequency_penalty
    arrays["presence"][row] = params.presence_penalty
