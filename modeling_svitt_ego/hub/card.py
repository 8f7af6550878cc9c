"""The model card: MODEL_CARD.md filled from a saved folder, its training arguments and the JSON of evaluations.

Nothing is invented: what was not recorded is called so, and a number of other weights than the folder's is refused.
"""

import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import safe_open
from transformers import TrainingArguments

from ..evaluation.report import EvaluationReport
from ..files.writing import aside, write_json
from ..model.configuration_svitt_ego import SViTTEgoConfig
from ..weights.provenance import weight_files, weights_sha256
from .card_results import BENCHMARK_NAMES, NOT_RECORDED, PUBLISHED_HERE, TASK_TYPES, plain, result_rows

# Stands in the card's snippet until the name is known; pushing fills it in.
PLACEHOLDER_NAME = "USER/MODEL"
TRAINING_ARGUMENTS_NAME = "training_arguments.json"

# What a reader needs to repeat a training. A list of names, because the arguments also hold paths and a token.
TRAINING_FIELDS = (
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "world_size",
    "optim",
    "learning_rate",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "lr_scheduler_type",
    "warmup_steps",
    "bf16",
    "fp16",
    "gradient_checkpointing",
    "seed",
    "data_seed",
)


def count_parameters(folder: str | os.PathLike) -> int:
    """Numbers in the saved weights, from the files' headers; a tied weight counts once."""
    total = 0
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="numpy") as file:
                total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())
        except FileNotFoundError:
            raise
        except Exception as error:  # the library's own error class has moved between versions
            raise ValueError(f"{path} is no complete safetensors file: {error}") from error
    return total


def find_template() -> Path:
    """MODEL_CARD.md: in the package where it is installed (setup.py), at the top level of a checkout."""
    package = Path(__file__).parents[1]
    for path in (package / "MODEL_CARD.md", package.parent / "MODEL_CARD.md"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"MODEL_CARD.md is neither in {package} nor in {package.parent}.")


def training_summary(arguments: TrainingArguments) -> dict[str, Any]:
    """The arguments that say how a model was trained: [`TRAINING_FIELDS`] and what a subclass adds."""
    own = [field.name for field in fields(arguments) if field.name not in _library_fields()]
    summary = {}
    for name in (*TRAINING_FIELDS, *own):
        value = getattr(arguments, name, None)
        summary[name] = getattr(value, "value", value)  # enums as their text
    return {name: value for name, value in summary.items() if isinstance(value, (bool, int, float, str))}


def _library_fields() -> set[str]:
    return {field.name for field in fields(TrainingArguments)}


def render_model_card(
    folder: str | os.PathLike,
    evaluations: Iterable[Any] = (),
    training_arguments: TrainingArguments | dict | None = None,
    *,
    repo_id: str | None = None,
    training_data: str | None = None,
    datasets: list[str] | None = None,
    license: str | None = None,
    base_model: str | list[str] | None = None,
) -> ModelCard:
    """
    The card of a saved model.

    Args:
        folder: what `save_pretrained` wrote.
        evaluations: files that `svitt-ego evaluate` wrote, or `EvaluationReport`s. One that names other weights than
            the folder's is a `ValueError`.
        training_arguments: of the training; by default those that [`write_model_card`] left in the folder.
        repo_id (`str`): its name on the Hub; unknown, the snippet says `USER/MODEL`.
        training_data (`str`): what it was trained on, in words.
        datasets (`list[str]`): the same as dataset names on the Hub, for the metadata.
        license (`str`): of the weights, an identifier that the Hub knows.
        base_model: Hub name(s) of what the training started from.
    """
    folder = Path(folder)
    config = _read_config(folder)
    evaluations = [EvaluationReport.read(source) for source in evaluations]
    _check_weights(folder, evaluations)
    name = repo_id.split("/")[-1] if repo_id else folder.resolve().name
    architecture = (config.architectures or ["SViTTEgoModel"])[0]
    data = _metadata(name, evaluations, license, datasets, base_model)
    return ModelCard.from_template(
        data,
        template_path=str(find_template()),
        name=name,
        repo_id=repo_id or PLACEHOLDER_NAME,
        architecture=architecture,
        is_classifier=architecture == "SViTTEgoForVideoClassification",
        num_parameters=count_parameters(folder),
        weights_sha256=weights_sha256(folder),
        config=config,
        training=_training(folder, training_arguments),
        training_data=plain(training_data or NOT_RECORDED),
        weights_license=plain(license or NOT_RECORDED),
        rows=result_rows(evaluations),
        published_sources=[f"{p.model}, {p.source} ({p.protocol})" for p in PUBLISHED_HERE],
    )


def _metadata(name: str, evaluations: list[EvaluationReport], license, datasets, base_model) -> ModelCardData:
    """The YAML at the top of the card, which the Hub reads."""
    data = ModelCardData(
        language="en",
        license=license,
        library_name="transformers",
        pipeline_tag="video-classification",
        tags=["svitt-ego", "egocentric-video", "video-text-retrieval", "sparse-attention", "arxiv:2406.09462"],
        datasets=datasets,
        base_model=base_model,
        metrics=["accuracy"] if any(e.benchmark == "egomcq" for e in evaluations) else None,
        model_name=name,
        eval_results=[result for e in evaluations for result in _eval_results(e)] or None,
    )
    if data.eval_results is None:
        data.pop("model_name")  # the Hub takes it from the repository; alone it is no metadata field
    return data


def write_model_card(
    folder: str | os.PathLike,
    evaluations: Iterable[Any] = (),
    training_arguments: TrainingArguments | None = None,
    **options,
) -> Path:
    """
    Writes `README.md` into a saved model's folder, and `training_arguments.json` if they are given, so that the card
    can be rendered again. Arguments as in [`render_model_card`].

    Returns:
        The path of the card.
    """
    folder = Path(folder)
    card = render_model_card(folder, evaluations, training_arguments, **options)
    if training_arguments is not None:
        write_json(folder / TRAINING_ARGUMENTS_NAME, training_summary(training_arguments))
    with aside(folder / "README.md") as part:
        card.save(part)
    return folder / "README.md"


def _read_config(folder: Path) -> SViTTEgoConfig:
    model_type = _read_json(folder / "config.json").get("model_type")
    if model_type != SViTTEgoConfig.model_type:
        raise ValueError(f"{folder} holds a '{model_type}', the card describes a whole '{SViTTEgoConfig.model_type}'.")
    return SViTTEgoConfig.from_pretrained(folder)


def _training(folder: Path, arguments: TrainingArguments | dict | None) -> dict[str, Any]:
    if isinstance(arguments, dict):
        return arguments
    if arguments is not None:
        return training_summary(arguments)
    saved = folder / TRAINING_ARGUMENTS_NAME
    return _read_json(saved) if saved.is_file() else {}


def _check_weights(folder: Path, evaluations: list[EvaluationReport]) -> None:
    expected = {e.checkpoint_sha256 for e in evaluations if e.checkpoint_sha256}
    if not expected:
        return
    found = weights_sha256(folder)
    for other in expected - {found}:
        raise ValueError(f"{folder} holds the weights {found[:16]}…, but an evaluation is of {other[:16]}…")


def _eval_results(evaluation: EvaluationReport) -> list[EvalResult]:
    """For the Hub's model-index: what was measured on these weights and on clips as they are, at full precision."""
    if evaluation.condition or not evaluation.checkpoint_sha256:
        return []
    name = BENCHMARK_NAMES.get(evaluation.benchmark, evaluation.benchmark)
    protocol = {"num_frames": evaluation.num_frames, "scoring_mode": evaluation.scoring_mode}
    return [
        EvalResult(
            task_type=TASK_TYPES.get(evaluation.benchmark, "other"),
            # Another set than the published one must not look like it on a leaderboard.
            dataset_type=_slug(evaluation.dataset or evaluation.benchmark),
            dataset_name=f"{name}, {evaluation.dataset}" if evaluation.dataset else name,
            metric_type="accuracy" if evaluation.benchmark == "egomcq" else metric,
            metric_name=f"{name} {metric}",
            metric_value=round(value, 4),
            metric_args={key: value for key, value in protocol.items() if value is not None} or None,
        )
        for metric, value in evaluation.shown().items()
    ]


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error


__all__ = ["render_model_card", "write_model_card"]
