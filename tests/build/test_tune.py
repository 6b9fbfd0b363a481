"""Kernels' configurations, chosen by timing: with a clock and a stopwatch that are made up."""

from dataclasses import asdict

from pllm.build.tune import Configuration, KernelNeed, tuned
from pllm.kernels.cuda.configurations import Configurations, SmallLinearConfiguration

SHIPPED = Configurations.shipped((9, 0))
NEEDS = (
    KernelNeed("small_linear", (1024, 4096, 8)),
    KernelNeed("decode_attention", (128, 2), kv_heads=8, block_size=16),
    KernelNeed("prefill_attention", (128, 2), kv_heads=8, block_size=16),
)


def nothing(_: str) -> None:
    pass


def test_the_fastest_that_runs_is_taken_and_recorded() -> None:
    def us(need: KernelNeed, configuration: Configuration) -> float | None:
        if configuration.num_warps > 4:
            return None  # too many registers
        return 50.0 - 8 * (configuration.block_n == 32) - configuration.num_warps

    configurations, choices = tuned(NEEDS, SHIPPED, us, 100, nothing, clock=lambda: 0.0)
    assert configurations.for_small_linear(1024, 4096, 8) == SmallLinearConfiguration(32, 128, 2, 6)
    decode = configurations.for_decode(128, 2)
    assert (decode.block_n, decode.num_warps) == (32, 4)
    assert [choice.us for choice in choices] == [40.0, 38.0, 38.0]
    assert choices[1].values == asdict(decode)
    assert configurations.for_decode(64, 4) == SHIPPED.for_decode(64, 4)  # which nobody asked for


def test_of_equals_the_shipped_one_is_kept() -> None:
    configurations, choices = tuned(NEEDS, SHIPPED, lambda need, configuration: 7.0, 100, nothing, clock=lambda: 0.0)
    assert configurations.for_prefill(128, 2) == SHIPPED.for_prefill(128, 2)
    assert [choice.us for choice in choices] == [7.0] * 3


def test_what_the_time_does_not_reach_stays_as_shipped_and_says_so() -> None:
    now = 0.0
    timed: list[str] = []

    def us(need: KernelNeed, configuration: Configuration) -> float:
        nonlocal now
        now += 4.0
        timed.append(need.kernel)
        return 1.0 / len(timed)

    tuned(NEEDS, SHIPPED, us, 30, nothing, clock=lambda: now)
    assert {kernel: timed.count(kernel) for kernel in timed} == {
        "small_linear": 3, "decode_attention": 3, "prefill_attention": 2,
    }  # fmt: skip
    configurations, choices = tuned(NEEDS, SHIPPED, us, 0, nothing, clock=lambda: now)
    assert configurations.for_decode(128, 2) == SHIPPED.for_decode(128, 2)
    assert [choice.us for choice in choices] == [None] * 3
