// The operators over rows, as AOTInductor's programs call them.
#include "api.h"
#include "tensor.h"

namespace {

bool read_rows(AtenTensorHandle handle, const char* name, Tensor* t, int64_t* rows, int64_t* row_stride) {
  return read(handle, name, -1, pllm_tensors_dtype_float32(), t) && collapse(*t, rows, row_stride);
}

// A norm of x, or of x + residual with the sum as the second result.
AOTITorchError norm(AtenTensorHandle x, AtenTensorHandle residual, AtenTensorHandle weight, double eps, double weight_offset,
                    AtenTensorHandle* out, AtenTensorHandle* total) {
  Tensor tx, tr, tw;
  PllmRmsNorm a = {};
  if (!read_rows(x, "x", &tx, &a.rows, &a.x_stride)) return kFailed;
  a.n = tx.sizes[tx.dim - 1];
  if (!read_contiguous(weight, "weight", 1, pllm_tensors_dtype_float32(), &tw)) return kFailed;
  if (tw.sizes[0] != a.n) {
    fail(PLLM_INVALID_ARGUMENT, "a norm's weight has %lld elements, its rows %lld", (long long)tw.sizes[0], (long long)a.n);
    return kFailed;
  }
  if (residual) {
    int64_t rows;
    if (!read_rows(residual, "residual", &tr, &rows, &a.residual_stride)) return kFailed;
    if (rows != a.rows || tr.sizes[tr.dim - 1] != a.n) {
      fail(PLLM_INVALID_ARGUMENT, "a residual of %lld rows for %lld", (long long)rows, (long long)a.rows);
      return kFailed;
    }
    a.residual = (const float*)tr.data;
  }
  a.x = (const float*)tx.data, a.weight = (const float*)tw.data;
  a.eps = (float)eps, a.weight_offset = (float)weight_offset;
  if (make(tx, tx.sizes, tx.dim, out, &a.out)) return kFailed;
  if (total && make(tx, tx.sizes, tx.dim, total, &a.total)) return finish(PLLM_OUT_OF_MEMORY, out);
  const int code = pllm_rms_normalize(&a);
  if (code && total) finish(code, total);
  return finish(code, out);
}

// [tokens, heads, head_dim], heads contiguous.
bool read_heads(AtenTensorHandle handle, const char* name, AtenTensorHandle* weight, int64_t tokens, int64_t head_dim, Tensor* t,
                PllmHeads* heads) {
  Tensor tw;
  if (!read(handle, name, 3, pllm_tensors_dtype_float32(), t) || !read_optional(weight, "weight", t->sizes[2], &tw)) return false;
  if (!t->contiguous(1) || (tokens >= 0 && (t->sizes[0] != tokens || t->sizes[2] != head_dim))) {
    fail(PLLM_INVALID_ARGUMENT, "%s is [%lld, %lld, %lld], its last stride %lld", name, (long long)t->sizes[0],
         (long long)t->sizes[1], (long long)t->sizes[2], (long long)t->strides[2]);
    return false;
  }
  heads->x = (const float*)t->data, heads->weight = (const float*)tw.data;
  heads->heads = t->sizes[1], heads->token_stride = t->strides[0], heads->head_stride = t->strides[1];
  return true;
}

bool read_angles(AtenTensorHandle* handle, const char* name, int64_t tokens, const float** data, int64_t* half, int64_t* stride) {
  if (!handle || !*handle) return true;
  Tensor t;
  if (!read(*handle, name, 2, pllm_tensors_dtype_float32(), &t)) return false;
  if (t.sizes[0] != tokens || !t.contiguous(1)) {
    fail(PLLM_INVALID_ARGUMENT, "%s has %lld rows for %lld tokens", name, (long long)t.sizes[0], (long long)tokens);
    return false;
  }
  *data = (const float*)t.data, *half = t.sizes[1], *stride = t.strides[0];
  return true;
}

}  // namespace

extern "C" {

PLLM_EXPORT AOTITorchError aoti_torch_cpu_rms_normalize(AtenTensorHandle x, AtenTensorHandle weight, double eps,
                                                        double weight_offset, AtenTensorHandle* ret0) {
  return norm(x, nullptr, weight, eps, weight_offset, ret0, nullptr);
}

PLLM_EXPORT AOTITorchError aoti_torch_cpu_add_rms_norm(AtenTensorHandle x, AtenTensorHandle residual, AtenTensorHandle weight,
                                                       double eps, double weight_offset, AtenTensorHandle* ret0,
                                                       AtenTensorHandle* ret1) {
  return norm(x, residual, weight, eps, weight_offset, ret0, ret1);
}

PLLM_EXPORT AOTITorchError aoti_torch_cpu_silu_mul(AtenTensorHandle gate_up, AtenTensorHandle* ret0) {
  Tensor t;
  int64_t rows, row_stride;
  float* out;
  if (!read_rows(gate_up, "gate_up", &t, &rows, &row_stride)) return kFailed;
  const int64_t n = t.sizes[t.dim - 1] / 2;
  if (t.sizes[t.dim - 1] != 2 * n) {
    fail(PLLM_INVALID_ARGUMENT, "gate and up have %lld elements together", (long long)t.sizes[t.dim - 1]);
    return kFailed;
  }
  int64_t sizes[kMaxDim];
  memcpy(sizes, t.sizes, (size_t)t.dim * sizeof *sizes);
  sizes[t.dim - 1] = n;
  if (make(t, sizes, t.dim, ret0, &out)) return kFailed;
  return finish(pllm_silu_mul((const float*)t.data, rows, row_stride, n, out), ret0);
}

PLLM_EXPORT AOTITorchError aoti_torch_cpu_norm_rope(AtenTensorHandle q, AtenTensorHandle k, AtenTensorHandle* cos,
                                                    AtenTensorHandle* sin, AtenTensorHandle* q_weight,
                                                    AtenTensorHandle* k_weight, double eps, double weight_offset,
                                                    AtenTensorHandle* ret0, AtenTensorHandle* ret1) {
  PllmNormRope a = {};
  Tensor tq, tk;
  if (!read_heads(q, "q", q_weight, -1, -1, &tq, &a.q)) return kFailed;
  a.tokens = tq.sizes[0], a.head_dim = tq.sizes[2];
  int64_t sin_half = 0;
  if (!read_heads(k, "k", k_weight, a.tokens, a.head_dim, &tk, &a.k) ||
      !read_angles(cos, "cos", a.tokens, &a.cos, &a.half, &a.cos_stride) ||
      !read_angles(sin, "sin", a.tokens, &a.sin, &sin_half, &a.sin_stride))
    return kFailed;
  if (a.half != sin_half) {
    fail(PLLM_INVALID_ARGUMENT, "%lld cosines for %lld sines", (long long)a.half, (long long)sin_half);
    return kFailed;
  }
  a.eps = (float)eps, a.weight_offset = (float)weight_offset;
  if (make(tq, tq.sizes, 3, ret0, &a.q.out)) return kFailed;
  if (make(tk, tk.sizes, 3, ret1, &a.k.out)) return finish(PLLM_OUT_OF_MEMORY, ret0);
  const int code = pllm_norm_rope(&a);
  if (code) finish(code, ret1);
  return finish(code, ret0);
}

}  // extern "C"
