"""The Hugging Face Hub: one model's files, downloaded into the Hub's own cache.

Downloads resume where they broke off and show huggingface_hub's progress bars; ``HF_TOKEN`` and ``HF_HUB_OFFLINE`` mean
what they mean there. Only JSON, templates and safetensors are asked for, so that a pickle is not even fetched.
"""

import json
import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from pllm.runtime.errors import CheckpointError

__all__ = ["BeforeWeights", "download", "is_hub_id"]

BeforeWeights = Callable[[Mapping[str, Any], int], None]
"""Called with the model's configuration and the bytes of its weights before those are downloaded; may raise."""

_WEIGHTS = ("model.safetensors", "model-*.safetensors")
_WANTED = ("*.json", "*.jinja")
_UNWANTED = ("*/*",)
"""Folders of a repository hold other formats of the same weights."""


def is_hub_id(source: str) -> bool:
    """Whether it could be one: ``ORG/NAME`` or ``NAME``."""
    return re.fullmatch(r"(?:\w[\w.-]*/)?\w[\w.-]*", source) is not None


def download(source: str, revision: str, before_weights: BeforeWeights) -> Path:
    """The snapshot directory of a Hub id (``ORG/NAME`` or ``NAME``) at a branch, tag or commit.

    The small files come first, so that ``before_weights`` can refuse a model before gigabytes are on their way.
    Raises CheckpointError that tells an unknown model from a closed one, and both from no network.
    """
    if not is_hub_id(source):
        raise CheckpointError(f"{source!r} is neither a directory nor a Hub id such as Qwen/Qwen3-0.6B")
    try:
        # Slow to import, and of use to nobody who builds from a directory. httpx is what huggingface_hub speaks with.
        import httpx  # noqa: PLC0415
        from huggingface_hub import HfApi, snapshot_download  # noqa: PLC0415
        from huggingface_hub import errors as hub_errors  # noqa: PLC0415
    except ImportError:
        raise CheckpointError(
            f"{source} is no directory, and huggingface_hub, which would download it, is not installed: "
            f"pip install 'pllm[build]'"
        ) from None
    try:
        unwanted = list(_UNWANTED)
        snapshot = Path(
            snapshot_download(source, revision=revision, allow_patterns=list(_WANTED), ignore_patterns=unwanted)
        )
        if not any(next(snapshot.glob(pattern), None) for pattern in _WEIGHTS):
            listed = HfApi().model_info(source, revision=snapshot.name, files_metadata=True).siblings or []
            size = sum(file.size or 0 for file in listed if any(fnmatch(file.rfilename, each) for each in _WEIGHTS))
            before_weights(_configuration(snapshot), size)
        # The commit that the small files are of, even if the branch has moved on meanwhile.
        wanted = [*_WANTED, *_WEIGHTS]
        return Path(snapshot_download(source, revision=snapshot.name, allow_patterns=wanted, ignore_patterns=unwanted))
    except hub_errors.GatedRepoError:
        reason = "its owner grants access one by one: ask for it on the model's page, and set HF_TOKEN"
    except hub_errors.RepositoryNotFoundError:
        reason = "the Hub knows no such model, or it is private: check the id, and set HF_TOKEN"
    except hub_errors.RevisionNotFoundError:
        reason = f"the Hub's model has no revision {revision!r}: check model.revision"
    except hub_errors.LocalEntryNotFoundError:
        reason = "it is not in the Hub's cache, and the Hub cannot be reached (or HF_HUB_OFFLINE is set)"
    except (hub_errors.HfHubHTTPError, hub_errors.HFValidationError, httpx.HTTPError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    except OSError as error:
        reason = error.strerror or str(error)
    raise CheckpointError(f"{source} is no directory here, and as a Hub id it cannot be downloaded: {reason}")


def _configuration(snapshot: Path) -> Mapping[str, Any]:
    """``config.json``, or nothing where there is none to be read: opening the checkpoint will say so."""
    try:
        config = json.loads((snapshot / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}
