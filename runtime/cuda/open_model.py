"""Opening an artifact for a GPU: weights, programs, the pool that fits now, and the graphs of all buckets.

Nothing is compiled: programs hold their kernels as the GPU's own code. What the artifact's plan counted on may not be
free here: the pool is solved for anew, tried out, and shrunk where somebody else holds memory.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from pllm.runtime.artifact import Artifact
from pllm.runtime.cuda.accelerator import open_accelerator
from pllm.runtime.cuda.device_plan import DeviceFullError, NoPoolError, fit_pool
from pllm.runtime.cuda.graphs import CaptureTime
from pllm.runtime.cuda.pipelined_runner import PipelinedRunner
from pllm.runtime.cuda.served_model import ServedModel, ServedSpec, buckets_for
from pllm.runtime.errors import DoesNotFitError
from pllm.runtime.machine import Machine
from pllm.runtime.manifest import tuning_notice
from pllm.runtime.memory import MemoryLedger, MemoryPlan
from pllm.runtime.scheduler_config import SchedulerConfig

__all__ = ["open_model"]


def open_model(
    opened: Artifact,
    *,
    solve: Callable[[MemoryLedger, int], MemoryPlan],
    terms: Callable[[], dict[str, Any]],
    config_of: Callable[[MemoryPlan], SchedulerConfig],
    told: Callable[[str], None],
    resources: ExitStack,
) -> tuple[MemoryPlan, PipelinedRunner, tuple[str, ...]]:
    """The plan, what runs steps, and notices. ``told`` hears of each part as it is open, of every bucket's graph too.

    Raises DoesNotFitError where not one sequence fits, before anything is loaded if that can be known then.
    """
    manifest = opened.manifest
    accelerator = open_accelerator()
    told("torch")
    first = solve(manifest.memory, accelerator.free() + accelerator.held())

    def captured(time: CaptureTime) -> None:
        told(f"graph of {time.bucket}")

    spec = ServedSpec(
        directory=opened.directory,
        programs=manifest.programs,
        weights=manifest.weights.files,
        kv=manifest.kv,
        buckets=buckets_for(manifest.engine.buckets, first.max_num_seqs),
        config=config_of(first),
    )
    model = ServedModel(spec, accelerator, captured=captured)
    resources.callback(model.close)
    try:
        model.load_weights()
        told("weights and programs")
        plan = fit_pool(model, manifest.memory, **terms())
    except (DeviceFullError, NoPoolError) as error:
        raise DoesNotFitError(f"{error}: end what else uses the GPU (nvidia-smi names it), or lower memory") from error
    told("KV pool")
    notice = tuning_notice(manifest, Machine.this("cuda"))
    return plan, model.runner(), () if notice is None else (notice,)
