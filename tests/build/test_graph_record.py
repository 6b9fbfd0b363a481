"""The record of a graph: every call is counted, and nothing that is merely declared."""

import operator

import torch
from torch.fx import Graph

from pllm.build.graph_record import record
from pllm.runtime.graphs import FUSED

WRAPPER = """
extern "C" AOTITorchError aoti_torch_cpu_packed_linear(AtenTensorHandle x, AtenTensorHandle* ret0);
extern "C"  void  cpp_fused_add_mul_0(const float* in_ptr0,
    // Topologically sorted: cpp_fused_add_mul_0(x)
    cpp_fused_add_mul_0((const float*)(arg0.data_ptr()), s0);
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_packed_linear(buf3, weight, nullptr, 640L, &buf5_handle));
    cpp_fused_silu_1((float*)(buf5.data_ptr()));
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_packed_linear(buf5, weight, nullptr, 640L, &buf6_handle));
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_delete_tensor_object(buf5));
    int32_t device = aoti_torch_device_type_cpu();
""".splitlines()


def test_it_counts_what_is_called() -> None:
    graph = Graph()
    x = graph.placeholder("x")
    added = graph.call_function(torch.ops.aten.add.Tensor, (x, x))
    again = graph.call_function(torch.ops.aten.add.Tensor, (added, x))
    graph.output(graph.call_function(operator.getitem, (again, 0)))
    found = record(graph, WRAPPER)
    assert found.nodes == {"aten.add.Tensor": 2, "getitem": 1}
    assert found.kernels == {FUSED: 2, "packed_linear": 2}
