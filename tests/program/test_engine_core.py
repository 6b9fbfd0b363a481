"""The engine core: a real artifact opened, refused, run and closed."""

import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pllm.runtime.engine_core import EngineCore
from pllm.runtime.errors import ArtifactDamagedError, ArtifactMismatchError, DoesNotFitError, UserInputError
from pllm.runtime.memory import MemoryLedger
from pllm.runtime.sampling_params import SamplingParams
from tests.artifact.sealed import rewrite

from .artifacts import MAX_NUM_SEQS, Built, answers

PROMPTS = [[5, 9, 40], [*range(20, 60)]]
GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


def said(core: EngineCore) -> list[list[int]]:
    return [answer.token_ids for answer in answers(core.engine, PROMPTS, GREEDY)]


def loaded() -> str:
    """The files that this process has mapped."""
    return Path("/proc/self/maps").read_text(encoding="utf-8")


def memory_for(ledger: MemoryLedger, blocks: int) -> int:
    return ledger.fixed + blocks * ledger.kv_block


class TestLimits:
    @pytest.mark.parametrize("memory", ["lots", "", "0", -1, 1.5, "-4GiB", float("nan")])
    def test_a_memory_that_is_none_is_the_users_mistake(self, tiny: Built, memory: Any) -> None:
        with pytest.raises(UserInputError, match=f"memory={re.escape(repr(memory))} must be") as caught:
            EngineCore.open(tiny.artifact, memory=memory)
        assert caught.value.exit_code == 2

    @pytest.mark.parametrize("memory", ["1KiB", 2, 1e-9])
    def test_too_little_memory_is_refused_with_the_numbers(self, tiny: Built, memory: Any) -> None:
        with pytest.raises(DoesNotFitError, match=r"needs .* \(weights .*KV .*\) and has .*; ") as caught:
            EngineCore.open(tiny.artifact, memory=memory)
        assert caught.value.exit_code == 4

    @pytest.mark.parametrize("max_num_seqs", [0, -1, MAX_NUM_SEQS + 1])
    def test_sequences_can_only_be_lowered(self, tiny: Built, max_num_seqs: int) -> None:
        with pytest.raises(UserInputError, match=f"max_num_seqs={max_num_seqs} must be 1 to {MAX_NUM_SEQS}"):
            EngineCore.open(tiny.artifact, max_num_seqs=max_num_seqs)

    @pytest.mark.parametrize("threads", [0, -1, 1025])
    def test_threads_have_a_range(self, tiny: Built, threads: int) -> None:
        with pytest.raises(UserInputError, match=f"threads={threads} must be 1 to 1024"):
            EngineCore.open(tiny.artifact, threads=threads)

    def test_lower_limits_are_kept_and_change_no_token(self, tiny: Built) -> None:
        with closing(EngineCore.open(tiny.artifact)) as core:
            expected = said(core)
            ledger = core.manifest.memory
            assert core.plan.num_blocks == MAX_NUM_SEQS * 128 // 16
        blocks = 128 // 16 + 1
        with closing(
            EngineCore.open(tiny.artifact, max_num_seqs=1, memory=memory_for(ledger, blocks), threads=1)
        ) as core:
            assert core.engine.config.max_num_seqs == 1
            assert core.engine.config.num_blocks == core.engine.stats().kv_blocks_total == 128 // 16
            assert said(core) == expected
        with closing(EngineCore.open(tiny.artifact, memory=memory_for(ledger, blocks))) as core:
            assert core.engine.stats().kv_blocks_total == blocks
            assert said(core) == expected

    def test_a_pool_for_little_more_than_one_sequence_serves_sixteen(self, tiny: Built) -> None:
        prompts = [[3 + (7 * i + 31 * request) % 120 for i in range(20)] for request in range(16)]
        params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
        with closing(EngineCore.open(tiny.artifact)) as core:
            ledger = core.manifest.memory
            expected = [answer.token_ids for answer in answers(core.engine, prompts, params)]
        with closing(EngineCore.open(tiny.artifact, memory=memory_for(ledger, 128 // 16 + 1))) as core:
            assert [answer.token_ids for answer in answers(core.engine, prompts, params)] == expected
            assert core.engine.stats().num_preemptions > 0
            assert core.engine.stats().kv_blocks_used == 0


class TestRefused:
    def test_any_flipped_file_is_named_before_it_is_loaded(self, copied: Path) -> None:
        files = sorted(path for path in copied.rglob("*") if path.is_file())
        assert any("libpllm_ops" in path.name for path in files)
        for path in files:
            content = path.read_bytes()
            at = len(content) // 2
            path.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
            with pytest.raises(ArtifactDamagedError) as caught:
                EngineCore.open(copied)
            named = path.name if path.name != "manifest.sha256" else "manifest.json"
            assert named in str(caught.value), path
            if "weights" not in path.parts:  # those are hashed while code that is whole already opens
                assert str(copied) not in loaded(), path
            path.write_bytes(content)
        with closing(EngineCore.open(copied)) as core:
            assert str(copied / "programs") in loaded()
            assert len(said(core)) == len(PROMPTS)

    @pytest.mark.parametrize(
        ("needs", "remedy"),
        [
            ({"torch": "9.9.9"}, r"pip install torch==9\.9\.9"),
            ({"isa": ["avx2", "amx_of_tomorrow"]}, r"lacks \(amx_of_tomorrow\); .*pllm build"),
            ({"glibc": "99.0"}, "pllm build"),
            ({"machine": "riscv64"}, "pllm build"),
        ],
    )
    def test_another_machine_is_refused_before_anything_is_loaded(
        self, copied: Path, needs: dict[str, Any], remedy: str
    ) -> None:
        rewrite(copied, lambda document: document["requires"].update(needs))  # type: ignore[attr-defined]
        with pytest.raises(ArtifactMismatchError, match=remedy):
            EngineCore.open(copied)
        assert str(copied) not in loaded()

    def test_weights_of_another_model_are_refused(self, copied: Path) -> None:
        """Sealed anew, as somebody who means harm would: names, dtypes and sizes are compared with the program's."""

        def swap(document: dict[str, Any]) -> None:
            constants = {constant["name"]: constant for constant in document["programs"][0]["constants"]}
            wrong = constants["causal_lm.model.norm.weight"]
            wrong["weight"] = "causal_lm.model.embed_tokens.weight"

        rewrite(copied, swap)
        with pytest.raises(ArtifactDamagedError, match=r"causal_lm\.model\.norm\.weight"):
            EngineCore.open(copied)

    def test_what_was_opened_is_given_back_where_the_rest_fails(
        self, tiny: Built, copied: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(*_: object) -> None:
            raise DoesNotFitError("no room")

        with monkeypatch.context() as patch, pytest.raises(DoesNotFitError, match="no room"):
            patch.setattr("pllm.runtime.engine_core.KvPool", fails)
            EngineCore.open(copied)
        assert str(copied / "weights") not in loaded()
        with closing(EngineCore.open(tiny.artifact)) as core:
            assert len(said(core)) == len(PROMPTS)


class TestClosing:
    def test_weights_and_pool_are_given_back(self, copied: Path) -> None:
        core = EngineCore.open(copied)
        assert str(copied / "weights") in loaded()
        said(core)
        core.close()
        assert str(copied / "weights") not in loaded()
        core.close()

    def test_two_in_one_process_and_one_outlives_the_other(self, tiny: Built, copied: Path) -> None:
        with closing(EngineCore.open(tiny.artifact)) as first:
            second = EngineCore.open(copied)
            expected = said(first)
            assert said(second) == expected
            second.close()
            first.engine.reset_prefix_cache()
            assert said(first) == expected


def test_opening_and_answering_runs_without_torch_for_python(tiny: Built) -> None:
    script = f"""
import sys, time
from pathlib import Path
from pllm.runtime.engine_core import EngineCore
from pllm.runtime.sampling_params import SamplingParams
from pllm.runtime.sequence import Request
core = EngineCore.open(Path({str(tiny.artifact)!r}))
core.engine.submit(Request("0", (5, 9, 40), SamplingParams(temperature=0, max_tokens=4), (), time.monotonic()))
while core.engine.has_unfinished:
    print(*(token for delta in core.engine.step() for token in delta.token_ids))
core.close()
print(sorted(name for name in ("torch", "transformers", "sympy", "triton", "pllm.build") if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    *tokens, modules = done.stdout.splitlines()
    assert len(tokens) == 4
    assert modules == "[]"
