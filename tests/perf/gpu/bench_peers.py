"""transformers on the same GPU: generate for one sequence, and its continuous batching, beside pllm's own figures.

    python3 tests/perf/gpu/bench_peers.py --seconds 480 --output FOLDER [--dry]

Random weights in bfloat16 and the configurations of `models.py`: speed does not depend on what they say. pllm's figures
for the same are those of bench_engine.py, in the same folder.
"""

import argparse
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from models import MODELS
from rows import Deadline, Rows


def model_of(name: str, device: torch.device) -> Any:
    config = dict(MODELS[name])
    kind = config.pop("model_type")
    config.pop("architectures")
    made = transformers.AutoConfig.for_model(kind, **config)
    with torch.device(device):
        model: Any = transformers.AutoModelForCausalLM.from_config(made, dtype=torch.bfloat16)
    return model.eval()


def milliseconds_a_token(model: Any, device: torch.device, new: int) -> float:
    """Of generate for one sequence after 128 tokens, greedy: the second of two calls, less its first token."""
    ids = torch.randint(0, model.config.vocab_size, (1, 128), device=device)
    mask = torch.ones_like(ids)

    def took(count: int) -> float:
        began = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=mask, do_sample=False, min_new_tokens=count, max_new_tokens=count, pad_token_id=0
            )
        assert out.shape[1] == ids.shape[1] + count
        return time.perf_counter() - began

    took(new)
    return 1e3 * (took(new) - took(1)) / (new - 1)


def batched(model: Any, *, dry: bool) -> tuple[int, float]:
    """Output tokens and seconds of continuous batching over the sequences of bench_engine's throughput."""
    rng = random.Random(0)
    low, high, count = (4, 24, 4) if dry else (100, 1024, 64)
    prompts, lengths = [], []
    for _ in range(count):
        prompts.append([rng.randrange(model.config.vocab_size) for _ in range(rng.randint(low, high))])
        lengths.append(rng.randint(low, high))
    # One length for all: it takes no other. The mean, so that the work is about the same.
    new = sum(lengths) // count
    settings = transformers.GenerationConfig(
        max_new_tokens=new, do_sample=False, eos_token_id=-1, pad_token_id=0, use_cuda_graph=not dry
    )
    began = time.perf_counter()
    answers = model.generate_batch(inputs=prompts, generation_config=settings, progress_bar=False)
    took = time.perf_counter() - began
    return sum(len(answer.generated_tokens) for answer in answers.values()), took


def tried(rows: Rows, what: str, model: str, measure: Callable[[], dict[str, Any]]) -> bool:
    try:
        rows.add(what, model=model, **measure())
    except Exception as error:  # a peer may fail; the others go on
        reason = str(error).strip().splitlines()
        rows.add(what, model=model, error=reason[0] if reason else type(error).__name__)
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args()
    deadline = Deadline(options.seconds)
    device = torch.device("cpu" if options.dry else "cuda")
    named = "none: a dry run" if options.dry else torch.cuda.get_device_name()
    rows = Rows(options.output / "peers.jsonl", "peers", named)
    passed = True
    for name in ("tiny",) if options.dry else ("0.6b", "8b"):
        if deadline.left < 60 and not options.dry:
            rows.add("transformers", skipped=f"{name}: out of time")
            continue
        model = model_of(name, device)
        new = 8 if options.dry else 64
        passed &= tried(
            rows, "transformers generate", name,
            lambda model=model, new=new: {"ms_a_token": milliseconds_a_token(model, device, new)},
        )  # fmt: skip
        if name != "8b":

            def figures(model: Any = model) -> dict[str, Any]:
                tokens, seconds = batched(model, dry=options.dry)
                return {"output_tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds}

            passed &= tried(rows, "transformers continuous batching", name, figures)
        del model
        if not options.dry:
            torch.cuda.empty_cache()
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
