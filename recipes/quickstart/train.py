"""Trains, exports and evaluates the quickstart model: a small Qwen3-architecture chat model.

    python train.py --minutes 50 --work WORK                   # train (running it again resumes)
    python train.py --evaluate                                 # measure the exported model, write accuracy.json
    python train.py --ask "What is 17 + 25?"                   # one greedy answer

Training data is generated on the fly by ``conversations.py`` from a fixed seed: batch number *n* depends on the seed
and on *n* alone, so an interrupted run continues with the batches it would have seen. With ``--steps`` the learning
rate schedule follows the step count and the run is repeatable; with ``--minutes`` it follows the clock, which fits a
machine of unknown speed but makes the number of steps depend on it.

The script needs torch, transformers and tokenizers, runs on a CPU, and writes the standard Hugging Face layout next to
itself.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from conversations import (
    CHAT_TEMPLATE,
    END_OF_TEXT,
    HELD_OUT_MEANING,
    IM_END,
    IM_START,
    SKILLS,
    TOOL_CALL,
    TOOL_CALL_END,
    Document,
    Exchange,
    Source,
    conversation,
    draw_document,
    tool_answer,
)
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

HERE = Path(__file__).resolve().parent
VOCABULARY = 1280
MAX_POSITIONS = 2048
IGNORED = -100

#: Words with an optional leading mark, single digits, punctuation, line ends, blanks.
PRE_TOKENIZER_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


# ---------------------------------------------------------------------------------------------------------------------
# Tokenizer
# ---------------------------------------------------------------------------------------------------------------------


def corpus(seed: str, documents: int) -> Iterable[str]:
    """Text from which the tokenizer learns its merges: training documents without the control tokens."""
    source = Source(f"{seed}/tokenizer")
    for index in range(documents):
        text = "".join(segment.text for segment in draw_document(source, long=index % 4 == 0).segments)
        for control in (IM_START, IM_END, END_OF_TEXT, TOOL_CALL, TOOL_CALL_END):
            text = text.replace(control, "\n")
        yield text


def build_tokenizer(seed: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE with one token per digit and all 256 bytes, so that every text survives a round trip."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKENIZER_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    control = [END_OF_TEXT, IM_START, IM_END]
    markers = [TOOL_CALL, TOOL_CALL_END]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(control) - len(markers),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(corpus(seed, 12_000), trainer)
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    core.add_tokens([AddedToken(token, special=False, normalized=False) for token in markers])
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core,
        eos_token=IM_END,
        pad_token=END_OF_TEXT,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """The id of one token of the vocabulary."""
    return int(tokenizer.get_vocab()[token])


def alphabetic_pieces(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The lower-case letter sequences that are tokens, with or without a leading blank."""
    pieces = {token.removeprefix("Ġ") for token in tokenizer.get_vocab()}
    return sorted(p for p in pieces if p.isascii() and p.isalpha() and p.islower() and len(p) <= 8)


# ---------------------------------------------------------------------------------------------------------------------
# Batches
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Batch:
    """Token ids and, for every position, the id to predict there (or ``IGNORED``)."""

    inputs: torch.Tensor
    targets: torch.Tensor


class Batches:
    """Packs documents into rows. Every fourth batch has long rows, which carry tools and long conversations."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: str, tokens: int) -> None:
        self.core = tokenizer.backend_tokenizer
        self.pieces = alphabetic_pieces(tokenizer)
        self.end = token_id(tokenizer, END_OF_TEXT)
        self.seed, self.tokens = seed, tokens
        self.cache: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Token ids of one segment; short segments recur and are remembered."""
        found = self.cache.get(text)
        if found is None:
            found = self.core.encode(text, add_special_tokens=False).ids
            if len(text) < 40 and len(self.cache) < 100_000:
                self.cache[text] = found
        return found

    def document(self, document: Document) -> tuple[list[int], list[bool]]:
        """Ids of a document and which of them the loss counts."""
        ids: list[int] = []
        learn: list[bool] = []
        for segment in document.segments:
            encoded = self.encode(segment.text)
            ids += encoded
            learn += [segment.learn] * len(encoded)
        if ids[-1] != self.end:
            ids.append(self.end)
            learn.append(False)
        return ids, learn

    def batch(self, step: int) -> Batch:
        """Batch number ``step``."""
        long = step % 4 == 3
        length = 768 if long else 256
        count = max(1, round(self.tokens / length))
        source = Source(f"{self.seed}/train/{step}", pieces=self.pieces)
        rows: list[tuple[list[int], list[bool]]] = [([], []) for _ in range(count)]
        misses = 0
        while misses < 6:
            ids, learn = self.document(draw_document(source, long))
            for row in rows:
                if len(row[0]) + len(ids) <= length + 1:
                    row[0].extend(ids)
                    row[1].extend(learn)
                    break
            else:
                misses += 1
        inputs = torch.full((count, length), self.end)
        targets = torch.full((count, length), IGNORED)
        for index, (row_ids, row_learn) in enumerate(rows):
            packed = torch.tensor(row_ids)
            inputs[index, : len(packed) - 1] = packed[:-1]
            targets[index, : len(packed) - 1] = torch.where(torch.tensor(row_learn[1:]), packed[1:], IGNORED)
        return Batch(inputs, targets)


# ---------------------------------------------------------------------------------------------------------------------
# Model and training
# ---------------------------------------------------------------------------------------------------------------------


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """The untrained network: grouped-query attention, tied embeddings."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=5,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        attention_bias=False,
        bos_token_id=None,
        eos_token_id=token_id(tokenizer, IM_END),
        pad_token_id=token_id(tokenizer, END_OF_TEXT),
    )
    return Qwen3ForCausalLM(config)


def learning_rate_factor(step: int, progress: float) -> float:
    """Warm-up over 100 steps, a plateau, and a linear descent over the last 55 per cent."""
    return min(1.0, (step + 1) / 100) * min(1.0, max(0.0, 1.0 - progress) / 0.55 + 0.01)


def write_export(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """Writes the model in bfloat16 and the tokenizer, replacing files one by one so that readers never see halves."""
    rounded: Any = Qwen3ForCausalLM(model.config)
    rounded.load_state_dict(model.state_dict())
    rounded.to(torch.bfloat16)
    ends = [token_id(tokenizer, token) for token in (IM_END, END_OF_TEXT)]
    settings = {"do_sample": False, "eos_token_id": ends, "pad_token_id": ends[1]}
    rounded.generation_config = GenerationConfig.from_dict(settings)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as temporary:
        rounded.save_pretrained(temporary)
        for loading_detail in ("is_local", "local_files_only"):
            tokenizer.init_kwargs.pop(loading_detail, None)
        tokenizer.save_pretrained(temporary)
        for path in sorted(Path(temporary).iterdir()):
            shutil.copyfile(path, output / f".{path.name}.new")
            (output / f".{path.name}.new").replace(output / path.name)


@dataclass
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


def check_rendering(tokenizer: Any, seed: str) -> None:
    """Makes sure that training documents read exactly as the chat template renders them, and that text survives."""
    source = Source(f"{seed}/check")
    for index in range(200):
        exchange = tool_answer(source) if index % 2 else source.pick(list(SKILLS.values()))(source)
        rendered = tokenizer.apply_chat_template(exchange.messages(), tools=exchange.tools or None, tokenize=False)
        if not exchange.tools:
            document = conversation(Source("no system"), [exchange])
            ours = "".join(segment.text for segment in document.segments)
            ours = IM_START + "user" + ours.split(IM_START + "user", 1)[1]
            answer = {"role": "assistant", "content": exchange.expected()}
            theirs = tokenizer.apply_chat_template([*exchange.messages(), answer], tokenize=False)
            assert ours == theirs, (ours, theirs)
        assert tokenizer.decode(tokenizer.encode(rendered)) == rendered
    for text in ("你好,世界 👋🏽", "e\u0301 \u00e9", " \t x\n\n  y ", "12345", "\x00\x7f"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    digits = tokenizer.encode("1234567890")
    assert len(digits) == 10


# ---------------------------------------------------------------------------------------------------------------------
# Evaluation
# ---------------------------------------------------------------------------------------------------------------------


def load(folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """The exported model and tokenizer, as any user would load them."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model.eval()
    return model, AutoTokenizer.from_pretrained(folder)


@dataclass
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
