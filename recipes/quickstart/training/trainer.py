"""A training run: its options, its state, and its steps."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerFast

from training.batches import IGNORED, Batch, Batches
from training.model import build_model, write_export
from training.tokenizer import build_tokenizer, check_rendering

__all__ = ["Options", "Trainer", "learning_rate_factor"]


def learning_rate_factor(step: int, progress: float) -> float:
    """Warm-up over 100 steps, a plateau, and a linear descent over the last 55 per cent."""
    return min(1.0, (step + 1) / 100) * min(1.0, max(0.0, 1.0 - progress) / 0.55 + 0.01)


@dataclass(frozen=True, slots=True)
class Options:
    """What a training run needs to know."""

    work: Path
    output: Path
    seed: str
    minutes: float
    steps: int
    tokens: int
    matrix_rate: float
    vector_rate: float
    export_minutes: float
    threads: int


class Trainer:
    """The state of a run: network, optimizers, and how far it has come."""

    def __init__(self, options: Options) -> None:
        self.options = options
        options.work.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(int.from_bytes(options.seed.encode()[-4:], "big"))
        tokenizer_path = options.work / "tokenizer"
        if not tokenizer_path.exists():
            build_tokenizer(options.seed).save_pretrained(tokenizer_path)
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_path)
        check_rendering(self.tokenizer, options.seed)
        self.batches = Batches(self.tokenizer, options.seed, options.tokens)
        self.model = build_model(self.tokenizer)
        # Each worker thread computes its share of a batch on one core. They meet once a step rather than within every
        # operation, which keeps a busy machine from stalling the run.
        self.workers = options.threads
        self.pool = ThreadPoolExecutor(self.workers, initializer=torch.set_num_threads, initargs=(1,))
        self.parameters = list(self.model.parameters())
        named = list(self.model.named_parameters())
        matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
        self.others = [p for name, p in named if p.ndim != 2 or "embed" in name]
        muon = torch.optim.Muon(
            matrices, lr=options.matrix_rate, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        )
        adamw = torch.optim.AdamW(self.others, lr=options.vector_rate, betas=(0.9, 0.98), weight_decay=0.0)
        self.optimizers: list[tuple[torch.optim.Optimizer, float]] = [
            (muon, options.matrix_rate),
            (adamw, options.vector_rate),
        ]
        self.step, self.seen, self.spent = 0, 0, 0.0
        self.state_path = options.work / "state.pt"
        if self.state_path.exists():
            self.restore()

    def restore(self) -> None:
        """Continues where ``save`` left off."""
        state: dict[str, Any] = torch.load(self.state_path)
        self.model.load_state_dict(state["model"])
        for (optimizer, _), saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seen, self.spent = state["step"], state["seen"], state["spent"]

    def save(self) -> None:
        """Writes everything a later run needs to continue."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer, _ in self.optimizers],
            "step": self.step,
            "seen": self.seen,
            "spent": self.spent,
        }
        fresh = self.state_path.with_suffix(".new")
        torch.save(state, fresh)
        fresh.replace(self.state_path)

    def progress(self) -> float:
        """How much of the budget is spent, from 0 to 1."""
        if self.options.steps:
            return self.step / self.options.steps
        return self.spent / (self.options.minutes * 60)

    def update(self) -> float:
        """One optimizer step on the next batch; returns the loss."""
        factor = learning_rate_factor(self.step, self.progress())
        batch = self.batches.batch(self.step)
        total = int((batch.targets != IGNORED).sum())
        shares = [Batch(batch.inputs[i :: self.workers], batch.targets[i :: self.workers]) for i in range(self.workers)]
        results = list(self.pool.map(lambda share: self.gradients(share, total), shares))
        for index, parameter in enumerate(self.parameters):
            parameter.grad = sum((grads[index] for _, grads in results[1:]), start=results[0][1][index])
        torch.nn.utils.clip_grad_norm_(self.others, 1.0)
        for optimizer, rate in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.seen += batch.inputs.numel()
        return sum(loss for loss, _ in results)

    def gradients(self, share: Batch, total: int) -> tuple[float, tuple[torch.Tensor, ...]]:
        """Loss and gradients of a share of a batch in which ``total`` positions count."""
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self.model.model(input_ids=share.inputs, use_cache=False).last_hidden_state
            counted = share.targets != IGNORED
            logits = F.linear(hidden[counted], self.model.lm_head.weight)
        loss = F.cross_entropy(logits.float(), share.targets[counted], reduction="sum") / total
        return loss.item(), torch.autograd.grad(loss, self.parameters)

    def run(self) -> None:
        """Trains until the budget is spent, saving every three minutes and exporting now and then."""
        count = sum(p.numel() for p in self.model.parameters())
        print(f"{count:,} parameters, starting at step {self.step}", flush=True)
        began = time.monotonic() - self.spent
        saved = exported = self.spent
        losses: list[float] = []
        while self.progress() < 1.0:
            losses.append(self.update())
            self.spent = time.monotonic() - began
            if self.step % 20 == 0:
                mean, minutes, millions = sum(losses[-20:]) / len(losses[-20:]), self.spent / 60, self.seen / 1e6
                print(f"step {self.step} minutes {minutes:.1f} tokens {millions:.2f}M loss {mean:.4f}", flush=True)
            if self.spent - saved > 180:
                self.save()
                saved = self.spent
            if self.spent - exported > self.options.export_minutes * 60:
                write_export(self.model, self.tokenizer, self.options.output)
                exported = self.spent
        self.save()
        write_export(self.model, self.tokenizer, self.options.output)
        minutes = round(self.spent / 60, 1)
        record = {"steps": self.step, "tokens": self.seen, "minutes": minutes, "seed": self.options.seed}
        (self.options.output / "training.json").write_text(json.dumps(record, indent=2) + "\n")
