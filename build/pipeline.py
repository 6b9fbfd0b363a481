"""The pipeline: a recipe's way to an artifact, as a list of stages.

Each stage is a function of the :class:`Build`, in a module of its own that is imported when its turn comes: a recipe
that is refused, and an artifact that is still fresh, cost no import of torch.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pllm
from pllm.build.checkpoint import Checkpoint
from pllm.build.pack import Staging, build_lock, stage
from pllm.build.progress import Progress, StageProgress
from pllm.build.recipe import Recipe
from pllm.build.resolve import ModelFacts, free_memory, kv_info, refuse_download, refuse_what_cannot_fit, resolve
from pllm.build.sources import builder_fingerprint
from pllm.runtime.artifact import Artifact
from pllm.runtime.errors import ArtifactError, UserInputError
from pllm.runtime.machine import Machine, available_memory
from pllm.runtime.manifest import (
    FORMAT_VERSION,
    CertificateSummary,
    EngineDefaults,
    FileEntry,
    GrammarsInfo,
    KvInfo,
    Manifest,
    ModelInfo,
    ProgramInfo,
    Provenance,
    Requires,
    WeightsInfo,
    mismatch,
)
from pllm.runtime.memory import MemoryLedger

if TYPE_CHECKING:
    from pllm.build.model_source import ModelWeights
    from pllm.kernels.cuda.configurations import Configurations
    from pllm.runtime.manifest import KernelChoice

__all__ = ["CUDA_STAGES", "STAGES", "Build", "Stage", "StageFunction", "build_artifact", "provenance"]


@dataclass(kw_only=True)
class Build:
    """What is known so far. Each stage reads what earlier ones left, and leaves its own."""

    recipe: Recipe
    """Resolved: nothing in it is "auto" that the build decides."""
    checkpoint: Checkpoint
    facts: ModelFacts
    kv: KvInfo
    staging: Staging
    tokenizer: tuple[str, ...] = field(init=False)
    """tokenizer: its files"""
    exported: Any = field(init=False)
    """export, passes: the traced graph, of the type that those stages agree on."""
    model_weights: "ModelWeights" = field(init=False)
    """export"""
    model: ModelInfo = field(init=False)
    """export"""
    grammars: GrammarsInfo | None = None
    """grammars; None where the recipe names none"""
    configurations: "Configurations" = field(init=False)
    """tune, for CUDA: those of its kernels"""
    choices: "tuple[KernelChoice, ...]" = field(init=False)
    """tune, for CUDA: the same as the manifest says it"""
    requires: Requires = field(init=False)
    """compile"""
    operators: tuple[str, ...] = field(init=False)
    """compile"""
    programs: tuple[ProgramInfo, ...] = field(init=False)
    """compile"""
    weights: WeightsInfo = field(init=False)
    """quantize"""
    memory: MemoryLedger = field(init=False)
    """profile"""
    engine: EngineDefaults = field(init=False)
    """profile"""
    certificate: CertificateSummary = field(init=False)
    """certify"""


StageFunction = Callable[[Build, StageProgress], None]


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage by its name and the place of its function."""

    name: str
    place: str

    def function(self) -> StageFunction:
        module, _, name = self.place.partition(":")
        function: StageFunction = getattr(import_module(module), name)
        return function


STAGES = (
    Stage("tokenizer", "pllm.build.tokenizer:save_tokenizer"),
    Stage("export", "pllm.build.export:export"),
    Stage("grammars", "pllm.build.grammars:ship_grammars"),
    Stage("passes", "pllm.build.passes:run_passes"),
    Stage("quantize", "pllm.build.quantize:quantize"),
    Stage("compile", "pllm.build.compile:compile_programs"),
    Stage("profile", "pllm.build.profile:profile"),
    Stage("certify", "pllm.build.certify:certify"),
)
"""Between loading, which decides what is to be built, and packing, which makes it an artifact. For a CPU."""

CUDA_STAGES = (
    *STAGES[:2],
    Stage("passes", "pllm.build.cuda_programs:rewrite_programs"),
    Stage("tune", "pllm.build.tune:tune"),
    Stage("quantize", "pllm.build.cuda_programs:write_weights"),
    Stage("compile", "pllm.build.compile_cuda:compile_cuda_programs"),
    Stage("profile", "pllm.build.profile_cuda:profile_cuda"),
    Stage("certify", "pllm.build.certify_cuda:certify_cuda"),
)
"""For a GPU, on a machine that has it."""


def build_artifact(
    recipe: Recipe, target: Path, progress: Progress, *, force: bool = False, stages: Sequence[Stage] = STAGES
) -> Manifest:
    """Build ``recipe`` into the folder ``target`` and return the manifest; with an artifact there that building again
    would not change, do nothing, unless ``force``.

    Raises UserInputError and DoesNotFitError (exit 2) for what the user can mend, BuildError otherwise.
    """
    with progress.stage("load", live=False) as load:
        free, asked = available_memory(), recipe
        checkpoint = Checkpoint.open(recipe, lambda config, size: refuse_download(asked, config, size, free))
        recipe = resolve(recipe, checkpoint, load.say)
        refuse_what_cannot_fit(recipe, checkpoint, free_memory(recipe, free), load.say)
        origin = provenance(recipe, checkpoint)
    with build_lock(target, lambda: progress.console.print(f"another build of {target} runs: waiting for it")):
        present = None if force else _fresh(target, origin)
        if present is not None:
            progress.finish(f"{target} is up to date")
            return present
        with stage(target) as staging:
            facts = ModelFacts.of(checkpoint.config, checkpoint.label)
            build = Build(recipe=recipe, checkpoint=checkpoint, facts=facts, kv=kv_info(recipe, facts), staging=staging)
            for part in CUDA_STAGES if recipe.device.kind == "cuda" and stages is STAGES else stages:
                with progress.stage(part.name) as running:
                    part.function()(build, running)
            with progress.stage("pack") as running:
                manifest = _pack(build, origin)
                running.say(
                    f"{len(manifest.files)} files, {sum(entry.size for entry in manifest.files.values()):,} bytes"
                )
    progress.finish(f"{target} is built")
    return manifest


def provenance(recipe: Recipe, checkpoint: Checkpoint) -> Provenance:
    """What an artifact of this resolved recipe and checkpoint, built by this pllm, says it was made from.

    Raises UserInputError where transformers or torch is not installed.
    """
    try:
        transformers, torch = metadata.version("transformers"), metadata.version("torch")
    except metadata.PackageNotFoundError as error:
        raise UserInputError(f"pllm build needs {error.name}: pip install 'pllm[build]'") from None
    return Provenance(
        recipe=recipe.origin,
        recipe_sha256=recipe.fingerprint,
        checkpoint=Path(checkpoint.label).name if Path(checkpoint.label).is_absolute() else checkpoint.label,
        revision=checkpoint.revision,
        checkpoint_sha256=checkpoint.fingerprint(),
        pllm=pllm.__version__,
        builder_sha256=builder_fingerprint(),
        transformers=transformers,
        torch=torch.split("+")[0],
    )


def _fresh(target: Path, origin: Provenance) -> Manifest | None:
    """The manifest of the artifact at ``target``, if it was made from the same things and would run here."""
    try:
        manifest = Artifact.read(target).manifest
    except ArtifactError:
        return None
    same_source = {**_terms(manifest.provenance), "recipe": ""} == {**_terms(origin), "recipe": ""}
    return manifest if same_source and mismatch(manifest, Machine.this(manifest.requires.device)) is None else None


def _terms(origin: Provenance) -> dict[str, Any]:
    return {name: getattr(origin, name) for name in origin.__struct_fields__}


def _pack(build: Build, origin: Provenance) -> Manifest:
    """Add what is taken over as it is, then seal."""
    staging = build.staging
    text = json.dumps(build.checkpoint.generation_config, indent=2, sort_keys=True) + "\n"
    staging.path("generation.json").write_text(text, encoding="utf-8")
    staging.path("recipe.lock.toml").write_text(build.recipe.lock_text(), encoding="utf-8")

    def describe(files: dict[str, FileEntry]) -> Manifest:
        return Manifest(
            format_version=FORMAT_VERSION,
            name=build.recipe.name,
            provenance=origin,
            requires=build.requires,
            model=build.model,
            operators=build.operators,
            programs=build.programs,
            weights=build.weights,
            kv=build.kv,
            memory=build.memory,
            engine=build.engine,
            tokenizer=build.tokenizer,
            generation="generation.json",
            golden="golden.json",
            latency="measured/latency.json",
            certificate=build.certificate,
            grammars=build.grammars,
            files=files,
        )

    return staging.seal(describe)
