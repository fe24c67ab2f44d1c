"""Reads a Hugging Face checkpoint folder as a workload with synthetic inputs.

A checkpoint comes without labeled data: all samples are synthetic inputs, made from the
configuration with fixed seeds. Artifacts are scored by their agreement with the network on them;
no accuracy is measured. Nothing is downloaded and no code of the checkpoint's own is run.
"""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import random
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgebuild.vocabulary.errors import InvalidWorkload, MissingPackage, did_you_mean, first_line
from edgebuild.vocabulary.workload import Workload

if TYPE_CHECKING:
    import torch

    Tensors = tuple[torch.Tensor, ...]

# What each kind of network is fed, by the name of its first input; the rest where it takes them.
INPUTS = {
    "input_ids": ("input_ids", "attention_mask", "token_type_ids"),
    "pixel_values": ("pixel_values",),
}
DATA_NOTICE = "synthetic inputs made from the checkpoint's configuration; no accuracy was measured"
GENERATIVE_ENDINGS = ("ForCausalLM", "LMHeadModel")
LONGEST_SEQUENCE = 128
USUAL_IMAGE = (224, 224)
SAMPLES = 32
EXAMPLE_SEED = 0
CALIBRATION_SEEDS = range(1_000, 1_000 + SAMPLES)
VALIDATION_SEEDS = range(2_000, 2_000 + SAMPLES)
TEST_SEEDS = range(3_000, 3_000 + SAMPLES)


def load_checkpoint(folder: Path, task: str | None = None) -> Workload:
    """The encoder or vision network in a folder with config.json and *.safetensors.

    Calibration, validation and test are disjoint synthetic inputs without labels, and there is no
    score: what the build reports is agreement with the network, not accuracy.

    Args:
        folder: the checkpoint; tokenizer and preprocessor files are not needed.
        task: such as "text-classification"; by default what the architecture was made for.

    Raises:
        InvalidWorkload: a folder that is not a whole checkpoint of a network that can be built.
        MissingPackage: transformers or optimum is not installed.
    """
    settings = _read_settings(folder)
    with _quiet():
        _require_packages(folder)
        architecture = _find_architecture(folder, settings)
        _require_float_weights(folder, settings)
        config = _load_config(folder)
        task = _find_task(folder, architecture, task)
        model, missing = _load_model(folder, config, task)
        exporter_config = _exporter_config(folder, config, model, task)
        dummies = _DummyInputs(exporter_config, _sizes(folder, config))
        outputs = _run_once(folder, model, dummies)
        _refuse_random_weights(folder, missing, outputs)
    return Workload(
        name=folder.resolve().name,
        network=_wrap(model, dummies.names, outputs),
        example=dummies.make(EXAMPLE_SEED),
        calibration=SyntheticSplit(dummies, CALIBRATION_SEEDS),
        validation=SyntheticSplit(dummies, VALIDATION_SEEDS),
        test=SyntheticSplit(dummies, TEST_SEEDS),
        notices=_notices(folder),
        is_synthetic=True,
    )


@dataclass(frozen=True)
class SyntheticSplit:
    """Unlabeled samples by number, each made when it is asked for, always the same."""

    dummies: _DummyInputs
    seeds: Sequence[int]

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, index: int, /) -> tuple[Tensors, None]:
        return self.dummies.make(self.seeds[index]), None


@dataclass(frozen=True)
class _DummyInputs:
    """Makes the inputs of one call from a seed."""

    exporter_config: Any
    sizes: Mapping[str, int]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.exporter_config.inputs)

    def make(self, seed: int) -> Tensors:
        import torch

        # optimum draws from both global generators: seed them, and leave no trace of it.
        state = random.getstate()
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                random.seed(seed)
                made = self.exporter_config.generate_dummy_inputs(batch_size=1, **self.sizes)
        finally:
            random.setstate(state)
        return tuple(made[name] for name in self.names)


@contextmanager
def _quiet() -> Iterator[None]:
    """Holds back progress bars and warnings: what matters is raised as an error here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Those of transformers would stand between ours."""
    bars: Any = importlib.import_module("transformers.utils.logging")
    was_enabled = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            bars.enable_progress_bar()


def _read_settings(folder: Path) -> Mapping[str, Any]:
    if not folder.is_dir():
        raise InvalidWorkload(f"{folder} is not a folder: give one with config.json and weights")
    file = folder / "config.json"
    if not file.is_file():
        raise InvalidWorkload(f"{folder} has no config.json: it is not a Hugging Face checkpoint")
    return _read_json(file)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise InvalidWorkload(f"{file} cannot be read: {first_line(problem)}") from problem
    if not isinstance(settings, dict):
        raise InvalidWorkload(f"{file} holds a {type(settings).__name__}, not an object")
    return settings


def _require_packages(folder: Path) -> None:
    try:
        importlib.import_module("transformers")
        importlib.import_module("optimum.exporters.tasks")
    except ImportError as problem:
        raise MissingPackage(
            f"{folder} is a Hugging Face checkpoint, which needs the extra packages: "
            "pip install 'edgebuild[hf]'"
        ) from problem


def _find_architecture(folder: Path, settings: Mapping[str, Any]) -> Any:
    """The class that the checkpoint was saved from, or None where it names none."""
    import transformers

    names = settings.get("architectures") or []
    if not names:
        return None
    name = str(names[0])
    architecture: Any = getattr(transformers, name, None)
    is_known = hasattr(architecture, "can_generate")
    if name.endswith(GENERATIVE_ENDINGS) or (is_known and architecture.can_generate()):
        raise InvalidWorkload(
            f"{folder}: {name} is a generative model, which `edgebuild build` does not take: "
            "give an encoder or a vision checkpoint, or see `edgebuild plan` and `convert`"
        )
    if not is_known:
        raise InvalidWorkload(
            f"{folder}: unknown architecture {name!r} (model type {settings.get('model_type')!r}): "
            f"transformers {transformers.__version__} does not have it"
        )
    return architecture


def _require_float_weights(folder: Path, settings: Mapping[str, Any]) -> None:
    if "quantization_config" in settings:
        raise InvalidWorkload(
            f"{folder} is already quantized: give the float checkpoint that it was made from"
        )
    if not any(folder.glob("*.safetensors")):
        raise InvalidWorkload(f"{folder} has no weights: *.safetensors is missing")


# The calls below hand a user's files to another library, which raises whatever it likes about
# them: hence `except Exception`, always with the cause kept.


def _load_config(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as problem:
        raise InvalidWorkload(
            f"{folder / 'config.json'} cannot be used: {first_line(problem)}"
        ) from problem
    config.use_cache = False
    config.output_hidden_states = False
    config.output_attentions = False
    return config


def _find_task(folder: Path, architecture: Any, task: str | None) -> str:
    from optimum.exporters.tasks import TasksManager

    known = sorted(TasksManager.get_all_tasks())
    if task is not None:
        plain = str(TasksManager.map_from_synonym(task))
        if plain not in known:
            hint = did_you_mean(task, known) or f" Known are {', '.join(known)}."
            raise InvalidWorkload(f"unknown task {task!r}.{hint}")
        return plain
    if architecture is None:
        raise InvalidWorkload(f"{folder / 'config.json'} names no architecture: give the task")
    try:
        return str(TasksManager.infer_task_from_model(architecture))
    except ValueError as problem:
        raise InvalidWorkload(
            f"{folder}: no task is known for the architecture {architecture.__name__}: "
            f"give one of {', '.join(known)}"
        ) from problem


def _load_model(folder: Path, config: Any, task: str) -> tuple[Any, list[str]]:
    """The network in eval mode, and the names of the weights that the files lack."""
    import torch
    from optimum.exporters.tasks import TasksManager

    try:
        loader = TasksManager.get_model_class_for_task(
            task, "pt", model_type=config.model_type, library="transformers"
        )
        with without_progress_bars():
            model, report = loader.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                attn_implementation="eager",
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
    except Exception as problem:
        raise InvalidWorkload(
            f"{folder} cannot be loaded for {task}: {first_line(problem)}"
        ) from problem
    return model.eval(), sorted(report["missing_keys"])


def _exporter_config(folder: Path, config: Any, model: Any, task: str) -> Any:
    """What optimum needs to make inputs, and to say which outputs the task has."""
    from optimum.exporters.base import ExporterConfig
    from optimum.utils import (
        DummyTextInputGenerator,
        DummyVisionInputGenerator,
        NormalizedTextConfig,
        NormalizedVisionConfig,
    )

    accepted = inspect.signature(model.forward).parameters
    first = model.main_input_name
    if first not in INPUTS or len(INPUTS.keys() & accepted.keys()) > 1:
        raise InvalidWorkload(
            f"{folder}: {type(model).__name__} takes {', '.join(_leading_inputs(accepted))}: "
            "only networks of text alone or of images alone can be fed"
        )
    has_one_segment = getattr(config, "type_vocab_size", 0) < 2
    names = [
        name
        for name in INPUTS[first]
        if name in accepted and not (name == "token_type_ids" and has_one_segment)
    ]
    is_text = first == "input_ids"

    class CheckpointExporterConfig(ExporterConfig):  # type: ignore[misc]
        NORMALIZED_CONFIG_CLASS = NormalizedTextConfig if is_text else NormalizedVisionConfig
        DUMMY_INPUT_GENERATOR_CLASSES = (
            DummyTextInputGenerator if is_text else DummyVisionInputGenerator,
        )

        @property
        def inputs(self) -> dict[str, dict[int, str]]:
            return {name: {} for name in names}

    return CheckpointExporterConfig(config, task)


def _leading_inputs(accepted: Mapping[str, Any]) -> list[str]:
    kinds = ("input_ids", "pixel_values", "input_values", "input_features", "bbox")
    return [name for name in accepted if name in kinds] or list(accepted)[:1]


def _sizes(folder: Path, config: Any) -> dict[str, int]:
    """How long a text is, and how large an image that the configuration gives no size for."""
    longest = getattr(config, "max_position_embeddings", None) or LONGEST_SEQUENCE
    height, width = _preprocessed_size(folder / "preprocessor_config.json")
    return {
        "sequence_length": min(LONGEST_SEQUENCE, longest),
        "height": height,
        "width": width,
    }


def _preprocessed_size(file: Path) -> tuple[int, int]:
    settings = _read_json(file) if file.is_file() else {}
    size = settings.get("crop_size") or settings.get("size") or {}
    if isinstance(size, int):
        return size, size
    if isinstance(size, dict) and {"height", "width"} <= size.keys():
        return int(size["height"]), int(size["width"])
    if isinstance(size, dict) and "shortest_edge" in size:
        return int(size["shortest_edge"]), int(size["shortest_edge"])
    return USUAL_IMAGE


def _run_once(folder: Path, model: Any, dummies: _DummyInputs) -> tuple[str, ...]:
    """Proves that the network runs on its inputs; the names of the outputs of its task."""
    import torch

    try:
        inputs = dict(zip(dummies.names, dummies.make(EXAMPLE_SEED), strict=True))
        with torch.no_grad():
            returned = model(**inputs, return_dict=True)
    except Exception as problem:
        raise InvalidWorkload(
            f"{folder}: {type(model).__name__} does not run on inputs made from its "
            f"configuration: {first_line(problem)}"
        ) from problem
    tensors = [name for name, value in returned.items() if isinstance(value, torch.Tensor)]
    if not tensors:
        raise InvalidWorkload(f"{folder}: {type(model).__name__} returns no tensor")
    try:
        wanted = dummies.exporter_config.outputs
    except KeyError:  # a task of which optimum knows no outputs
        wanted = tensors
    return tuple(name for name in tensors if name in wanted) or tuple(tensors)


def _refuse_random_weights(folder: Path, missing: list[str], outputs: tuple[str, ...]) -> None:
    """A weight that the files lack was drawn at random: harmless only where nothing reads it."""
    has_pooled_output = "last_hidden_state" not in outputs or "pooler_output" in outputs
    needed = [name for name in missing if has_pooled_output or not name.startswith("pooler.")]
    if needed:
        raise InvalidWorkload(
            f"{folder} lacks {len(needed)} weights of this network, such as {needed[0]!r}: "
            "give the whole checkpoint, or another task"
        )


def _wrap(model: Any, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> torch.nn.Module:
    """The network with positional tensors in and a tuple of tensors out."""
    import torch

    class CheckpointNetwork(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *tensors: torch.Tensor) -> Tensors:
            returned = self.model(**dict(zip(inputs, tensors, strict=True)), return_dict=True)
            return tuple(returned[name] for name in outputs)

    # Exported graphs name their inputs by this signature.
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in ("self", *inputs)]
    CheckpointNetwork.forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return CheckpointNetwork().eval()


def _notices(folder: Path) -> dict[str, str]:
    notices = {"Data": DATA_NOTICE}
    readme = folder / "README.md"
    texts = [_license_of(readme.read_text("utf-8", errors="replace"))] if readme.is_file() else []
    texts += [
        file.read_text("utf-8", errors="replace").strip()
        for file in sorted(folder.glob("LICENSE*"))
        if file.is_file()
    ]
    found = "\n\n".join(text for text in texts if text)
    return {**notices, "Checkpoint": found} if found else notices


def _license_of(readme: str) -> str:
    """The `license:` of a model card's front matter, or the empty string."""
    front = re.match(r"\ufeff?---\s*\n(.*?)\n---\s*(?:\n|$)", readme, re.DOTALL)
    found = front and re.search(r"^license:[ \t]*(\S.*?)[ \t]*$", front[1], re.MULTILINE)
    return found[1].strip("'\"") if found else ""
