"""What a gate leaves behind."""

import json
import re
from html.parser import HTMLParser

import pytest

from pllm.runtime.bench.facts import MachineFacts
from pllm.runtime.gate.check import Check, Verdict
from pllm.runtime.gate.facts import Facts
from pllm.runtime.gate.page import page
from pllm.runtime.gate.report import GateReport
from pllm.runtime.gate.run import GateRun, GateSettings
from pllm.runtime.latencies import Latency

from .trios import DECODE, PREFILL, FakeMachine

MACHINE = MachineFacts("a <fast> machine", 2, ("avx2",), 1 << 34, "6.1", 0.5, {"pllm": "0.1.0"})
FACTS = Facts(
    name="quickstart",
    recipe="quickstart.toml",
    checkpoint_sha256="c" * 64,
    content_sha256="a" * 64,
    code_sha256="b" * 64,
    num_bytes=1000,
    block_size=16,
    max_model_len=2048,
    rows=(Latency(1, 1, 128, 0.5),),
)


def report(factors: dict[str, float], *more: Check) -> GateReport:
    machine = FakeMachine(factors)
    run = GateRun.of(machine.measure, [DECODE, PREFILL], GateSettings(), clock=machine.clock)
    sides = {"base": FACTS, "new": FACTS}
    return GateReport(sides, (*more, *run.checks()), run, {"threads": 1}, MACHINE, "2026-11-25T00:00:00Z")


def test_a_regression_is_named_first() -> None:
    text = report({"decode": 1.2}).markdown()
    assert text.startswith("### ✗ pllm gate: regression\n\nRegression: decode.\n")
    told, folded = text.split("<details>")
    assert "| ✗ | decode |" in told
    assert "prefill" not in told
    assert "| ✓ | prefill |" in folded
    assert "3 of 3 fresh runs agree" in told


def test_a_void_run_says_that_it_is_no_pass() -> None:
    void = report({}, Check("kernels", 4, None, Verdict.VOID, "the new side has none"))
    assert void.verdict is Verdict.VOID
    assert void.sentence == "Void, which is no pass: nothing can be said of kernels."


def test_a_cell_cannot_break_the_table() -> None:
    text = report({}, Check("a|b", "x\ny", "|", Verdict.REGRESSION, "c|d")).markdown()
    assert "| ✗ | a\\|b | x y | \\| |  | c\\|d |" in text


def test_json_holds_every_pair() -> None:
    document = json.loads(report({"decode": 1.2}).document())
    assert (document["measurement"], document["verdict"]) == ("gate", "regression")
    decode = document["timings"][0]
    assert decode["name"] == "decode"
    assert decode["ratio"]["low"] < decode["ratio"]["median"] < decode["ratio"]["high"]
    assert decode["ratio"]["median"] == pytest.approx(1.2, abs=0.02)
    assert len(decode["pairs"]) >= GateSettings().least
    assert all(ratio > 1.02 for ratio in document["votes"]["decode"]["ratios"])
    assert {check["verdict"] for check in document["checks"]} == {"pass", "regression"}


class Tags(HTMLParser):
    """Tags that were opened and not closed, and every attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nobody() -> None:
    found = page(report({"decode": 1.2, "prefill": 0.8}, Check("<b>", 1, 2, Verdict.PASS)))
    tags = Tags()
    tags.feed(found)
    assert tags.open == []
    assert "svg" in found
    assert "&lt;b&gt;" in found
    assert "a &lt;fast&gt; machine" in found
    assert not any(name in ("src", "href", "srcset") or name.startswith("on") for name, _ in tags.attributes)
    assert not re.search(r"https?://|@import|url\(", found)


def test_the_page_draws_every_quantity_within_its_frame() -> None:
    found = page(report({"decode": 3.0, "prefill": 0.3}))
    width = int(re.search(r'viewBox="0 0 (\d+)', found)[1])  # type: ignore[index]
    places = [float(x) for x in re.findall(r'(?:cx|x1|x2|x)="(-?[\d.]+)"', found)]
    assert places
    assert all(0 <= x <= width for x in places)


def test_figures_of_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    Console(width=200).print(report({}, Check("tokens", "same [one]", None, Verdict.PASS)).table())
    assert "same [one]" in capsys.readouterr().out
