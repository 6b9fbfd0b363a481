"""The comparison's arithmetic. The sides are made up: nothing runs, and no time is measured."""

import math
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .comparison import Comparison, order_of_round
from .disturbance import CpuAccount
from .metrics import METRICS
from .plot import plot
from .ratios import Ratio
from .sides import Side, Trial
from .worker import Pass

OURS = Side("pllm", "run_pllm", "library", Path("a"), is_ours=True)
THEIRS = Side("other", "run_transformers", "static", Path("b"), workloads=("W1", "W2"))
positive = st.floats(1e-3, 1e3)
rounds = st.lists(st.tuples(positive, positive), min_size=1, max_size=8)


def trial(token_ids: list[list[int]] | None = None, **metrics: float) -> Trial:
    return Trial(metrics, [], [] if token_ids is None else token_ids, {"engine": "1.0"})


def test_a_round_turns_the_order_of_the_last() -> None:
    orders = [[side.label for side in order_of_round([OURS, THEIRS], number)] for number in range(4)]
    assert orders == [["pllm", "other"], ["other", "pllm"]] * 2


class TestRatio:
    def test_which_way_is_better(self) -> None:
        rates, times = ([20.0, 22.0, 18.0], [10.0, 11.0, 9.0]), ([1.0, 1.1, 0.9], [2.0, 2.2, 1.8])
        for (ours, theirs), higher in ((rates, True), (times, False)):
            ratio = Ratio.of(ours, theirs, higher_is_better=higher)
            for value in (ratio.of_medians, ratio.paired, ratio.low, ratio.high):
                assert value == pytest.approx(2.0)

    def test_pairs_see_through_a_machine_that_slows_down(self) -> None:
        # Twice as fast in every round, while the machine becomes four times slower: the pairs agree exactly.
        theirs = [8.0, 4.0, 2.0]
        ratio = Ratio.of([2 * value for value in theirs], theirs, higher_is_better=True)
        assert (ratio.paired, ratio.low, ratio.high) == (pytest.approx(2.0),) * 3

    def test_a_noisy_comparison_has_a_wide_interval(self) -> None:
        ratio = Ratio.of([1.0, 4.0, 1.0, 4.0, 2.0], [2.0, 2.0, 2.0, 2.0, 2.0], higher_is_better=True)
        assert (ratio.low, ratio.paired, ratio.high) == (0.5, 1.0, 2.0)

    @settings(max_examples=25, deadline=None)
    @given(rounds)
    def test_the_other_way_round_it_is_the_reciprocal(self, pairs: list[tuple[float, float]]) -> None:
        ours, theirs = ([pair[side] for pair in pairs] for side in (0, 1))
        there = Ratio.of(ours, theirs, higher_is_better=True)
        back = Ratio.of(theirs, ours, higher_is_better=True)
        same = Ratio.of(theirs, ours, higher_is_better=False)
        assert there.paired == pytest.approx(1 / back.paired)
        assert there.of_medians == pytest.approx(1 / back.of_medians)
        assert (same.paired, same.low, same.high) == pytest.approx((there.paired, there.low, there.high))
        logs = [math.log(a / b) for a, b in pairs]
        assert math.exp(min(logs)) <= there.low * (1 + 1e-9)
        assert there.low <= there.paired * (1 + 1e-9)
        assert there.paired <= there.high * (1 + 1e-9)
        assert there.high <= math.exp(max(logs)) * (1 + 1e-9)

    def test_unpaired_values_are_refused(self) -> None:
        for ours, theirs in (([1.0], [1.0, 2.0]), ([], [])):
            with pytest.raises(ValueError, match="as many values"):
                Ratio.of(ours, theirs, higher_is_better=True)


class TestComparison:
    def test_sides_run_in_turn_and_only_what_they_can(self) -> None:
        ran: list[str] = []

        def run(side: Side, workload: str) -> Trial:
            ran.append(f"{workload} {side.label}")
            return trial(peak_rss=1e6)

        comparison = Comparison([OURS, THEIRS])
        for workload in ("W1", "W3"):
            comparison.run(workload, 2, run, lambda _: None)
        assert ran == ["W1 pllm", "W1 other", "W1 other", "W1 pllm", "W3 pllm", "W3 pllm"]
        assert comparison.versions == {"engine": "1.0"}

    def test_the_table_compares_what_both_have(self) -> None:
        comparison = Comparison([OURS, THEIRS])
        ours = [trial(decode_rate=20.0, peak_rss=1e9, kv_utilisation=0.5), trial(decode_rate=30.0, peak_rss=1e9)]
        theirs = [trial(decode_rate=10.0, peak_rss=2e9), trial(decode_rate=10.0, peak_rss=2e9)]
        comparison.trials = {"W1": {"pllm": ours, "other": theirs}}
        lines = comparison.table().splitlines()
        assert len({line.count("|") for line in lines}) == 1
        assert "| W1 | decode, tokens/s | pllm | 25 | 20 to 30 |  |" in lines
        other = next(line for line in lines if "| decode, tokens/s | other |" in line)
        assert "2.50; 2.45 [2.00, 3.00]" in other
        assert any("| peak RSS, MB | other | 2,000 | 2,000 to 2,000 | 2.00;" in line for line in lines)
        assert "| W1 | KV utilisation, % | pllm | 50 | 50 to 50 |  |" in lines
        assert comparison.ratio("W1", "pllm", "other", METRICS["kv_utilisation"]) is None

    def test_tokens_agree_up_to_each_requests_first_difference(self) -> None:
        comparison = Comparison([OURS, THEIRS])
        comparison.trials = {
            "W2": {"pllm": [trial([[1, 2, 3, 4], [5, 6]])], "other": [trial([[1, 2, 9, 4], [5, 6]])]},
            "W4": {"pllm": [trial()], "other": [trial()]},
        }
        assert comparison.agreement("W2", "pllm", "other") == pytest.approx(4 / 6)
        assert comparison.agreement("W4", "pllm", "other") is None
        assert comparison.agreement("W2", "pllm", "absent") is None


def test_others_are_whoever_is_not_ours() -> None:
    before = CpuAccount(when=10.0, busy=100.0, ours=3.0, cores=2)
    assert CpuAccount(20.0, 114.0, 12.0, 2).others_since(before) == pytest.approx(5 / 20)
    assert CpuAccount(20.0, 109.0, 12.1, 2).others_since(before) == 0.0  # ticks are coarse
    now = CpuAccount.now()
    assert now.busy > 0
    assert now.cores >= 1


def test_what_a_pass_says() -> None:
    single = Pass(0.5, 2.5, [[1, 2, 3, 4, 5]])
    assert single.metrics() == {"first_token": 0.5, "decode_rate": 2.0}
    several = Pass(None, 2.0, [[1, 2], [3, 4, 5, 6]])
    assert several.metrics() == {"output_rate": 3.0}


def test_the_plot_has_a_bar_for_each_side_as_long_as_its_median() -> None:
    comparison = Comparison([OURS, THEIRS])
    figures = {"pllm": ([30.0, 20.0, 40.0], 1e9), "other": ([10.0], 2e9)}
    comparison.trials["W1"] = {
        label: [trial(decode_rate=rate, peak_rss=rss, kv_utilisation=0.9) for rate in rates]
        for label, (rates, rss) in figures.items()
    }
    root = ElementTree.fromstring(plot(comparison, "a <title>"))
    space = "{http://www.w3.org/2000/svg}"
    texts = [text.text for text in root.iter(f"{space}text")]
    assert texts[0] == "a <title>"
    assert [text for text in texts if text and "better" in text] == [
        "W1: decode, tokens/s (more is better)",
        "W1: peak RSS, MB (less is better)",
    ]
    widths = [float(bar.attrib["width"]) for bar in root.iter(f"{space}rect") if "%" not in bar.attrib["width"]]
    assert widths[0] / widths[1] == pytest.approx(3, rel=0.01)
    assert widths[2] / widths[3] == pytest.approx(0.5, rel=0.01)
    assert [texts[3], texts[5], texts[8], texts[10]] == ["30", "10", "1,000", "2,000"]
