"""Rows of results: JSON, a line each, appended one by one, so that what was measured is kept whatever comes."""

import datetime
import json
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

__all__ = ["Deadline", "Rows"]


class Rows:
    """Every row has the part, the date, the device and the versions that it was measured with."""

    def __init__(self, path: Path, part: str, device: str) -> None:
        self._path = path
        self._common = {
            "part": part, "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"), "gpu": device,
            "python": platform.python_version(), "torch": torch.__version__,
            "triton": _version("triton"), "transformers": _version("transformers"),
        }  # fmt: skip
        self.rows: list[dict[str, Any]] = []
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, what: str, **values: Any) -> None:
        row = {**self._common, "what": what, **values}
        self.rows.append(row)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        shown = ", ".join(f"{name} {_short(value)}" for name, value in values.items())
        print(f"{what:34} {shown}", flush=True)


class Deadline:
    """When a part must be done."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self._end - time.monotonic()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
