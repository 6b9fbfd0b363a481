"""The specification of every operator, in plain torch: clear rather than fast. Implementations are tested against it.

Sizes: T packed tokens of the step, B sequences, H query heads, Hkv key heads, D head_dim, V vocabulary.
"""

import torch

from pllm.kernels.packing import unpack_linear
from pllm.kernels.quantization import dequantize, dequantize_int4, unpack_int4, unpack_quantized

__all__ = [
    "embedding",
    "filtered_probabilities",
    "grouped_linear",
    "linear",
    "paged_attention",
    "quantized_embedding",
    "quantized_linear",
    "sample",
]


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out_features: int) -> torch.Tensor:
    """x W^T + bias in float32 arithmetic.

    x: float32 [..., K]. weight: packed [ceil(N/32), K, 32], float32 or bfloat16 (storage only: widened exactly).
    bias: float32 [N]. Returns float32 [..., N], N = out_features.
    """
    return torch.nn.functional.linear(x, unpack_linear(weight, out_features).float(), bias)


def grouped_linear(x: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor, out_features: int) -> torch.Tensor:
    """Each row times the weight of its group, as the experts of a layer: x W_g^T in float32 arithmetic.

    x: float32 [M, K], rows of a group together. weight: packed [G, ceil(N/32), K, 32], as `linear` has it. ends: int32
    [G]: rows ends[g - 1] (0 for the first) to ends[g] are of group g; a group may have none, and the last end is M.
    Returns float32 [M, N], N = out_features.
    """
    parts = torch.tensor_split(x, ends[:-1].long().cpu())
    return torch.cat([linear(part, w, None, out_features) for part, w in zip(parts, weight, strict=True)])


def embedding(ids: torch.Tensor, weight: torch.Tensor, num_embeddings: int) -> torch.Tensor:
    """Rows of a packed weight. ids: int64 [...], each in [0, N). Returns float32 [..., K]; N = num_embeddings."""
    return unpack_linear(weight, num_embeddings).float()[ids]


def quantized_linear(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, out_features: int
) -> torch.Tensor:
    """x W^T + bias with int8 or int4 weights and activations that are rounded to int8, a row at a time.

    x: float32 [..., K]; each row is divided by its largest element's size / 127 and rounded to nearest even. weight and
    scale, packed as `kernels/quantization.py` has them: int8 with float32 [N], or int4 with bfloat16 [ceil(N/32),
    groups, 32]. bias: float32 [N]. Products are summed as whole numbers (int4: in each group), then multiplied by both
    scales. A row that is not finite gives what is not. Returns float32 [..., N], N = out_features.
    """
    largest = x.abs().amax(dim=-1, keepdim=True)
    steps = torch.where((largest > 0) & largest.isfinite(), 127 / largest, torch.zeros_like(largest))
    whole = (x * steps).round().nan_to_num(0).double()
    if scale.dtype == torch.float32:
        sums = whole @ unpack_quantized(weight, out_features, x.shape[-1]).double().T
        y = sums.float() * (scale * (largest / 127))
    else:
        y = (whole @ dequantize_int4(*unpack_int4(weight, scale, out_features)).double().T).float() * (largest / 127)
    return y if bias is None else y + bias


def quantized_embedding(
    ids: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, embedding_dim: int
) -> torch.Tensor:
    """Rows of a packed int8 weight. ids: int64 [...], each in [0, N). Returns float32 [..., K]; K = embedding_dim."""
    return dequantize(unpack_quantized(weight, scale.shape[0], embedding_dim), scale)[ids]


def paged_attention(  # noqa: PLR0917 - the operator's own arguments, in its order
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kv: torch.Tensor,
    block_table: torch.Tensor,
    query_start: torch.Tensor,
    context_len: torch.Tensor,
    sinks: torch.Tensor | None,
    layer: int,
    scale: float,
    sliding_window: int,
    softcap: float,
) -> torch.Tensor:
    """Write this step's keys and values into the pool, then attend causally over each sequence's cache.

    q: float32 [T, H, D]; k, v: float32 [T, Hkv, D]; strided over tokens and heads. H is a multiple of Hkv: query head h
        reads key head h // (H / Hkv).
    kv: the pool [num_blocks, num_layers, 2, Hkv, block_size, D], float32 or bfloat16 (rounded to nearest even when
        written; what is attended to is what was written). Changed in place.
    block_table: int32 [B, W]: block_table[b, i] holds positions i*block_size.. of sequence b.
    query_start: int32 [B + 1]: sequence b's new tokens are rows query_start[b]..query_start[b + 1] of q, k and v.
    context_len: int32 [B]: tokens of b in the cache after this step; its new tokens are the last of them.
    sinks: float32 [H] or none: a logit per head that takes part in the softmax and carries no value (gpt-oss).
    scale: logits = scale * q.k; softcap c > 0: logits = c * tanh(logits / c) (Gemma 2).
    sliding_window: w > 0: a query at position p sees the keys at positions > p - w; 0: all up to p.
    Returns float32 [T, H, D].
    """
    block_size = kv.shape[4]
    heads, kv_heads = q.shape[1], k.shape[1]
    out = torch.empty(q.shape, dtype=torch.float32)
    for b in range(context_len.numel()):
        begin, end = int(query_start[b]), int(query_start[b + 1])
        context = int(context_len[b])
        positions = torch.arange(context - (end - begin), context)
        seen_from = max(0, int(positions[0]) - sliding_window + 1) if sliding_window and end > begin else 0
        for row, position in zip(range(begin, end), positions.tolist(), strict=True):
            block = int(block_table[b, position // block_size])
            kv[block, layer, 0, :, position % block_size] = k[row].to(kv.dtype)
            kv[block, layer, 1, :, position % block_size] = v[row].to(kv.dtype)
        if begin == end:
            continue
        keys_at = torch.arange(seen_from, context)
        blocks = block_table[b].long()[keys_at // block_size]
        cached = kv[blocks, layer, :, :, keys_at % block_size].float()  # [keys, 2, Hkv, D]
        keys, values = (cached[:, i].repeat_interleave(heads // kv_heads, dim=1) for i in (0, 1))
        logits = torch.einsum("thd,shd->hts", q[begin:end], keys) * scale
        if softcap > 0:
            logits = softcap * torch.tanh(logits / softcap)
        hidden = keys_at[None, :] > positions[:, None]
        if sliding_window:
            hidden |= keys_at[None, :] <= positions[:, None] - sliding_window
        logits = logits.masked_fill(hidden, float("-inf"))
        if sinks is not None:
            logits = torch.cat([logits, sinks[:, None, None].expand(-1, end - begin, 1)], dim=-1)
        weights = torch.softmax(logits, dim=-1)[..., : len(keys_at)]
        out[begin:end] = torch.einsum("hts,shd->thd", weights, values)
    return out


def filtered_probabilities(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float
) -> torch.Tensor:
    """The distribution that one row is sampled from, float64 [V], zero for the tokens left out.

    logits: float32 [V]. In vLLM's order: temperature; min_p (probabilities below min_p times the largest go); top_k
    (logits below the k-th largest go, ties with it stay; 0 or less, or V and more: off); top_p on what is left,
    renormalised (a token stays while the mass of those before it, larger first, equal ones by id, is below top_p; 1 and
    more: off).
    """
    scaled = logits / temperature
    weights = torch.exp((scaled - scaled.max()).double())
    weights[weights < min_p] = 0
    if 0 < top_k < logits.numel():
        weights[scaled < torch.topk(scaled, top_k).values[-1]] = 0
    if top_p < 1:
        order = torch.argsort(weights, descending=True, stable=True)
        ordered = weights[order]
        before = torch.cumsum(ordered, 0) - ordered
        weights[order[before >= top_p * weights.sum()]] = 0
    return weights / weights.sum()


def sample(  # noqa: PLR0917 - one argument per parameter
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float, uniform: float
) -> int:
    """One token: the first id whose cumulative probability, in id order, exceeds `uniform` in [0, 1).

    temperature < 1e-5: argmax.
    """
    if temperature < 1e-5:
        return int(logits.argmax())
    cumulative = torch.cumsum(filtered_probabilities(logits, temperature, top_k, top_p, min_p), 0)
    return int(
        torch.searchsorted(cumulative, torch.tensor(uniform * float(cumulative[-1]), dtype=torch.float64), right=True)
    )
