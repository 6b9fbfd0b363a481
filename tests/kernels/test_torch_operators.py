"""The operators as torch calls them in a traced graph: transformers' layout in, [1, T, H, D] out."""

import torch

from pllm.kernels.torch_operators import define_operators


def test_paged_attention_takes_the_layout_of_the_graph() -> None:
    define_operators()
    q, k, v = torch.randn(1, 4, 3, 16), torch.randn(1, 2, 3, 16), torch.randn(1, 2, 3, 16)
    pool = torch.zeros(4, 1, 2, 2, 16, 16)
    table, starts, contexts = (torch.tensor(x, dtype=torch.int32) for x in ([[2]], [0, 3], [3]))
    out = torch.ops.pllm.paged_attention(q, k, v, pool, table, starts, contexts, None, 0, 0.25, 0, 0.0)
    k, v = (x.repeat_interleave(2, dim=1) for x in (k, v))
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.25)
    torch.testing.assert_close(out, wanted.transpose(1, 2))
