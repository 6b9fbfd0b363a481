"""Every error that pllm raises on purpose.

    PllmError                               exit 1   HTTP 500
    ├── UserInputError                      exit 2   HTTP 400   recipe, flags, checkpoint
    │   ├── RecipeError
    │   └── CheckpointError
    ├── BuildError                          exit 1              a model that cannot be traced, a failed compile
    │   └── CertificateError                                    the program does not equal its reference
    ├── ArtifactError                       exit 4
    │   ├── ArtifactDamagedError                                names the file
    │   ├── ArtifactMismatchError                               names the command that mends it
    │   └── DoesNotFitError                                     names the bytes, or the tokens
    ├── MeasurementError                    exit 3              a benchmark whose figures mean nothing
    ├── RequestError                                 HTTP 400   one request is refused, the others go on
    │   └── ContextLengthExceededError
    ├── QueueFullError                               HTTP 429   come back later
    └── EngineDeadError                              HTTP 503   nothing can be served until a restart

A message names the cause and the remedy. The command line prints it without a traceback and exits with `exit_code`;
the server answers with `http_status`.
"""

from pathlib import Path

__all__ = [
    "ArtifactDamagedError",
    "ArtifactError",
    "ArtifactMismatchError",
    "BuildError",
    "CertificateError",
    "CheckpointError",
    "ContextLengthExceededError",
    "DoesNotFitError",
    "EngineDeadError",
    "MeasurementError",
    "PllmError",
    "QueueFullError",
    "RecipeError",
    "RequestError",
    "UserInputError",
]


class PllmError(Exception):
    """The root. `exit_code` is the process's, `http_status` the response's."""

    exit_code: int = 1
    http_status: int = 500

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class UserInputError(PllmError):
    """What the user gave cannot be used: a recipe, a flag, a checkpoint."""

    exit_code = 2
    http_status = 400


class RecipeError(UserInputError):
    """A recipe that cannot be read, or asks for what does not exist."""


class CheckpointError(UserInputError):
    """A checkpoint that is missing, malformed or not safe to open."""


class BuildError(PllmError):
    """A build that began and could not be finished."""


class CertificateError(BuildError):
    """The compiled program's tokens or logits differ from the reference's by more than the stated bound."""


class ArtifactError(PllmError):
    """An artifact that cannot be opened here."""

    exit_code = 4


class ArtifactDamagedError(ArtifactError):
    """A file of the artifact is missing, truncated, extended or altered. `file` is its path as the message gives it."""

    def __init__(self, message: str, file: Path | str | None = None) -> None:
        super().__init__(message)
        self.file = file


class ArtifactMismatchError(ArtifactError):
    """The artifact is whole but was made for another format, torch, instruction set or device."""


class DoesNotFitError(ArtifactError):
    """Memory or context that cannot fit; the message says what is needed, what there is, and the largest that fits.

    Raised while opening an artifact it is a mismatch with this machine (exit 4). A build raises it with `exit_code=2`:
    there the recipe asked for too much.
    """

    def __init__(self, message: str, *, exit_code: int = 4) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class MeasurementError(PllmError):
    """A measurement that is void: requests failed, or ran out of time, so what was measured is not what was meant."""

    exit_code = 3


class RequestError(PllmError):
    """One request is refused. `param` is the field at fault, `code` a stable machine-readable name of the cause."""

    http_status = 400

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ContextLengthExceededError(RequestError):
    """A prompt that leaves no room for even one new token. The sentence is OpenAI's, which clients match on."""

    def __init__(self, max_model_len: int, num_prompt_tokens: int, *, param: str | None = "prompt") -> None:
        super().__init__(
            f"This model's maximum context length is {max_model_len} tokens. "
            f"However, your prompt contains {num_prompt_tokens} input tokens.",
            param=param,
            code="context_length_exceeded",
        )


class QueueFullError(PllmError):
    """As many requests wait as the engine was told to hold."""

    http_status = 429


class EngineDeadError(PllmError):
    """The engine has stopped; its requests are lost."""

    http_status = 503
