"""Programs with torch and programs without it in one process, whichever is opened first."""

import subprocess
import sys
from pathlib import Path

import pytest

from pllm.runtime.artifact import Artifact

from .artifacts import Builds

SCRIPT = """
import sys
from pathlib import Path
sys.path.append(sys.argv[1])
from pllm.runtime.engine_core import EngineCore
from pllm.runtime.sampling_params import SamplingParams

params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
cores = [EngineCore.open(Path(path), threads=1) for path in sys.argv[2:]]
loaded = "libtorch_cpu" in Path("/proc/self/maps").read_text()
from tests.program.artifacts import answers  # which imports torch
for _ in range(2):
    for core in cores:
        core.engine.reset_prefix_cache()
        (answer,) = answers(core.engine, [[3, 5, 7, 9, 11]], params)
        print(core.manifest.name, list(answer.token_ids))
print([core.manifest.programs[0].calls_torch for core in cores], loaded)
"""


ROOT = str(Path(__file__).parents[2])


def run(*words: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", SCRIPT, ROOT, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.parametrize("first", ["llama", "gpt_oss"])
def test_both_kinds_say_what_each_says_alone(first: str, builds: Builds) -> None:
    second = {"llama": "gpt_oss", "gpt_oss": "llama"}[first]
    if Artifact.read(builds.of("llama").artifact).manifest.requires.torch is not None:
        pytest.skip("with this torch every program calls it: there is no other kind")
    paths = [str(builds.of(family).artifact) for family in (first, second)]
    alone = [run(path) for path in paths]
    together = run(*paths)
    assert together[:4] == [alone[0][0], alone[1][0]] * 2
    assert alone[0][0] == alone[0][1]
    assert [lines[-1] for lines in alone] == [
        f"[{family == 'gpt_oss'}] {family == 'gpt_oss'}" for family in (first, second)
    ]
