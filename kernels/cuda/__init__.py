"""The operators on CUDA, in Triton, one kernel or two a file.

A layer of a dense model like Qwen3, decoding at most eight sequences, is six kernels:

    1  small_linear       norm · query, key and value weights
    2  norm_rope_write    QK-norm, rotary embedding, keys and values into the cache
    3  decode_attention   over the cache, reduction included
    4  small_linear       output weight + residual
    5  small_linear       norm · gate and up weights, SiLU·mul
    6  small_linear       down weight + residual

Above eight, when products are better left to the library, nine:

    1  add_rms_norm       residual + norm          6  add_rms_norm       residual + norm
    2  library            query, key, value        7  library            gate and up
    3  norm_rope_write                             8  silu_mul
    4  decode_attention                            9  library            down
    5  library            output

Steps with several new tokens of a sequence run prefill_attention after decode_attention: the two share the sequences by
their new tokens. A step has besides, once: token_slots before the layers, and after them scan and choose (the sampler),
and where sequences ask for penalties, penalize and record.

Rows of no sequence, which fill a bucket up, cost attention and writes nothing, and have nothing written.

The pool is the one of every device, [blocks, layers, 2, KV heads, block size, head size]: a head's keys of a block lie
together (2 KB at 16 keys of 64, 16 KB at 64 of 128), which is what a load needs; e4m3 is stored as such, or as uint8
where Triton cannot convert it (before sm_89).
"""
