"""Trains, exports and evaluates the quickstart model: a small Qwen3-architecture chat model.

    python train.py --minutes 50 --work WORK                   # train (running it again resumes)
    python train.py --evaluate                                 # measure the exported model, write accuracy.json
    python train.py --ask "What is 17 + 25?"                   # one greedy answer

Training data is generated on the fly by the package `conversations` from a fixed seed: batch number *n* depends on the
seed and on *n* alone, so an interrupted run continues with the batches it would have seen. With ``--steps`` the
learning rate schedule follows the step count and the run is repeatable; with ``--minutes`` it follows the clock, which
fits a machine of unknown speed but makes the number of steps depend on it.

The script needs torch, transformers and tokenizers, runs on a CPU, and writes the standard Hugging Face layout next to
itself.
"""

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from conversations.exchange import Exchange
from training.batches import IGNORED, Batches
from training.evaluation import answer_all, evaluate, load
from training.tokenizer import build_tokenizer, check_rendering
from training.trainer import Options, Trainer

__all__ = ["main"]

HERE = Path(__file__).resolve().parent


def ask(output: Path, question: str) -> None:
    """Prints one greedy answer."""
    model, tokenizer = load(output, torch.float32)
    print(answer_all(model, tokenizer, [Exchange("", question, "")], 300)[0].text)


def describe(seed: str) -> None:
    """Prints statistics and a few documents, to look at the data."""
    tokenizer = build_tokenizer(seed)
    check_rendering(tokenizer, seed)
    batches = Batches(tokenizer, seed, 8192)
    for step in (2, 3):
        began = time.monotonic()
        batch = batches.batch(step)
        took = time.monotonic() - began
        learnt = (batch.targets != IGNORED).float().mean().item()
        padding = torch.eq(batch.inputs, batches.end).float().mean().item()
        print(f"{tuple(batch.inputs.shape)} in {took:.3f} s, learnt {learnt:.1%}, end of text {padding:.1%}")
        print(tokenizer.decode(batch.inputs[0]))
    counts = Counter(len(piece) for piece in batches.pieces)
    print(f"{len(tokenizer)} tokens, piece lengths {sorted(counts.items())}")
    print([tokenizer.tokenize(text) for text in ("What is 17 + 25?", "Reverse the word basket.", "-".join("basket"))])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE, help="folder of the exported model")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "quickstart", help="resume state")
    parser.add_argument("--seed", default="quickstart-1")
    parser.add_argument("--minutes", type=float, default=50.0, help="budget when --steps is not given")
    parser.add_argument("--steps", type=int, default=0, help="train exactly this many steps (repeatable)")
    parser.add_argument("--tokens", type=int, default=8192, help="tokens per batch")
    parser.add_argument("--matrix-rate", type=float, default=4e-3, help="Muon learning rate")
    parser.add_argument("--vector-rate", type=float, default=3e-3, help="AdamW learning rate (embeddings, norms)")
    parser.add_argument("--export-minutes", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--evaluate", action="store_true")
    parser.add_argument("--questions", type=int, default=500, help="held-out questions per skill")
    parser.add_argument("--no-write", action="store_true", help="do not write accuracy.json")
    parser.add_argument("--ask", metavar="QUESTION")
    parser.add_argument("--describe", action="store_true", help="look at the training data")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.evaluate:
        evaluate(arguments.output, arguments.questions, arguments.seed, not arguments.no_write)
    elif arguments.ask:
        ask(arguments.output, arguments.ask)
    elif arguments.describe:
        describe(arguments.seed)
    else:
        trainer = Trainer(
            Options(
                work=arguments.work,
                output=arguments.output,
                seed=arguments.seed,
                minutes=arguments.minutes,
                steps=arguments.steps,
                tokens=arguments.tokens,
                matrix_rate=arguments.matrix_rate,
                vector_rate=arguments.vector_rate,
                export_minutes=arguments.export_minutes,
                threads=arguments.threads,
            )
        )
        trainer.run()


if __name__ == "__main__":
    main()
