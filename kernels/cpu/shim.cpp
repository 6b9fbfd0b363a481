// The operators as AOTInductor's programs call them: tensors by torch's C interface, checked and handed to api.h.
#include <string.h>

#include "api.h"
#include "tensor.h"

namespace {

// float32 or bfloat16, as api.h calls them; -1 with the reason for another.
int stored_dtype(const Tensor& t, const char* name) {
  if (t.dtype == pllm_tensors_dtype_float32()) return PLLM_FLOAT32;
  if (t.dtype == pllm_tensors_dtype_bfloat16()) return PLLM_BFLOAT16;
  fail(PLLM_INVALID_ARGUMENT, "%s has torch's dtype %d, neither float32 nor bfloat16", name, t.dtype);
  return -1;
}

bool read_packed(AtenTensorHandle handle, int64_t out_features, int64_t in_features, Tensor* t, int* dtype) {
  if (!read_contiguous(handle, "weight", 3, -1, t)) return false;
  *dtype = stored_dtype(*t, "weight");
  if (*dtype < 0) return false;
  if (t->sizes[0] == (out_features + 31) / 32 && (in_features < 0 || t->sizes[1] == in_features) && t->sizes[2] == 32)
    return true;
  fail(PLLM_INVALID_ARGUMENT, "weight is packed as [%lld, %lld, %lld], for %lld rows of %lld", (long long)t->sizes[0],
       (long long)t->sizes[1], (long long)t->sizes[2], (long long)out_features, (long long)in_features);
  return false;
}

// A weight of whole numbers and its scales: int8 with float32 ones (`groups` is then 0), int4 with bfloat16 ones.
bool read_quantized(AtenTensorHandle handle, AtenTensorHandle scale, int64_t out_features, int64_t in_features, Tensor* t,
                    Tensor* s, int64_t* groups) {
  if (!read_contiguous(handle, "weight", 4, pllm_tensors_dtype_uint8(), t) || !read_contiguous(scale, "scale", -1, -1, s))
    return false;
  const int64_t panels = (out_features + 31) / 32;
  const bool is_int8 = s->dtype == pllm_tensors_dtype_float32();
  const bool scales = is_int8 ? s->dim == 1 && s->sizes[0] == out_features
                              : s->dtype == pllm_tensors_dtype_bfloat16() && s->dim == 3 && s->sizes[0] == panels &&
                                    s->sizes[1] > 0 && s->sizes[2] == 32;
  *groups = is_int8 || !scales ? 0 : s->sizes[1];
  if (scales && t->sizes[0] == panels && t->sizes[1] == (is_int8 ? (in_features + 3) / 4 : in_features / 8) &&
      t->sizes[2] == 32 && t->sizes[3] == 4)
    return true;
  fail(PLLM_INVALID_ARGUMENT, "a weight of [%lld, %lld, %lld, %lld] and its scale do not fit %lld rows of %lld",
       (long long)t->sizes[0], (long long)t->sizes[1], (long long)t->sizes[2], (long long)t->sizes[3], (long long)out_features,
       (long long)in_features);
  return false;
}

// [1, heads, tokens, head_dim] as api.h's (token, head, element).
void strides_of(const Tensor& t, int64_t out[3]) {
  out[0] = t.strides[2];
  out[1] = t.strides[1];
  out[2] = t.sizes[3] == 1 ? 1 : t.strides[3];
}

// A gated weight has two rows for each output.
AOTITorchError quantized_product(AtenTensorHandle x, AtenTensorHandle weight, AtenTensorHandle scale, AtenTensorHandle* bias,
                                 int64_t out_features, bool gated, AtenTensorHandle* ret0) {
  Tensor tx, tw, ts, tb;
  int64_t rows, row_stride, groups;
  float* y;
  if (!read(x, "x", -1, pllm_tensors_dtype_float32(), &tx) || !collapse(tx, &rows, &row_stride)) return kFailed;
  const int64_t k = tx.sizes[tx.dim - 1], n = gated ? 2 * out_features : out_features;
  if (!read_quantized(weight, scale, n, k, &tw, &ts, &groups) || !read_optional(bias, "bias", n, &tb)) return kFailed;
  int64_t sizes[kMaxDim];
  memcpy(sizes, tx.sizes, (size_t)tx.dim * sizeof *sizes);
  sizes[tx.dim - 1] = out_features;
  if (make(tx, sizes, tx.dim, ret0, &y)) return kFailed;
  return finish(pllm_quantized_linear((const float*)tx.data, rows, row_stride, (const uint8_t*)tw.data, ts.data, groups, n, k,
                                      (const float*)tb.data, gated, y, out_features),
                ret0);
}

}  // namespace

extern "C" {

PLLM_EXPORT AOTITorchError aoti_torch_cpu_packed_linear(AtenTensorHandle x, AtenTensorHandle weight, AtenTensorHandle* bias,
                                                        int64_t out_features, AtenTensorHandle* ret0) {
  Tensor tx, tw, tb;
  int64_t rows, row_stride;
  int dtype;
  float* y;
  if (!read(x, "x", -1, pllm_tensors_dtype_float32(), &tx) || !collapse(tx, &rows, &row_stride)) return kFailed;
  const int64_t k = tx.sizes[tx.dim - 1];
  if (!read_packed(weight, out_features, k, &tw, &dtype) || !read_optional(bias, "bias", out_features, &tb)) return kFailed;
  int64_t sizes[kMaxDim];
  memcpy(sizes, tx.sizes, (size_t)tx.dim * sizeof *sizes);
  sizes[tx.dim - 1] = out_features;
  if (make(tx, sizes, tx.dim, ret0, &y)) return kFailed;
  return finish(pllm_linear((const float*)tx.data, rows, row_stride, tw.data, dtype, out_features, k, (const float*)tb.data, y,
                            out_features),
                ret0);
}

// The rows of x lie group by group; rows [ends[g - 1], ends[g]) are multiplied with the weight of group g.
PLLM_EXPORT AOTITorchError aoti_torch_cpu_packed_grouped_linear(AtenTensorHandle x, AtenTensorHandle weight,
                                                                AtenTensorHandle ends, int64_t out_features,
                                                                AtenTensorHandle* ret0) {
  Tensor tx, tw, te;
  int64_t rows, row_stride;
  float* y;
  if (!read(x, "x", 2, pllm_tensors_dtype_float32(), &tx) || !collapse(tx, &rows, &row_stride) ||
      !read_contiguous(weight, "weight", 4, -1, &tw) || !read_contiguous(ends, "ends", 1, pllm_tensors_dtype_int32(), &te))
    return kFailed;
  const int dtype = stored_dtype(tw, "weight");
  if (dtype < 0) return kFailed;
  const int64_t k = tx.sizes[1], groups = tw.sizes[0];
  const int32_t* end = (const int32_t*)te.data;
  if (groups < 1 || tw.sizes[1] != (out_features + 31) / 32 || tw.sizes[2] != k || tw.sizes[3] != 32 ||
      te.sizes[0] != groups) {
    fail(PLLM_INVALID_ARGUMENT, "weights are packed as [%lld, %lld, %lld, %lld], for %lld groups of %lld rows of %lld",
         (long long)groups, (long long)tw.sizes[1], (long long)tw.sizes[2], (long long)tw.sizes[3], (long long)te.sizes[0],
         (long long)out_features, (long long)k);
    return kFailed;
  }
  for (int64_t g = 0; g < groups; g++)
    if (end[g] < (g ? end[g - 1] : 0) || end[g] > rows || (g == groups - 1 && end[g] != rows)) {
      fail(PLLM_INVALID_ARGUMENT, "group %lld of %lld ends at row %d of %lld", (long long)g, (long long)groups, end[g],
           (long long)rows);
      return kFailed;
    }
  const int64_t sizes[2] = {rows, out_features};
  if (make(tx, sizes, 2, ret0, &y)) return kFailed;
  const int64_t bytes = tw.sizes[1] * k * 32 * (dtype == PLLM_FLOAT32 ? 4 : 2);
  int code = PLLM_OK;
  for (int64_t g = 0, begin = 0; g < groups && !code; begin = end[g++])
    if (end[g] > begin)
      code = pllm_linear((const float*)tx.data + begin * row_stride, end[g] - begin, row_stride,
                         (const char*)tw.data + g * bytes, dtype, out_features, k, nullptr, y + begin * out_features,
                         out_features);
  return finish(code, ret0);
}

PLLM_EXPORT AOTITorchError aoti_torch_cpu_quantized_linear(AtenTensorHandle x, AtenTensorHandle weight,
                                                           AtenTensorHandle scale, AtenTensorHandle* bias,
                                                           int64_t out_features, AtenTensorHandle* ret0) {
  return quantized_product(x, weight, scale, bias, out_features, false, ret0);
}

PLLM_EXPORT AOTITorchError aoti_torch_cpu_quantized_gated_linear(AtenTensorHandle x, AtenTensorHandle weight,
                                                                 AtenTensorHandle scale, int64_t out_features,
                                                                 AtenTensorHandle* ret0) {
  return quantized_product(x, weight, scale, nullptr, out_features, true, ret0);
}

PLLM_EXPORT AOTITorchError aoti_torch_cpu_quantized_embedding(AtenTensorHandle ids, AtenTensorHandle weight,
                                                              AtenTensorHandle scale, int64_t embedding_dim,
                                                              AtenTensorHandle* ret0) {
  Tensor ti, tw, ts;
  int64_t groups;
  float* y;
  if (!read_contiguous(ids, "ids", -1, pllm_tensors_dtype_int64(), &ti) ||
      !read(scale, "scale", 1, pllm_tensors_dtype_float32(), &ts) ||
      !read_quantized(weight, scale, ts.sizes[0], embedding_dim, &tw, &ts, &groups))
    return kFailed;
  if (ti.dim >= kMaxDim) {
    fail(PLLM_INVALID_ARGUMENT, "ids has %lld dimensions", (long long)ti.dim);
    return kFailed;
  }
  int64_t sizes[kMaxDim];
  memcpy(sizes, ti.sizes, (size_t)ti.dim * sizeof *sizes);
  sizes[ti.dim] = embedding_dim;
  if (make(ti, sizes, ti.dim + 1, ret0, &y)) return kFailed;
  return finish(pllm_quantized_embedding((const int64_t*)ti.data, ti.numel(), (const uint8_t*)tw.data, (const float*)ts.data,
                                         ts.sizes[0], embedding_dim, y, embedding_dim),
                ret0);
}

PLLM_EXPORT AOTITorchError aoti_torch_cpu_packed_embedding(AtenTensorHandle ids, AtenTensorHandle weight,
                                                           int64_t num_embeddings, AtenTensorHandle* ret0) {
  Tensor ti, tw;
  int dtype;
  float* y;
  if (!read_contiguous(ids, "ids", -1, pllm_tensors_dtype_int64(), &ti) || !read_packed(weight, num_embeddings, -1, &tw, &dtype))
    return kFailed;
  if (ti.dim >= kMaxDim) {
    fail(PLLM_INVALID_ARGUMENT, "ids has %lld dimensions", (long long)ti.dim);
    return kFailed;
  }
  int64_t sizes[kMaxDim];
  memcpy(sizes, ti.sizes, (size_t)ti.dim * sizeof *sizes);
  sizes[ti.dim] = tw.sizes[1];
  if (make(ti, sizes, ti.dim + 1, ret0, &y)) return kFailed;
  return finish(pllm_embedding((const int64_t*)ti.data, ti.numel(), tw.data, dtype, num_embeddings, tw.sizes[1], y, tw.sizes[1]),
                ret0);
}

PLLM_EXPORT AOTITorchError aoti_torch_cpu_paged_attention(AtenTensorHandle q, AtenTensorHandle k, AtenTensorHandle v,
                                                          AtenTensorHandle kv, AtenTensorHandle block_table,
                                                          AtenTensorHandle query_start, AtenTensorHandle context_len,
                                                          AtenTensorHandle* sinks, int64_t layer, double scale,
                                                          int64_t sliding_window, double softcap, AtenTensorHandle* ret0) {
  const int32_t f32 = pllm_tensors_dtype_float32(), i32 = pllm_tensors_dtype_int32();
  Tensor tq, tk, tv, pool, table, start, context, ts;
  if (!read(q, "q", 4, f32, &tq) || !read(k, "k", 4, f32, &tk) || !read(v, "v", 4, f32, &tv) ||
      !read_contiguous(kv, "kv", 6, -1, &pool) || !read_contiguous(block_table, "block_table", 2, i32, &table) ||
      !read_contiguous(query_start, "query_start", 1, i32, &start) ||
      !read_contiguous(context_len, "context_len", 1, i32, &context) ||
      !read_optional(sinks, "sinks", tq.sizes[1], &ts))
    return kFailed;
  const int kv_dtype = pool.dtype == pllm_tensors_dtype_int8() ? (int)PLLM_INT8 : stored_dtype(pool, "kv");
  if (kv_dtype < 0) return kFailed;
  const int64_t width = tq.sizes[3] + (kv_dtype == PLLM_INT8 ? (int64_t)sizeof(float) : 0);
  const int64_t heads = tq.sizes[1], tokens = tq.sizes[2], head_dim = tq.sizes[3], kv_heads = pool.sizes[3];
  for (const Tensor* t : {&tk, &tv})
    if (t->sizes[0] != 1 || t->sizes[1] != kv_heads || t->sizes[2] != tokens || t->sizes[3] != head_dim) {
      fail(PLLM_INVALID_ARGUMENT, "%s is [%lld, %lld, %lld, %lld], not [1, %lld, %lld, %lld]", t == &tk ? "k" : "v",
           (long long)t->sizes[0], (long long)t->sizes[1], (long long)t->sizes[2], (long long)t->sizes[3], (long long)kv_heads,
           (long long)tokens, (long long)head_dim);
      return kFailed;
    }
  if (tq.sizes[0] != 1 || pool.sizes[2] != 2 || pool.sizes[5] != width || start.sizes[0] != table.sizes[0] + 1 ||
      context.sizes[0] != table.sizes[0]) {
    fail(PLLM_INVALID_ARGUMENT,
         "shapes differ: %lld batches of q, kv of %lld and %lld elements (for head_dim %lld), %lld query starts, %lld contexts, %lld tables",
         (long long)tq.sizes[0], (long long)pool.sizes[2], (long long)pool.sizes[5], (long long)head_dim,
         (long long)start.sizes[0], (long long)context.sizes[0], (long long)table.sizes[0]);
    return kFailed;
  }
  float* out;
  const int64_t sizes[4] = {1, tokens, heads, head_dim};
  if (make(tq, sizes, 4, ret0, &out)) return kFailed;
  PllmPagedAttention a = {};
  a.q = (const float*)tq.data;
  a.k = (const float*)tk.data;
  a.v = (const float*)tv.data;
  strides_of(tq, a.q_strides);
  strides_of(tk, a.k_strides);
  strides_of(tv, a.v_strides);
  a.kv = pool.data;
  a.block_table = (const int32_t*)table.data;
  a.query_start = (const int32_t*)start.data;
  a.context_len = (const int32_t*)context.data;
  a.sinks = (const float*)ts.data;
  a.out = out;
  a.tokens = tokens;
  a.heads = heads;
  a.kv_heads = kv_heads;
  a.head_dim = head_dim;
  a.sequences = table.sizes[0];
  a.table_width = table.sizes[1];
  a.num_blocks = pool.sizes[0];
  a.num_layers = pool.sizes[1];
  a.block_size = pool.sizes[4];
  a.layer = layer;
  a.sliding_window = sliding_window;
  a.kv_dtype = kv_dtype;
  a.scale = (float)scale;
  a.softcap = (float)softcap;
  return finish(pllm_paged_attention(&a), ret0);
}

}  // extern "C"
