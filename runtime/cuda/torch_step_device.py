"""A StepDevice over torch's tensors: static buffers that captured graphs read, and the buffer of drawn tokens.

    host      rows --> staging --one copy-->  device arrays [max_num_seqs, ...]
    device    places --gather--> input_ids --> program --> tokens --> places[:bucket], and to the host
              ^------------------------------------------------------'

A graph of `bucket` rows reads the first rows of each array. Rows beyond a batch are of no sequence: their query_start
does not advance, so that nothing is attended to or written, and their temperature is -1, so that nothing is drawn.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pllm.runtime.cuda.graphs import BucketGraphs, GraphDevice
from pllm.runtime.cuda.pipelined_runner import DecodeRow, Draw
from pllm.runtime.cuda.staging import Staging
from pllm.runtime.inputs import StagedStep
from pllm.runtime.sampling import SMALLEST_TOP_P
from pllm.runtime.scheduler_config import SchedulerConfig

__all__ = ["Forward", "TorchStepDevice"]

Forward = Callable[[Mapping[str, Tensor]], tuple[Tensor, Tensor]]
"""A program: its inputs by name, with those of the sampler (temperature, top_k, top_p, min_p, seeds, draws: one for
each row of logits); returns logits [R, V] and tokens int64 [R], -1 where there are none."""

_SAMPLER = {
    "temperature": torch.float32,
    "top_k": torch.int32,
    "top_p": torch.float32,
    "min_p": torch.float32,
    "seeds": torch.int64,
    "draws": torch.int64,
}
_NOBODY = -1.0
"""The temperature of a row that nothing is drawn from."""


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
        found: NDArray[np.float32] = self._logits.float().cpu().numpy()
        return found


class TorchStepDevice:
    """Carries out launches on the current stream of one torch device. `capture` comes before the first `decode`."""

    def __init__(
        self, config: SchedulerConfig, device: torch.device, kv: Tensor, *, decode: Forward, mixed: Forward
    ) -> None:
        self._config = config
        self._device = device
        self._kv = kv
        self._decode = decode
        self._mixed = mixed
        most, width = config.max_num_seqs, -(-config.max_model_len // config.block_size)
        self._staging = Staging(
            {
                "known": (torch.int64, (most,)),
                "place": (torch.int64, (most,)),
                "positions": (torch.int64, (most,)),
                "block_table": (torch.int32, (most, width)),
                "query_start": (torch.int32, (most + 1,)),
                "context_len": (torch.int32, (most,)),
                **{name: (dtype, (most,)) for name, dtype in _SAMPLER.items()},
            },
            device,
        )
        self._input_ids = torch.zeros(most, dtype=torch.int64, device=device)
        self._logits_index = torch.arange(most, dtype=torch.int64, device=device)
        self._places = torch.zeros(2 * most, dtype=torch.int64, device=device)
        self._graphs: BucketGraphs[object] | None = None

    def capture(self, graph_device: GraphDevice[object], buckets: Sequence[int]) -> BucketGraphs[object]:
        """Run every bucket over no sequences, then capture it."""
        self._stage([])
        self._graphs = BucketGraphs.capture(graph_device, buckets, self.run)
        return self._graphs

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
            "kv": self._kv,
            **{name: arrays[name][:bucket] for name in _SAMPLER},
        }
        _, tokens = self._decode(inputs)
        self._places[:bucket].copy_(tokens)

    def decode(self, rows: Sequence[DecodeRow]) -> _Launched:
        assert self._graphs is not None, "capture comes first"
        self._stage(rows)
        self._graphs.replay(self._graphs.bucket_of(len(rows)))
        return _Launched(self._places[: self._config.max_num_seqs], len(rows))

    def mixed(self, step: StagedStep, draws: Sequence[Draw | None]) -> _Launched:
        rows = len(step.arrays["logits_index"])
        sampler = {name: torch.zeros(rows, dtype=dtype) for name, dtype in _SAMPLER.items()}
        sampler["temperature"].fill_(_NOBODY)
        for row, draw in zip(step.sample_rows, draws, strict=True):
            if draw is not None:
                _set_draw(sampler, row, draw)
        inputs = {name: torch.from_numpy(array).to(self._device, copy=True) for name, array in step.arrays.items()}
        inputs |= {name: array.to(self._device) for name, array in sampler.items()}
        logits, tokens = self._mixed({**inputs, "kv": self._kv})
        drawn = tokens[torch.tensor(step.sample_rows, dtype=torch.int64, device=self._device)]
        first = self._config.max_num_seqs
        self._places[first : first + len(drawn)] = drawn
        return _Launched(drawn, len(drawn), logits)

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        for source, target in pairs:
            self._kv[target].copy_(self._kv[source])

    def _stage(self, rows: Sequence[DecodeRow]) -> None:
        host, count = self._staging.fill(), len(rows)
        arrays = {name: tensor.numpy() for name, tensor in host.items()}
        for i, row in enumerate(rows):
            arrays["known"][i], arrays["place"][i] = row.token_id, max(row.place, 0)
            arrays["positions"][i], arrays["context_len"][i] = row.position, row.position + 1
            arrays["block_table"][i, : len(row.block_table)] = row.block_table
            _set_draw(host, i, row.draw)
        arrays["query_start"][:] = np.minimum(np.arange(len(arrays["query_start"])), count)
        for name in ("known", "place", "positions", "context_len"):
            arrays[name][count:] = 0
        arrays["temperature"][count:] = _NOBODY
        self._staging.send()


def _set_draw(arrays: Mapping[str, Tensor], row: int, draw: Draw) -> None:
    params = draw.spec.params
    arrays["temperature"][row] = 0.0 if params.greedy else params.temperature
    arrays["top_k"][row] = params.top_k
    arrays["top_p"][row] = max(params.top_p, SMALLEST_TOP_P)
    arrays["min_p"][row] = params.min_p
    # The seed's 64 bits, as torch has them.
    arrays["seeds"][row] = draw.spec.seed - (1 << 64) if draw.spec.seed >> 63 else draw.spec.seed
    arrays["draws"][row] = draw.index
