"""Evaluation: greedy answers to held-out questions, and how many are right."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from conversations.exchange import Exchange
from conversations.holdout import HELD_OUT_MEANING
from conversations.markup import IM_END
from conversations.skills import SKILLS
from conversations.source import Source
from training.model_card import update_card
from training.tokenizer import alphabetic_pieces, token_id

__all__ = ["Answer", "answer_all", "draw_questions", "evaluate", "load"]


def load(folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """The exported model and tokenizer, as any user would load them."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model.eval()
    return model, AutoTokenizer.from_pretrained(folder)


@dataclass(frozen=True, slots=True)
class Answer:
    """A greedy answer; ``margin`` is the smallest lead, in logits, of a chosen token over the runner-up."""

    text: str
    margin: float


@torch.inference_mode()
def answer_all(model: Any, tokenizer: Any, exchanges: list[Exchange], limit: int) -> list[Answer]:
    """Greedy answers; prompts of equal length are generated together, so that no padding is involved."""
    prompts = [
        tokenizer.apply_chat_template(
            exchange.messages(), tools=exchange.tools or None, add_generation_prompt=True, return_dict=False
        )
        for exchange in exchanges
    ]
    groups: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault(len(prompt), []).append(index)
    answers = [Answer("", 0.0)] * len(prompts)
    end = token_id(tokenizer, IM_END)
    for length, members in groups.items():
        ids = torch.tensor([prompts[index] for index in members])
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=limit,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        best = torch.stack(output.logits, dim=1).float().topk(2).values
        leads = (best[..., 0] - best[..., 1]).tolist()
        for index, row, lead in zip(members, output.sequences[:, length:].tolist(), leads, strict=True):
            size = row.index(end) + 1 if end in row else len(row)
            answers[index] = Answer(tokenizer.decode(row[:size], skip_special_tokens=True), min(lead[:size]))
    return answers


def draw_questions(skill: str, count: int, seed: str, tokenizer: Any) -> list[Exchange]:
    """Up to ``count`` different held-out questions of a skill."""
    source = Source(f"{seed}/evaluation/{skill}", evaluation=True, pieces=alphabetic_pieces(tokenizer))
    found: dict[str, Exchange] = {}
    for _ in range(count * 40):
        exchange = SKILLS[skill](source)
        found.setdefault(json.dumps([exchange.tools, exchange.history, exchange.question]), exchange)
        if len(found) == count:
            break
    return list(found.values())


def evaluate(output: Path, count: int, seed: str, write: bool) -> None:
    """Measures every skill on held-out questions: the bfloat16 weights computed in float32 and in bfloat16.

    Writes ``accuracy.json`` and the table of ``MODEL_CARD.md``.
    """
    exact, tokenizer = load(output, torch.float32)
    rounded, _ = load(output, torch.bfloat16)
    report: dict[str, dict[str, Any]] = {}
    for skill in SKILLS:
        exchanges = draw_questions(skill, count, seed, tokenizer)
        answers = answer_all(exact, tokenizer, exchanges, 96)
        again = answer_all(rounded, tokenizer, exchanges, 96)
        wrong = [(e, a.text) for e, a in zip(exchanges, answers, strict=True) if a.text != e.expected()]
        right_again = sum(a.text == e.expected() for e, a in zip(exchanges, again, strict=True))
        margins = sorted(a.margin for e, a in zip(exchanges, answers, strict=True) if a.text == e.expected())
        total = len(exchanges)
        report[skill] = {
            "held_out": HELD_OUT_MEANING[skill],
            "questions": total,
            "facts": len({exchange.key for exchange in exchanges}),
            "correct": total - len(wrong),
            "accuracy": round(1 - len(wrong) / total, 4),
            "accuracy_bfloat16": round(right_again / total, 4),
            "median_margin": round(margins[len(margins) // 2], 2) if margins else None,
            "wrong_examples": [{"question": e.question, "expected": e.expected(), "answer": a} for e, a in wrong[:5]],
        }
        print(f"{skill:16} {total - len(wrong):4} of {total:4}  {report[skill]['accuracy']:.1%}", flush=True)
        for exchange, answer in wrong[:5]:
            print(f"    {exchange.question!r}: {answer!r} instead of {exchange.expected()!r}")
    if write:
        content = {
            "decoding": "greedy, the whole answer must match exactly",
            "weights": "bfloat16 as shipped",
            "accuracy": "computed in float32",
            "accuracy_bfloat16": "computed in bfloat16",
            "median_margin": "median over correct answers of the smallest lead of a chosen token, in logits",
            "skills": report,
        }
        (output / "accuracy.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        update_card(output / "MODEL_CARD.md", report)
