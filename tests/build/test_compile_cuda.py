"""Programs compiled for an H100 where there is none: by torch's CUDA build, with a stand-in for the device."""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pllm.build.compile_cuda import launched
from pllm.build.cuda_programs import step_shapes

WRAPPER = """
void AOTInductorModel::run_impl(
    AtenTensorHandle* input_handles) { call_old_0(x); }
void AOTInductorModel::run_impl(
    AtenTensorHandle* input_handles
) {
    call_model_triton_poi_fused_embedding_0(arg19_1, buf1);
    // call_nothing_1(buf1)
    call_small_linear_kernel_0(buf1, weight, buf0, s72);
    auto call = 3;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_mm_out(buf54, buf53));
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(2, int_array_10));
    call_small_linear_kernel_12(buf0, weight, buf2, s72);
}
"""


def test_what_a_program_launches_is_read_from_its_code() -> None:
    assert launched(WRAPPER) == ["model_triton_poi_fused_embedding", "small_linear", "mm_out", "small_linear"]


@pytest.mark.parametrize(
    ("most", "names"),
    [
        (1, ["decode-1", "mixed"]),
        (4, ["decode-1", "decode-4", "mixed"]),
        (8, ["decode-1", "decode-8", "mixed"]),
        (256, ["decode-1", "decode-8", "decode-256", "mixed"]),
    ],
)
def test_there_is_a_program_for_one_row_for_eight_and_for_more(most: int, names: list[str]) -> None:
    shapes = step_shapes(most, 512)
    assert list(shapes) == names
    assert [step.decodes for step in shapes.values()] == [True] * (len(names) - 1) + [False]
    assert all(step.is_small == (step.max_rows <= 8) for step in shapes.values())
    assert shapes["mixed"].max_rows == 512


needs_cuda_build = pytest.mark.skipif(
    torch.version.cuda is None, reason="torch here is a build without CUDA: nothing to link a program for it with"
)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, list[str]]]]:
    """The decode program for eight rows and the mixed one of a tiny model, and what they launch."""
    from pllm.build.compile_cuda import compile_cuda_graph
    from pllm.build.cuda_programs import trace_program
    from pllm.build.export import paged_attention
    from pllm.build.model_source import skeleton
    from pllm.kernels.cuda.configurations import Configurations
    from pllm.kernels.cuda.operators import CudaOperators, register
    from pllm.runtime.manifest import KvInfo

    from .hopper import hopper

    import transformers  # isort: skip

    folder = tmp_path_factory.mktemp("hopper")
    config = transformers.Qwen3Config(
        vocab_size=640, hidden_size=256, intermediate_size=384, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, max_position_embeddings=256, tie_word_embeddings=True,
    )  # fmt: skip
    kv = KvInfo(dtype="bfloat16", num_layers=LAYERS, num_kv_heads=2, block_size=16, head_dim=64)
    model = skeleton(config, paged_attention, torch.bfloat16)
    launches = {}
    library = register(CudaOperators(Configurations.shipped((9, 0)), max_sequences=16))
    with hopper():
        for name, step in step_shapes(16, 64).items():
            if name != "decode-1":
                program = trace_program(model, kv, config.vocab_size, name, step)
                launches[name] = compile_cuda_graph(program.traced, folder / f"{name}.pt2")
    yield folder, launches
    library._destroy()


LAYERS = 2
SMALL = ["small_linear", "norm_rope_write", "decode_attention", "small_linear", "small_linear", "small_linear"]
LARGE = ["mm_out", "norm_rope_write", "decode_attention", "mm_out", "add_rms_norm", "mm_out", "silu_mul", "mm_out"]
SAMPLER = ["penalize", "scan", "choose", "record"]


@needs_cuda_build
def test_a_layer_is_six_kernels_for_eight_rows(compiled: tuple[Path, dict[str, list[str]]]) -> None:
    _, launches = compiled
    kernels = [name for name in launches["decode-8"] if not name.startswith("model_triton")]
    layers = [name for name in kernels if name in SMALL]
    assert layers == SMALL * LAYERS
    rest = [name for name in kernels if name not in SMALL]
    assert rest == ["token_slots", "mm_out", "add_rms_norm", "mm_out", *SAMPLER]  # angles, last norm, head


@needs_cuda_build
def test_a_layer_is_nine_kernels_for_more(compiled: tuple[Path, dict[str, list[str]]]) -> None:
    _, launches = compiled
    kernels = launches["decode-16"]
    assert kernels.count("add_rms_norm") == 2 * LAYERS + 1
    assert kernels.count("mm_out") == 4 * LAYERS + 2
    for name in ("norm_rope_write", "decode_attention", "silu_mul"):
        assert kernels.count(name) == LAYERS
    assert len(kernels) <= 9 * LAYERS + 12
    assert kernels[-4:] == SAMPLER
    assert launches["mixed"].count("prefill_attention") == LAYERS


@needs_cuda_build
def test_the_package_holds_kernels_for_the_architecture(compiled: tuple[Path, dict[str, list[str]]]) -> None:
    folder, launches = compiled
    for name in launches:
        with zipfile.ZipFile(folder / f"{name}.pt2") as package:
            (member,) = [each for each in package.namelist() if each.endswith("/model.so")]
            library = package.read(member)
        cubins = [at for at in range(1, len(library)) if library.startswith(b"\x7fELF", at)]
        machines = {int.from_bytes(library[at + 18 : at + 20], "little") for at in cubins}
        assert machines == {190}  # EM_CUDA
        assert len(cubins) >= 8
        assert str(folder).encode() not in library
        assert b"libcuda.so.1" in library
