"""Serving on a GPU. Imported only for an artifact whose `requires.device` is "cuda".

    pipelined_runner     what is launched when: the CPU runs one step behind the device
    graphs               one graph a bucket: the order of runs and captures; its device can be a double
    torch_graphs         that device, by torch
    torch_step_device    the static buffers that graphs read and write, and the tokens that stay on the device
    staging              a step's small arrays, which cross in one copy
    program              a compiled program, run by torch's loader

Of these the first two need no torch. Nothing here imports a compiler: not torch._dynamo, not torch._inductor, not
Triton's.
"""
