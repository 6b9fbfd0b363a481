"""pllm: a compiled-graph LLM engine with an ahead-of-time build step.

    from pllm import LLM, SamplingParams

Names are imported on first use, so that ``import pllm`` costs nothing to a process that needs only one of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pllm.runtime.async_llm import AsyncLLM
    from pllm.runtime.llm import LLM
    from pllm.runtime.outputs import CompletionOutput, Logprob, RequestOutput
    from pllm.runtime.sampling_params import SamplingParams
    from pllm.runtime.structured_outputs import StructuredOutputsParams

__version__ = "0.1.0"
__all__ = [
    "LLM",
    "AsyncLLM",
    "CompletionOutput",
    "Logprob",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutputsParams",
    "__version__",
]

_HOMES = {
    "AsyncLLM": "pllm.runtime.async_llm",
    "LLM": "pllm.runtime.llm",
    "CompletionOutput": "pllm.runtime.outputs",
    "Logprob": "pllm.runtime.outputs",
    "RequestOutput": "pllm.runtime.outputs",
    "SamplingParams": "pllm.runtime.sampling_params",
    "StructuredOutputsParams": "pllm.runtime.structured_outputs",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'pllm' has no attribute {name!r}")
    return getattr(import_module(home), name)
