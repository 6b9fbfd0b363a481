"""What rounding costs: the quickstart model's accuracy skill by skill, of one artifact beside another.

    .venv/bin/python tests/perf/bench_quality.py EXACT ROUNDED... [--questions 250] [--json FILE]

All artifacts answer the same held-out questions, greedily; an answer counts when it is right to the last character. The
difference is that of paired answers: with its 95% interval over questions (bootstrap).
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from pllm import LLM, SamplingParams

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "quickstart"
sys.path.insert(0, str(RECIPE))

from conversations.exchange import Exchange  # noqa: E402
from conversations.skills import SKILLS  # noqa: E402
from conversations.source import Source  # noqa: E402
from training.tokenizer import alphabetic_pieces  # noqa: E402

SEED = "quality"
LONGEST_ANSWER = 96


def draw(skill: str, count: int) -> list[Exchange]:
    """Different held-out questions, always the same ones."""
    tokenizer = Tokenizer.from_file(str(RECIPE / "tokenizer.json"))
    source = Source(f"{SEED}/evaluation/{skill}", evaluation=True, pieces=alphabetic_pieces(tokenizer))
    found: dict[str, Exchange] = {}
    for _ in range(count * 40):
        exchange = SKILLS[skill](source)
        found.setdefault(json.dumps([exchange.tools, exchange.history, exchange.question]), exchange)
        if len(found) == count:
            break
    return list(found.values())


def right(llm: LLM, exchanges: list[Exchange]) -> list[bool]:
    """Which of the questions the artifact answers to the letter."""
    params = SamplingParams(temperature=0, max_tokens=LONGEST_ANSWER)
    correct = [False] * len(exchanges)
    by_tools: dict[str, list[int]] = {}
    for index, exchange in enumerate(exchanges):
        by_tools.setdefault(json.dumps(exchange.tools), []).append(index)
    for tools, indices in by_tools.items():
        answers = llm.chat(
            [exchanges[index].messages() for index in indices],
            params,
            tools=json.loads(tools) or None,
            use_tqdm=False,
        )
        for index, answer in zip(indices, answers, strict=True):
            correct[index] = answer.outputs[0].text == exchanges[index].expected()
    return correct


def interval(differences: np.ndarray) -> tuple[float, float]:
    """The middle 95% of the mean over questions drawn anew, in points."""
    draws = np.random.default_rng(0).integers(0, len(differences), (2000, len(differences)))
    low, high = np.percentile(100 * differences[draws].mean(axis=1), (2.5, 97.5))
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", nargs="+", type=Path, metavar="ARTIFACT")
    parser.add_argument("--questions", type=int, default=250, help="of each skill")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    questions = {skill: draw(skill, arguments.questions) for skill in SKILLS}
    found: dict[str, dict[str, list[bool]]] = {}
    for artifact in arguments.artifacts:
        llm = LLM(str(artifact))
        found[artifact.name] = {skill: right(llm, exchanges) for skill, exchanges in questions.items()}
        llm.close()
    names = list(found)
    table = Table(title=f"{sum(map(len, questions.values())):,} held-out questions, % right")
    for column in ("skill", "questions", *names):
        table.add_column(column, justify="left" if column == "skill" else "right")
    for skill, exchanges in questions.items():
        table.add_row(
            skill,
            str(len(exchanges)),
            *(f"{100 * np.mean(found[name][skill]):.1f}" for name in names),
        )
    whole = {name: np.concatenate([np.array(found[name][skill], float) for skill in questions]) for name in names}
    table.add_row(
        "all",
        str(len(whole[names[0]])),
        *(f"{100 * whole[name].mean():.2f}" for name in names),
        style="bold",
    )
    differences = {name: whole[name] - whole[names[0]] for name in names[1:]}
    table.add_row(
        "difference, points",
        "",
        "",
        *(f"{100 * each.mean():+.2f}" for each in differences.values()),
    )
    bounds = {name: interval(each) for name, each in differences.items()}
    table.add_row("its 95% interval", "", "", *(f"{low:+.2f} to {high:+.2f}" for low, high in bounds.values()))
    Console().print(table)
    if arguments.json:
        report = {
            "questions": len(whole[names[0]]),
            "accuracy": {
                name: {skill: float(np.mean(marks)) for skill, marks in found[name].items()} for name in names
            },
            "all": {name: float(whole[name].mean()) for name in names},
            "difference_points": {
                name: {"mean": float(100 * each.mean()), "interval": bounds[name]} for name, each in differences.items()
            },
        }
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
