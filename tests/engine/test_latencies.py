"""What the measured latencies say of a step's size."""

from pathlib import Path

import pytest

from pllm.runtime.errors import ArtifactDamagedError
from pllm.runtime.latencies import Latencies, Latency

DECODE = [Latency(1, 1, 128, 22.0), Latency(8, 8, 128, 37.0), Latency(64, 64, 128, 900.0)]
PREFILL = [Latency(1, 32, 32, 80.0), Latency(1, 128, 128, 310.0), Latency(1, 512, 512, 1300.0)]


@pytest.mark.parametrize(
    ("ms", "tokens"), [(1300, None), (2000, None), (310, 128), (500, 201), (195, 80), (80, 32), (79, 32), (1, 32)]
)
def test_as_many_tokens_as_were_measured_to_be_fast_enough(ms: float, tokens: int | None) -> None:
    assert Latencies((*DECODE, *reversed(PREFILL))).prompt_tokens_within(ms) == tokens


def test_without_measurements_nothing_is_bounded() -> None:
    assert Latencies(tuple(DECODE)).prompt_tokens_within(1) is None


def test_what_is_no_table(tmp_path: Path) -> None:
    path = tmp_path / "latency.json"
    path.write_text('{"rows": [{}]}')
    with pytest.raises(ArtifactDamagedError, match=r"latency\.json is malformed"):
        Latencies.read(path)
