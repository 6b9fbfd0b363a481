"""Capture and replay by torch: CUDA graphs on one stream, their memory from one pool."""

import torch

__all__ = ["TorchGraphs"]


class TorchGraphs:
    """A GraphDevice. From its making on, the calling thread's launches go to a stream of its own: the default stream
    cannot be captured."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))
        torch.cuda.set_stream(self._stream)
        self._pool = torch.cuda.graph_pool_handle()
        self._capturing: torch.cuda.CUDAGraph | None = None

    def begin_capture(self) -> None:
        torch.cuda.synchronize(self._device)
        self._capturing = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile, and must not break the capture.
        self._capturing.capture_begin(pool=self._pool, capture_error_mode="thread_local")

    def end_capture(self) -> torch.cuda.CUDAGraph:
        assert self._capturing is not None, "begin_capture comes first"
        graph, self._capturing = self._capturing, None
        graph.capture_end()
        return graph

    def replay(self, graph: torch.cuda.CUDAGraph) -> None:
        graph.replay()

    def synchronize(self) -> None:
        torch.cuda.synchronize(self._device)
