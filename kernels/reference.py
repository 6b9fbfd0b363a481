"""The specification of every operator, in plain torch: clear rather than fast. Implementations are tested against it.

Sizes: T packed tokens of the step, B sequences, H query heads, Hkv key heads, D head_dim, V vocabulary.
"""

import torch

from pllm.kernels.packing import unpack_linear
from pllm.kernels.quantization import (
    GATE_RUN,
    cache_parts,
    dequantize,
    dequantize_int4,
    round_rows,
    unpack_int4,
    unpack_quantized,
)

__all__ = [
    "add_rms_norm",
    "cached",
    "cached_attention",
    "embedding",
    "filtered_probabilities",
    "grouped_linear",
    "gumbel_noise",
    "linear",
    "norm_rope_write",
    "paged_attention",
    "penalize",
    "quantized_embedding",
    "quantized_gated_linear",
    "quantized_linear",
    "record",
    "rms_normalize",
    "rotate",
    "sample",
    "sample_tokens",
    "silu_mul",
    "small_linear",
    "stored",
    "token_slots",
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

    x: float32 [..., K]; each row is rounded as `quantization.round_rows` does it. weight and scale, packed as
    `kernels/quantization.py` has them: int8 with float32 [N], or int4 with bfloat16 [ceil(N/32), groups, 32]. bias:
    float32 [N]. Products are summed as whole numbers (int4: in each group), then multiplied by both scales. A row that
    is not finite gives what is not. Returns float32 [..., N], N = out_features.
    """
    rounded, step = round_rows(x)
    whole, step = rounded.double(), step[..., None]
    if scale.dtype == torch.float32:
        sums = whole @ unpack_quantized(weight, out_features, x.shape[-1]).double().T
        y = sums.float() * (scale * step)
    else:
        y = (whole @ dequantize_int4(*unpack_int4(weight, scale, out_features)).double().T).float() * step
    return y if bias is None else y + bias


def quantized_gated_linear(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, out_features: int
) -> torch.Tensor:
    """silu(gate) * up of a product with a weight whose 2 * out_features rows are both in turns, as
    `quantization.alternate_gates` orders them. Returns float32 [..., out_features]."""
    runs = quantized_linear(x, weight, scale, None, 2 * out_features).unflatten(-1, (-1, 2, GATE_RUN))
    gate, up = runs.unbind(-2)
    gated: torch.Tensor = gate * torch.sigmoid(gate) * up
    return gated.flatten(-2)


def quantized_embedding(
    ids: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, embedding_dim: int
) -> torch.Tensor:
    """Rows of a packed int8 weight. ids: int64 [...], each in [0, N). Returns float32 [..., K]; K = embedding_dim."""
    return dequantize(unpack_quantized(weight, scale.shape[0], embedding_dim), scale)[ids]


def paged_attention(
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
        written; what is attended to is what was written), or int8 with D + 4 for D (`quantization.round_rows` and
        `cache_parts`). Changed in place.
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
    pool, scales = cache_parts(kv) if kv.dtype == torch.int8 else (kv, None)
    for b in range(context_len.numel()):
        begin, end = int(query_start[b]), int(query_start[b + 1])
        context = int(context_len[b])
        positions = torch.arange(context - (end - begin), context)
        seen_from = max(0, int(positions[0]) - sliding_window + 1) if sliding_window and end > begin else 0
        for row, position in zip(range(begin, end), positions.tolist(), strict=True):
            block, offset = int(block_table[b, position // block_size]), position % block_size
            entries = torch.stack((k[row], v[row]))
            if scales is None:
                pool[block, layer, :, :, offset] = entries.to(kv.dtype)
            else:
                pool[block, layer, :, :, offset], scales[block, layer, :, :, offset] = round_rows(entries)
        if begin == end:
            continue
        keys_at = torch.arange(seen_from, context)
        blocks = block_table[b].long()[keys_at // block_size]
        cached = pool[blocks, layer, :, :, keys_at % block_size].float()  # [keys, 2, Hkv, D]
        if scales is not None:
            cached *= scales[blocks, layer, :, :, keys_at % block_size][..., None]
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


def sample(logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float, uniform: float) -> int:
    """One token: the first id whose cumulative probability, in id order, exceeds `uniform` in [0, 1).

    temperature < 1e-5: argmax.
    """
    if temperature < 1e-5:
        return int(logits.argmax())
    cumulative = torch.cumsum(filtered_probabilities(logits, temperature, top_k, top_p, min_p), 0)
    return int(
        torch.searchsorted(cumulative, torch.tensor(uniform * float(cumulative[-1]), dtype=torch.float64), right=True)
    )


def token_slots(
    block_table: torch.Tensor, query_start: torch.Tensor, context_len: torch.Tensor, tokens: int, block_size: int
) -> torch.Tensor:
    """Where the step's tokens go in the pool: block id * block_size + offset, -1 for rows of no sequence.

    The arguments are those of `paged_attention`; tokens: rows of the step, of which the sequences may leave some at the
    end. Returns int32 [tokens].
    """
    slots = torch.full((tokens,), -1, dtype=torch.int32)
    for b in range(context_len.numel()):
        begin, end = int(query_start[b]), int(query_start[b + 1])
        for row in range(begin, end):
            position = int(context_len[b]) - (end - row)
            slots[row] = int(block_table[b, position // block_size]) * block_size + position % block_size
    return slots


def norm_rope_write(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    kv: torch.Tensor,
    slots: torch.Tensor,
    layer: int,
    eps: float,
    weight_offset: float,
    interleaved: bool,
    k_scale: float,
    v_scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Norms queries and keys (where weights are given), turns them (where angles are), writes keys and values.

    q [T, H, D]; k, v [T, Hkv, D]; cos, sin [T, R / 2], one value a pair, pairs as `rotate` has them; q_weight, k_weight
    [D]: heads over their root mean square, times weight + weight_offset. kv: the pool of `paged_attention`, changed in
    place; it holds keys over k_scale and values over v_scale (`stored`). slots: of `token_slots`; rows with -1 are
    neither written nor, in the result, defined. Computed in float32 or wider.
    Returns the queries, in q's dtype, and zeros, int32 [T, Hkv], where decode attention counts.
    """
    block_size = kv.shape[4]
    wide = torch.promote_types(q.dtype, torch.float32)
    turned = []
    for x, weight in ((q, q_weight), (k, k_weight)):
        y = x.to(wide)
        if weight is not None:
            y = rms_normalize(y, weight, eps, weight_offset)
        if cos is not None and sin is not None:
            y = rotate(y, cos[:, None].to(wide), sin[:, None].to(wide), interleaved)
        turned.append(y)
    rows = torch.nonzero(slots >= 0).flatten()
    blocks, offsets = slots[rows].long() // block_size, slots[rows].long() % block_size
    kv[blocks, layer, 0, :, offsets] = stored(turned[1][rows] / k_scale, kv.dtype)
    kv[blocks, layer, 1, :, offsets] = stored(v[rows].to(wide) / v_scale, kv.dtype)
    return turned[0].to(q.dtype), torch.zeros((q.shape[0], kv.shape[3]), dtype=torch.int32)


def norm_rope(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    eps: float,
    weight_offset: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`norm_rope_write` without the writing: q [T, H, D] and k [T, Hkv, D], normed and turned; pairs (0, R / 2)."""
    wide = torch.promote_types(q.dtype, torch.float32)
    found = []
    for x, weight in ((q, q_weight), (k, k_weight)):
        y = x.to(wide) if weight is None else rms_normalize(x.to(wide), weight, eps, weight_offset)
        if cos is not None and sin is not None:
            y = rotate(y, cos[:, None].to(wide), sin[:, None].to(wide), False)
        found.append(y.to(x.dtype))
    return found[0], found[1]


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """Turn pairs (a, b) of the first R elements to (a cos - b sin, b cos + a sin); cos, sin [..., R / 2].

    Pairs are (0, 1), (2, 3), ... where interleaved, else (0, R / 2), (1, R / 2 + 1), ...
    """
    half = cos.shape[-1]
    turning, rest = x[..., : 2 * half], x[..., 2 * half :]
    a, b = turning.unflatten(-1, (half, 2)).unbind(-1) if interleaved else turning.unflatten(-1, (2, half)).unbind(-2)
    turned = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1 if interleaved else -2)
    return torch.cat((turned.flatten(-2), rest), dim=-1)


def stored(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Values as the pool holds them, rounded to nearest even; e4m3 saturates at 448. uint8: e4m3 by its bits."""
    if dtype not in (torch.uint8, torch.float8_e4m3fn):
        return x.to(dtype)
    return x.float().clamp(-448, 448).to(torch.float8_e4m3fn).view(dtype)


def cached(kv: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What the pool holds, in a wide dtype."""
    return (kv.view(torch.float8_e4m3fn) if kv.dtype == torch.uint8 else kv).to(dtype)


def cached_attention(
    q: torch.Tensor,
    kv: torch.Tensor,
    block_table: torch.Tensor,
    query_start: torch.Tensor,
    context_len: torch.Tensor,
    sinks: torch.Tensor | None,
    layer: int,
    scale: float,
    sliding_window: int,
    softcap: float,
    k_scale: float,
    v_scale: float,
) -> torch.Tensor:
    """`paged_attention` where the step's keys and values are in the pool already, in float32 or, for float64 q, wider.

    Keys and values count k_scale and v_scale times what the pool holds. Rows of no sequence come out as zeros. Returns
    [T, H, D] in q's dtype.
    """
    block_size, heads, kv_heads = kv.shape[4], q.shape[1], kv.shape[3]
    wide = torch.promote_types(q.dtype, torch.float32)
    out = torch.zeros(q.shape, dtype=wide)
    for b in range(context_len.numel()):
        begin, end, context = int(query_start[b]), int(query_start[b + 1]), int(context_len[b])
        if begin == end:
            continue
        positions = torch.arange(context - (end - begin), context)
        first = max(0, int(positions[0]) - sliding_window + 1) if sliding_window else 0
        at = torch.arange(first, context)
        entries = cached(kv[block_table[b].long()[at // block_size], layer, :, :, at % block_size], wide)
        keys, values = (entries[:, i].repeat_interleave(heads // kv_heads, dim=1) for i in (0, 1))
        logits = torch.einsum("thd,shd->hts", q[begin:end].to(wide), keys * k_scale) * scale
        if softcap > 0:
            logits = softcap * torch.tanh(logits / softcap)
        hidden = at[None, :] > positions[:, None]
        if sliding_window:
            hidden |= at[None, :] <= positions[:, None] - sliding_window
        logits = logits.masked_fill(hidden, float("-inf"))
        if sinks is not None:
            logits = torch.cat([logits, sinks[:, None, None].to(wide).expand(-1, end - begin, 1)], dim=-1)
        weights = torch.softmax(logits, dim=-1)[..., : len(at)]
        out[begin:end] = torch.einsum("hts,shd->thd", weights, values * v_scale)
    return out.to(q.dtype)


def rms_normalize(x: torch.Tensor, weight: torch.Tensor, eps: float, weight_offset: float) -> torch.Tensor:
    """Rows over their root mean square (eps within), times weight + weight_offset. x [..., N], weight [N]."""
    wide = torch.promote_types(x.dtype, torch.float32)
    y = x.to(wide)
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
    return (y * (weight.to(wide) + weight_offset)).to(x.dtype)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, weight_offset: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The norm of x + residual (before it is rounded), and the sum; in x's dtype. x, residual [M, N], weight [N]."""
    wide = torch.promote_types(x.dtype, torch.float32)
    total = x.to(wide) + residual.to(wide)
    return rms_normalize(total, weight, eps, weight_offset).to(x.dtype), total.to(x.dtype)


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up of [M, 2 N], the gate first. Returns [M, N]."""
    gate, up = gate_up.to(torch.promote_types(gate_up.dtype, torch.float32)).chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate) * up).to(gate_up.dtype)


def small_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm_weight: torch.Tensor | None,
    residual: torch.Tensor | None,
    eps: float,
    weight_offset: float,
    gated: bool,
) -> torch.Tensor:
    """norm(x) W^T + bias; where `gated`, silu(gate) * up of it; + residual. In float32 or wider, rounded once.

    x [M, K]; weight [N, K], or [2 N, K], the gate's rows first; bias, a value for each of its rows; norm_weight [K];
    residual [M, N]. Returns [M, N] in x's dtype.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    y = x.to(wide)
    if norm_weight is not None:
        y = rms_normalize(y, norm_weight, eps, weight_offset)
    y = torch.nn.functional.linear(y, weight.to(wide), None if bias is None else bias.to(wide))
    if gated:
        y = silu_mul(y)
    return (y if residual is None else y + residual.to(wide)).to(x.dtype)


def gumbel_noise(seed: int, position: int, size: int) -> torch.Tensor:
    """The noise of token ids 0..size - 1 for a sequence's seed (int64) and the tokens drawn before: float64 [size].

    32 bits of each token from the stream of SplitMix64 at (seed, position), mixed with its id by MurmurHash3's
    finaliser; u = (bits + 1/2) / 2^32; the noise is -log(-log(1 - u)).
    """

    def mix64(z: int) -> int:
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        z = (z ^ z >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        return z ^ z >> 31

    def mix32(z: torch.Tensor) -> torch.Tensor:
        z = ((z ^ z >> 16) * 0x85EBCA6B) & 0xFFFFFFFF
        z = ((z ^ z >> 13) * 0xC2B2AE35) & 0xFFFFFFFF
        return z ^ z >> 16

    key = mix64(mix64(seed & 0xFFFFFFFFFFFFFFFF) + (position + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF)
    ids = torch.arange(size)
    bits = mix32(mix32((ids * 0x9E3779B1 + (key & 0xFFFFFFFF)) & 0xFFFFFFFF) ^ (key >> 32))
    return -torch.log(-torch.log1p(-(bits.double() + 0.5) * 2.0**-32))


def sample_tokens(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seeds: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor:
    """A token for each row of logits [R, V], by Gumbel-max over the tokens that `filtered_probabilities` leaves.

    Parameters [R]: temperature (below 1e-5: argmax; below 0: a row of no sequence, which comes out as -1), top_k,
    top_p, min_p; seeds and positions of `gumbel_noise`. Returns int64 [R], -1 where a row holds NaN or +inf, or nothing
    but -inf.
    """
    tokens = torch.full((logits.shape[0],), -1, dtype=torch.int64)
    for r, row in enumerate(logits.float()):
        if temperature[r] < 0 or not bool((row < float("inf")).all()) or bool((row == float("-inf")).all()):
            continue
        if temperature[r] < 1e-5:
            tokens[r] = row.argmax()
            continue
        kept = filtered_probabilities(row, float(temperature[r]), int(top_k[r]), float(top_p[r]), float(min_p[r]))
        noise = gumbel_noise(int(seeds[r]), int(positions[r]), row.numel())
        tokens[r] = torch.where(kept > 0, torch.log(kept) + noise, float("-inf")).argmax()
    return tokens


def penalize(
    logits: torch.Tensor,
    history: torch.Tensor,
    slots: torch.Tensor,
    repetition: torch.Tensor,
    frequency: torch.Tensor,
    presence: torch.Tensor,
) -> None:
    """Penalties on rows of logits [R, V], in place, in vLLM's order.

    history: int32 [slots, V]: twice the times a sequence said a token, plus one where its prompt holds it; slots: int32
    [R], -1 for a row without penalties. repetition: positive logits of tokens seen are divided by it, others
    multiplied, at most 1e30; frequency, times the times said, and presence, once, are subtracted. float32 [R] each.
    """
    for r, slot in enumerate(slots.tolist()):
        if slot < 0:
            continue
        seen, count = history[slot] > 0, history[slot] // 2
        x = logits[r].float()
        if repetition[r] != 1:
            repeated = torch.where(x > 0, x / repetition[r], x * repetition[r]).clamp(max=1e30)
            x = torch.where(seen, repeated, x)
        logits[r] = x - frequency[r] * count - presence[r] * (count > 0)


def record(history: torch.Tensor, slots: torch.Tensor, tokens: torch.Tensor) -> None:
    """Count the tokens drawn [R] in the history of `penalize`; none for a slot or a token below 0."""
    for slot, token in zip(slots.tolist(), tokens.tolist(), strict=True):
        if slot >= 0 and token >= 0:
            history[slot, token] += 2
