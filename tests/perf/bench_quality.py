"""What rounding costs: the quickstart model's accuracy skill by skill, of one artifact beside another.

    .venv/bin/python tests/perf/bench_quality.py EXACT ROUNDED... [--questions 250] [--json FILE]

All artifacts answer the same held-out questions, greedily; an answer counts when it is right to the last character. The
difference is that of paired answers: with its 95% interval over questions (bootstrap).

And perplexities, by token: of the right answers to the first 40 of each skill, and of a text of our own
(quality_text.txt), every paragraph by itself from its second token on. The quickstart model was never shown English of
that kind: its perplexity there is above the size of its vocabulary, and says nothing of quality; that of a model with
random weights would not either. For a model that reads English it is the usual measure.
"""

import argparse
import json
import math
import sys
import tomllib
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from pllm import LLM, RequestOutput, SamplingParams
from pllm.runtime.artifact import Artifact

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "quickstart"
sys.path.insert(0, str(RECIPE))

from conversations.exchange import Exchange  # noqa: E402
from conversations.skills import SKILLS  # noqa: E402
from conversations.source import Source  # noqa: E402
from training.tokenizer import alphabetic_pieces  # noqa: E402

SEED = "quality"
LONGEST_ANSWER = 96
SCORED_ANSWERS = 40
"""Of each skill, for their perplexity: log probabilities of prompts take long."""
SCORED = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
TEXT = Path(__file__).with_name("quality_text.txt")


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


def by_tools(exchanges: list[Exchange]) -> dict[str, list[int]]:
    """The exchanges that offer the same tools, by these: one call of the library can have them all."""
    found: dict[str, list[int]] = {}
    for index, exchange in enumerate(exchanges):
        found.setdefault(json.dumps(exchange.tools), []).append(index)
    return found


def right(llm: LLM, exchanges: list[Exchange]) -> list[bool]:
    """Which of the questions the artifact answers to the letter."""
    params = SamplingParams(temperature=0, max_tokens=LONGEST_ANSWER)
    correct = [False] * len(exchanges)
    for tools, indices in by_tools(exchanges).items():
        answers = llm.chat(
            [exchanges[index].messages() for index in indices],
            params,
            tools=json.loads(tools) or None,
            use_tqdm=False,
        )
        for index, answer in zip(indices, answers, strict=True):
            correct[index] = answer.outputs[0].text == exchanges[index].expected()
    return correct


def text_nats(llm: LLM) -> np.ndarray:
    """Of every token of the text but the paragraphs' first ones."""
    paragraphs = TEXT.read_text(encoding="utf-8").split("\n\n")
    outputs = llm.generate([each.replace("\n", " ").strip() for each in paragraphs], SCORED, use_tqdm=False)
    return np.concatenate([nats_of(output, 1) for output in outputs])


def answer_nats(llm: LLM, exchanges: list[Exchange], ends: tuple[int, ...]) -> np.ndarray:
    """Of every token of the right answers, up to what ends them: one of ``ends``."""
    found = []
    for tools, indices in by_tools(exchanges).items():
        offered = json.loads(tools) or None
        said = [[*exchanges[i].messages(), {"role": "assistant", "content": exchanges[i].expected()}] for i in indices]
        outputs = llm.chat(said, SCORED, tools=offered, add_generation_prompt=False, use_tqdm=False)
        for index, output in zip(indices, outputs, strict=True):
            question = llm.chat_prompt(exchanges[index].messages(), tools=offered, add_generation_prompt=True)
            begin = len(question.token_ids)
            length = next(i for i, token in enumerate(output.prompt_token_ids[begin:], 1) if token in ends)
            found.append(nats_of(output, begin)[:length])
    return np.concatenate(found)


def nats_of(output: RequestOutput, begin: int) -> np.ndarray:
    """Minus the log probabilities of a prompt's tokens from one on."""
    assert output.prompt_logprobs is not None
    pairs = list(zip(output.prompt_token_ids, output.prompt_logprobs, strict=True))[begin:]
    return np.array([-found[token].logprob for token, found in pairs if found is not None])


def interval(differences: np.ndarray) -> tuple[float, float]:
    """The middle 95% of the mean over questions drawn anew, in points."""
    draws = np.random.default_rng(0).integers(0, len(differences), (2000, len(differences)))
    low, high = np.percentile(100 * differences[draws].mean(axis=1), (2.5, 97.5))
    return float(low), float(high)


def perplexity(nats: np.ndarray) -> float:
    return math.exp(float(nats.mean()))


def stored(artifact: Path) -> dict[str, object]:
    """How an artifact stores numbers, and what its certificate says of that."""
    manifest = Artifact.read(artifact).manifest
    lock = tomllib.loads((artifact / "recipe.lock.toml").read_text(encoding="utf-8"))
    return {
        "weights": lock["quantization"]["weights"],
        "kv": lock["quantization"]["kv"],
        "weight_bytes": manifest.weights.num_bytes,
        "kv_block_bytes": manifest.kv.block_bytes,
        "kl_divergence": manifest.certificate.kl_divergence,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", nargs="+", type=Path, metavar="ARTIFACT")
    parser.add_argument("--questions", type=int, default=250, help="of each skill")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    questions = {skill: draw(skill, arguments.questions) for skill in SKILLS}
    found: dict[str, dict[str, list[bool]]] = {}
    nats: dict[str, dict[str, np.ndarray]] = {"the right answers": {}, "the text": {}}
    for artifact in arguments.artifacts:
        llm = LLM(str(artifact))
        found[artifact.name] = {skill: right(llm, exchanges) for skill, exchanges in questions.items()}
        asked = [exchange for exchanges in questions.values() for exchange in exchanges[:SCORED_ANSWERS]]
        nats["the right answers"][artifact.name] = answer_nats(
            llm, asked, Artifact.read(artifact).manifest.model.eos_token_ids
        )
        nats["the text"][artifact.name] = text_nats(llm)
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
    for what, each in nats.items():
        table.add_row(
            f"perplexity of {what}",
            f"{len(each[names[0]]):,} tokens",
            *(f"{perplexity(each[name]):.4g}" for name in names),
        )
    Console(width=60 + 24 * len(names)).print(table)
    if arguments.json:
        report = {
            "artifacts": {artifact.name: stored(artifact) for artifact in arguments.artifacts},
            "questions": len(whole[names[0]]),
            "accuracy": {
                name: {skill: float(np.mean(marks)) for skill, marks in found[name].items()} for name in names
            },
            "all": {name: float(whole[name].mean()) for name in names},
            "difference_points": {
                name: {"mean": float(100 * each.mean()), "interval": bounds[name]} for name, each in differences.items()
            },
            "perplexity": {
                what: {"tokens": len(each[names[0]]), **{name: perplexity(each[name]) for name in names}}
                for what, each in nats.items()
            },
        }
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
