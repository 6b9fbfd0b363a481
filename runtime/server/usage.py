"""How many tokens a request has read and made."""

from pllm.runtime.request_text import RequestText
from pllm.runtime.server.protocol.answers import CompletionTokensDetails, PromptTokensDetails, Usage

__all__ = ["usage_of"]


def usage_of(texts: list[RequestText], *, hidden: int = 0, reasoning: int = 0) -> Usage:
    """The tokens of one API call so far. ``hidden``: generated tokens that are not part of its answer; ``reasoning``:
    those that are thoughts."""
    prompt = sum(len(text.request.prompt_token_ids) for text in texts)
    completion = sum(text.num_output_tokens for text in texts) - hidden
    cached = sum(text.num_cached_tokens or 0 for text in texts)
    details = PromptTokensDetails(cached), CompletionTokensDetails(reasoning)
    return Usage(prompt, completion, prompt + completion, *details)
