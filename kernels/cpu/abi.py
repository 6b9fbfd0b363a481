"""The version of the operator library's C interface: ``PLLM_ABI_VERSION`` of api.h."""

from typing import Final

__all__ = ["ABI_VERSION"]

ABI_VERSION: Final = 7
