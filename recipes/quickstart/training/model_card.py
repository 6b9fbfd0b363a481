"""The model card's table of accuracies."""

from pathlib import Path
from typing import Any

__all__ = ["update_card"]


def update_card(card: Path, report: dict[str, dict[str, Any]]) -> None:
    """Replaces the accuracy table between the two marks of the model card."""
    start, stop = "<!-- accuracy -->\n", "<!-- end of accuracy -->\n"
    if not card.exists():
        return
    lines = [
        "| Skill | Questions | Facts | Accuracy | In bfloat16 | Median margin | What is held out |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for skill, row in report.items():
        name = skill.replace("_", " ")
        lines.append(
            f"| {name} | {row['questions']} | {row['facts']} | {row['accuracy']:.1%} | {row['accuracy_bfloat16']:.1%} "
            f"| {row['median_margin']} | {row['held_out']} |"
        )
    before, rest = card.read_text().split(start)
    after = rest.split(stop)[1]
    card.write_text(before + start + "\n".join(lines) + "\n" + stop + after)
