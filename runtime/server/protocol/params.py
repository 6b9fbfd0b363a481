"""A request's fields as SamplingParams: what it says, over what the model's author says, over neutral defaults."""

from pllm.runtime.errors import RequestError
from pllm.runtime.generation_config import GenerationConfig
from pllm.runtime.sampling_params import SamplingParams
from pllm.runtime.server.protocol.requests import ChatCompletionRequest, CompletionRequest, GenerationRequest

__all__ = ["chat_params", "completion_params"]

_SAME_NAME = (
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "allowed_token_ids",
    "bad_words",
    "stop_token_ids",
    "include_stop_str_in_output",
    "ignore_eos",
    "min_tokens",
    "prompt_logprobs",
    "skip_special_tokens",
    "spaces_between_special_tokens",
)


def chat_params(request: ChatCompletionRequest, generation: GenerationConfig, max_model_len: int) -> SamplingParams:
    """For a chat: without a limit of its own it may use the rest of the context. Raises RequestError naming a field."""
    if request.top_logprobs is not None and not request.logprobs:
        raise RequestError("'top_logprobs' needs 'logprobs' to be true.", param="top_logprobs", code="invalid_value")
    _check_stream(request)
    name = "max_completion_tokens" if request.max_completion_tokens is not None else "max_tokens"
    given = request.max_completion_tokens or request.max_tokens
    limit = _limit(given, name, max_model_len) or generation.defaults.get("max_tokens") or max_model_len
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    return _params(request, generation, limit, logprobs)


def completion_params(request: CompletionRequest, generation: GenerationConfig, max_model_len: int) -> SamplingParams:
    """For a text completion: 16 tokens unless said otherwise. Raises RequestError naming a field."""
    _check_stream(request)
    if request.max_tokens == 0 and not request.echo:
        raise RequestError("'max_tokens' can be 0 only together with 'echo'.", param="max_tokens", code="invalid_value")
    # With max_tokens 0 only the prompt is wanted, with its log-probabilities: one token is made, and not shown.
    limit = _limit(request.max_tokens, "max_tokens", max_model_len)
    if limit is None:
        limit = generation.defaults.get("max_tokens") or 16
    return _params(request, generation, max(limit, 1), request.logprobs)


def _check_stream(request: GenerationRequest) -> None:
    if request.stream_options is not None and not request.stream:
        raise RequestError("'stream_options' needs 'stream' to be true.", param="stream_options", code="invalid_value")
    if request.stream and request.prompt_logprobs is not None:
        message = "'prompt_logprobs' is not available in a stream."
        raise RequestError(message, param="prompt_logprobs", code="invalid_value")


def _limit(given: int | None, name: str, max_model_len: int) -> int | None:
    if given is not None and given > max_model_len:
        raise RequestError(
            f"'{name}' is {given}, but this model's maximum context length is {max_model_len} tokens, prompt included.",
            param=name,
            code="invalid_value",
        )
    return given


def _params(
    request: GenerationRequest, generation: GenerationConfig, max_tokens: int, logprobs: int | None
) -> SamplingParams:
    given = {name: getattr(request, name) for name in _SAME_NAME}
    if request.min_tokens is not None and request.min_tokens > max_tokens:
        raise RequestError(
            f"'min_tokens' is {request.min_tokens}, above the {max_tokens} tokens that the answer may have.",
            param="min_tokens",
            code="invalid_value",
        )
    return generation.sampling_params(
        **given,
        stop=[request.stop] if request.stop and isinstance(request.stop, str) else request.stop or None,
        logit_bias=None if request.logit_bias is None else _token_biases(request.logit_bias),
        max_tokens=max_tokens,
        logprobs=logprobs,
    )


def _token_biases(biases: dict[str, float]) -> dict[int, float]:
    """JSON's keys are strings; ours are token ids."""
    for key in biases:
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            raise RequestError(
                f"Invalid key in 'logit_bias': {key[:64]!r} is no token id.", param="logit_bias", code="invalid_value"
            )
    return {int(key): bias for key, bias in biases.items()}
