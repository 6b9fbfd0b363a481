"""The wanted rows are selected as far up as rows stand alone, in every family, and no further."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.export import Dim
from torch.fx import Node

from pllm.build.passes import PASSES
from pllm.build.passes.select_rows import select_rows
from pllm.build.traced import ConstantSource, Traced, argument, value

from .graphs import FAMILIES, PagedModel, checkpoint_of, traced_of

aten, pllm = torch.ops.aten, torch.ops.pllm
EXPERTS = ("mixtral", "qwen3_moe", "gpt_oss")
"""Their tokens are sorted by expert, so that rows do not stay in their places."""

TEXTS = {0: [5], 1: list(range(20, 45)), 2: [9, 40, 71, 8, 3]}
TOKENS = sum(map(len, TEXTS.values()))
STEPS: tuple[tuple[dict[int, list[int]], list[int]], ...] = (
    (TEXTS, [TOKENS - 1, 0, 25, 13, 0, TOKENS - 1]),  # in another order, and some twice
    ({0: [7, 11], 1: [4]}, [2, 1, 0, 0, 1, 2, 2]),  # more rows than tokens
    ({2: [17, 6, 30], 0: [8]}, [0]),  # as where nobody wants logits
    ({0: [3], 1: [4], 2: [5]}, [0, 1, 2]),
)


def apply(traced: Traced, passes) -> str:
    said = ""
    for run in passes:
        said = run(traced, torch.float32)
        traced.drop_unused()
    return said


def counted(node: Node) -> str:
    """The symbol of a product's number of rows."""
    return str(value(node).shape[-2])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(family, tmp_path)
    traced, kv = traced_of(checkpoint)
    assert PASSES[-1] is select_rows
    apply(traced, PASSES[:-1])
    before = PagedModel(traced, kv, checkpoint)
    expected = [before.step(rows, wanted) for rows, wanted in STEPS]

    said = apply(traced, [select_rows])
    after = PagedModel(traced, kv, checkpoint)
    for logits, (rows, wanted) in zip(expected, STEPS, strict=True):
        torch.testing.assert_close(after.step(rows, wanted), logits, atol=1e-5, rtol=0)

    moved = 0 if family in EXPERTS else 3
    assert f"nodes, {moved} of them products," in said
    assert ("pllm::paged_attention" in said) == (family not in EXPERTS)
    tokens, rows = (str(value(traced.input(name)).shape[0]) for name in ("input_ids", "logits_index"))
    assert tokens != rows
    counts = [counted(node) for node in traced.calls(pllm.packed_linear.default)]
    kept = len(counts) - moved - 1  # 1: the head
    assert counts == [tokens] * kept + [rows] * (moved + 1)
    last = traced.calls(pllm.add_rms_norm.default)[-1]
    assert str(value(argument(last, 0)).shape[0]) == rows


def test_a_second_time_nothing_is_left_to_do(tmp_path: Path) -> None:
    traced, _ = traced_of(checkpoint_of("qwen3", tmp_path))
    apply(traced, PASSES)
    nodes = len(traced.graph.nodes)
    assert apply(traced, [select_rows]).startswith("0 nodes, 0 of them products")
    assert len(traced.graph.nodes) == nodes


def test_what_others_use_is_computed_once(tmp_path: Path) -> None:
    """A sum over all tokens of what the last MLP gives: it stays, and so does all that it is made of."""
    checkpoint = checkpoint_of("qwen3", tmp_path)
    traced, kv = traced_of(checkpoint)
    apply(traced, PASSES[:-1])
    last = traced.calls(pllm.packed_linear.default)[-2]
    (output,) = (node for node in traced.graph.nodes if node.op == "output")
    (logits,) = output.args[0]
    with traced.graph.inserting_before(output), traced.fake_mode:
        total = traced.graph.call_function(aten.sum.default, (last,))
        changed = traced.graph.call_function(aten.add.Tensor, (logits, total))
        total.meta["val"], changed.meta["val"] = value(last).sum(), value(logits)
    output.args = ((changed,),)
    specs = traced.program.graph_signature.output_specs
    specs[-1].arg = type(specs[-1].arg)(name=changed.name)

    traced.drop_unused()
    before = PagedModel(traced, kv, checkpoint)
    expected = [before.step(rows, wanted) for rows, wanted in STEPS]
    products = len(traced.calls(pllm.packed_linear.default))
    said = apply(traced, [select_rows])
    after = PagedModel(traced, kv, checkpoint)
    assert ", 0 of them products," in said and "pllm::packed_linear" in said
    assert len(traced.calls(pllm.packed_linear.default)) == products
    for logits_before, (rows, wanted) in zip(expected, STEPS, strict=True):
        torch.testing.assert_close(after.step(rows, wanted), logits_before, atol=1e-4, rtol=1e-5)


Function = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Small(torch.nn.Module):
    """Tokens as vectors [1, T, 4], some function of them and of a weight, and the wanted rows of that."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("weight", torch.linspace(-1, 1, 16).reshape(4, 4))

    def forward(self, input_ids: torch.Tensor, logits_index: torch.Tensor) -> torch.Tensor:
        x = torch.sin(input_ids.unsqueeze(-1) * 0.1 + self.weight[0]).unsqueeze(0)
        return self.function(x, self.weight)[:, logits_index]


BY_ROW: dict[str, Function] = {
    "elements": lambda x, w: torch.where(x > 0, x.exp(), 1 - x) * w[0],
    "products": lambda x, w: torch.nn.functional.linear(torch.nn.functional.linear(x, w).tanh(), w),
    "layer norms": lambda x, w: torch.nn.functional.layer_norm(x, (4,), w[1], w[2]),
    "means": lambda x, w: x - x.mean(-1, keepdim=True),
    "halves": lambda x, w: torch.cat(x.split(2, -1)[::-1], -1),
    "heads": lambda x, w: x.view(1, -1, 2, 2).transpose(1, 2).neg().transpose(1, 2).reshape(1, x.shape[1], 4),
    "views": lambda x, w: x.view(x.shape[1], 4).unsqueeze(0).permute(1, 0, 2).squeeze(1).sigmoid()[None],
    "no dropout": lambda x, w: torch.nn.functional.dropout(x, 0.5, training=False),
}
NOT_BY_ROW: dict[str, Function] = {
    "sums so far": lambda x, w: x.cumsum(1),
    "the other way round": lambda x, w: x.flip(1),
    "less the mean of all": lambda x, w: x - x.mean(1, keepdim=True),
    "shares of all": lambda x, w: x.softmax(1),
    "times how many there are": lambda x, w: x * x.shape[1],
    "in another order": lambda x, w: x.transpose(1, 2).reshape(1, x.shape[1], 4),
    "all by all": lambda x, w: (x @ x.transpose(1, 2)) @ x,
    "twice": lambda x, w: torch.cat([x, x], 1).view(1, x.shape[1], 2, 4)[:, :, 1],
}


def _changed_in_place(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    whole = x.exp()
    half = whole[:, :, 2:]
    whole.add_(1)
    return torch.cat([half, half], -1)


NOT_BY_ROW["changed in place"] = _changed_in_place


@pytest.mark.parametrize("name", [*BY_ROW, *NOT_BY_ROW])
def test_small_functions(name: str) -> None:
    function = (BY_ROW | NOT_BY_ROW)[name]
    sizes = ({0: Dim("tokens", min=5)}, {0: Dim("rows", min=1)})  # 5: for a transposed one there is a case for few
    examples = (torch.zeros(6, dtype=torch.int64), torch.zeros(4, dtype=torch.int64))
    program = torch.export.export(Small(function), examples, dynamic_shapes=sizes)
    traced = Traced(
        program,
        {
            spec.arg.name: ConstantSource(("weight",))
            for spec in program.graph_signature.input_specs
            if spec.target is not None
        },
    )
    apply(traced, [select_rows])

    tokens, index = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6]), torch.tensor([7, 0, 3, 3, 1])
    whole = Small(function)
    given = {"weight": whole.weight, "input_ids": tokens, "logits_index": index}
    inputs = [node.name.removeprefix("b_") for node in traced.graph.nodes if node.op == "placeholder"]
    (actual,) = torch.fx.Interpreter(traced.program.graph_module).run(*(given[name] for name in inputs))
    torch.testing.assert_close(actual, whole(tokens, index), atol=1e-6, rtol=0)
    # Where rows stand alone, even the tokens' ids are taken of those rows only.
    users = {node.target for node in traced.input("input_ids").users}
    assert users == {aten.index.Tensor} if name in BY_ROW else aten.index.Tensor not in users
