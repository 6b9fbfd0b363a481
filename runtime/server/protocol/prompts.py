"""The four forms of a completion's prompt, as a list of texts and token id lists."""

from pllm.runtime.errors import RequestError
from pllm.runtime.server.protocol.requests import CompletionRequest

__all__ = ["prompts_of"]


def prompts_of(request: CompletionRequest) -> list[str | list[int]]:
    """A text, token ids, texts, or lists of token ids. Raises RequestError for a mixture."""
    prompt = request.prompt
    if isinstance(prompt, str):
        return [prompt]
    token_ids = [item for item in prompt if isinstance(item, int)]
    if len(token_ids) == len(prompt):
        return [token_ids]
    if token_ids:
        raise RequestError(
            "Invalid value for 'prompt': a list of token ids cannot hold texts or lists beside them.",
            param="prompt",
            code="invalid_value",
        )
    return [item for item in prompt if not isinstance(item, int)]
