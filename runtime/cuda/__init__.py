"""Serving on a GPU. Imported only for an artifact whose `requires.device` is "cuda".

    pipelined_runner    what is launched when: the CPU runs one step behind the device
    graphs              capture and replay, behind an interface that a double can stand in for
    decode_step         the static buffers that the captured graphs read and write
    program             a compiled program, run by torch's loader

The last two import torch; nothing here imports a compiler: not torch._dynamo, not torch._inductor, not Triton's.
"""
