"""The record of an evaluation: the results, the protocol and the weights. `svitt-ego evaluate` writes it as JSON.

[`EvaluationReport`] is the only schema of that file: evaluators return it, the command writes it, and the model card
reads it. Published numbers differ because frames, crop, scoring mode and denominators are not stated; here they are
fields.
"""

import json
import math
import os
import platform
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from dataclasses import fields as dataclass_fields
from datetime import date
from pathlib import Path

import torch

from ..files.json_records import read_json
from ..files.writing import write_text
from ..weights.provenance import package_commit, weights_sha256
from .published import PUBLISHED

SCHEMA_VERSION = 1
# The JSON may come from another program, so the types of its fields are checked.
_FIELD_KINDS = (
    *((name, dict, "an object") for name in ("intervals", "counts", "failures", "details")),
    ("primary_metrics", list, "a list"),
    *(
        (name, str, "text")
        for name in (
            "scoring_mode interval_rule scoring_rule crop window_rule tie_rule dataset frame_order condition "
            "checkpoint checkpoint_sha256 package_version commit command date machine"
        ).split()
    ),
)


@dataclass(frozen=True)
class EvaluationReport:
    """
    `benchmark` and `metrics` are required. Any other field may be missing in a file, and is then shown as "not
    recorded".

    Args:
        benchmark (`str`): `egomcq`, `egonlq`, `ek100` or `video-classification`.
        metrics (`dict[str, float]`): All metrics by name, in per cent. A metric without items is left out.
        primary_metrics (`list[str]`): Names of the metrics that papers report for this benchmark.
        num_items (`int`): Number of questions, queries or clips.
        scoring_mode (`str`): `dual`, `fusion`, `ensemble`, `zero-shot`, `head`, …
        intervals (`dict[str, list[float]]`): `[low, high]` of a metric, in per cent; see `interval_rule`.
        counts (`dict[str, int]`): Number of items of each kind, such as `num_inter` for the metric `inter`.
        num_frames (`int`, *optional*): Frames per clip; `None` if no clip was read (a prediction file).
        scoring_rule, crop, window_rule, tie_rule (`str`, *optional*): The protocol in words.
        failures (`dict`): `policy`, `num_failed`, `num_items_affected`, and `first` (some, with path and reason).
        dataset (`str`, *optional*): Name of the data, if it is not the published data.
        frame_order (`str`, *optional*): Order of the frames, see [`frame_order`].
        condition (`str`, *optional*): Change of the input, such as `frames shuffled`. Such numbers are left out of the
            metadata of a model card.
        details (`dict`): Settings of this benchmark alone (prompts, files, data type).
        checkpoint (`str`): Hub name or base name of the folder.
        checkpoint_sha256 (`str`): Hash of its weight files.
        package_version, commit, command, date, machine (`str`): Origin of the report.
    """

    benchmark: str
    metrics: dict[str, float]
    primary_metrics: list[str] = field(default_factory=list)
    num_items: int | None = None
    scoring_mode: str | None = None
    intervals: dict[str, list[float]] = field(default_factory=dict)
    interval_rule: str | None = None
    counts: dict[str, int] = field(default_factory=dict)
    num_frames: int | None = None
    scoring_rule: str | None = None
    crop: str | None = None
    window_rule: str | None = None
    tie_rule: str | None = None
    failures: dict = field(default_factory=dict)
    dataset: str | None = None
    frame_order: str | None = None
    condition: str | None = None
    details: dict = field(default_factory=dict)
    checkpoint: str | None = None
    checkpoint_sha256: str | None = None
    package_version: str | None = None
    commit: str | None = None
    command: str | None = None
    date: str | None = None
    machine: str | None = None
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self):
        if not isinstance(self.benchmark, str) or not self.benchmark:
            raise ValueError(f"'benchmark' must be the name of a benchmark, got {self.benchmark!r}.")
        if not isinstance(self.metrics, dict) or not self.metrics:
            raise ValueError(f"'metrics' of {self.benchmark} must hold at least one metric, got {self.metrics!r}.")
        for name, value in self.metrics.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f"{self.benchmark}: metric {name!r} must be a finite number, got {value!r}.")
        for name, kind, kind_name in _FIELD_KINDS:
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                raise ValueError(f"{self.benchmark}: {name!r} must be {kind_name}, got {value!r}.")
        for name in ("num_items", "num_frames"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{self.benchmark}: {name!r} must be a positive whole number, got {value!r}.")
        unknown = [name for name in (*self.primary_metrics, *self.intervals) if name not in self.metrics]
        if unknown:
            raise ValueError(f"{self.benchmark}: {unknown} are not among the metrics {sorted(self.metrics)}.")

    @classmethod
    def of_numbers(
        cls,
        benchmark: str,
        numbers: dict[str, int | float | None],
        intervals: dict[str, list[float] | None],
        primary_metrics: list[str],
        **fields,
    ) -> "EvaluationReport":
        """
        A report of the results of the metric functions. Integers are counts; metrics without items are left out.
        """
        counts = {name: value for name, value in numbers.items() if isinstance(value, int)}
        metrics = {name: value for name, value in numbers.items() if isinstance(value, float)}
        return cls(
            benchmark=benchmark,
            metrics=metrics,
            primary_metrics=[name for name in primary_metrics if name in metrics],
            intervals={name: value for name, value in intervals.items() if value is not None and name in metrics},
            counts=counts,
            **fields,
        )

    def numbers(self) -> dict[str, int | float]:
        """Metrics, counts and `num_frames` in one `dict`, as a Trainer logs them."""
        frames = {} if self.num_frames is None else {"num_frames": self.num_frames}
        return {**self.metrics, **self.counts, **frames}

    def shown(self) -> dict[str, float]:
        """The primary metrics, or all metrics if the report names no primary ones."""
        return {name: self.metrics[name] for name in self.primary_metrics or self.metrics}

    def with_origin(
        self,
        checkpoint: str | None,
        folder: str | os.PathLike | None,
        command: Sequence[str],
        device: torch.device | None = None,
    ) -> "EvaluationReport":
        """
        A copy with the checkpoint, the version of this package, the command and today's date.

        Reports are published with a model, so folders and files are named by their base names only.

        Args:
            checkpoint (`str`, *optional*): Name of the checkpoint as the user gave it.
            folder (*optional*): Folder of its weights.
            command (sequence of `str`): Words of the command line.
            device (`torch.device`, *optional*): Device that the model ran on.
        """
        from .. import __version__

        return replace(
            self,
            checkpoint=None if checkpoint is None else without_folders(checkpoint),
            checkpoint_sha256=weights_sha256(folder) if folder is not None else None,
            package_version=__version__,
            commit=package_commit(),
            command=shlex.join(without_folders(word) for word in command),
            date=date.today().isoformat(),
            machine=_machine(device),
        )

    def save(self, path: str | os.PathLike) -> None:
        """Writes the JSON atomically."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(asdict(self), indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike) -> "EvaluationReport":
        """
        Reads the JSON.

        Raises:
            ValueError: The file is not an evaluation report; the message names the file and the field.
        """
        path = os.fspath(path)
        try:
            return cls.from_dict(read_json(path))
        except ValueError as error:
            raise ValueError(f"{path} is not an evaluation report: {error}") from error

    @classmethod
    def from_dict(cls, content: dict) -> "EvaluationReport":
        """A report from the content of the JSON. Without `schema_version`, the current version is assumed."""
        if not isinstance(content, dict):
            raise ValueError(f"expected a JSON object, got {type(content).__name__}.")
        version = content.get("schema_version", SCHEMA_VERSION)
        if version != SCHEMA_VERSION:
            raise ValueError(f"its schema version is {version!r}; this package reads version {SCHEMA_VERSION}.")
        missing = [name for name in ("benchmark", "metrics") if name not in content]
        if missing:
            raise ValueError(f"it has no '{missing[0]}'.")
        unknown = sorted(content.keys() - {f.name for f in dataclass_fields(cls)})
        if unknown:
            raise ValueError(f"it has the unknown field(s) {unknown}.")
        # A field that is null was not recorded, as if it were missing.
        return cls(**{name: value for name, value in content.items() if value is not None})

    @classmethod
    def read(cls, source: "EvaluationReport | dict | str | os.PathLike") -> "EvaluationReport":
        """Returns a report unchanged, or reads it from the content or the path of a JSON."""
        if isinstance(source, cls):
            return source
        return cls.from_dict(source) if isinstance(source, dict) else cls.load(source)

    def table(self) -> str:
        """The measured numbers, primary metrics first, and then published ones, which are marked as such."""
        how = [self.scoring_mode or "scoring mode not recorded"]
        how += [f"{self.num_frames} frames"] if self.num_frames else []
        how += [part for part in (self.dataset, self.condition) if part]
        lines = [f"{self.benchmark}: {self.num_items or 0:,} items, {', '.join(how)}"]
        others = [name for name in self.metrics if name not in self.primary_metrics]
        width = max(len(name) for name in self.metrics) + 2
        for name in (*self.primary_metrics, *others):
            interval = self.intervals.get(name)
            spread = f"  [{interval[0]:.1f}, {interval[1]:.1f}]" if interval else ""
            lines.append(
                f"{'* ' if name in self.primary_metrics else '  '}{name:{width}}{self.metrics[name]:6.1f}{spread}"
            )
        lines.append("  * the metric of the papers; [ ] " + (self.interval_rule or "no intervals"))
        if self.failures.get("num_failed"):
            lines.append(
                f"  {self.failures['num_failed']} clips could not be read; "
                f"{self.failures['num_items_affected']} items count as wrong because of it"
            )
        published = [entry for entry in PUBLISHED if entry.benchmark == self.benchmark]
        if published:
            lines.append("published by others on the real benchmark, not measured here:")
        for entry in published:
            numbers = "  ".join(f"{name} {value:g}" for name, value in entry.metrics.items())
            lines.append(f"  {entry.model:24}{numbers}  ({entry.protocol}; {entry.source})")
        return "\n".join(lines)


def without_folders(word: str) -> str:
    """
    A word of a command line in which a path is cut to its base name, because folders may contain personal names.

    `--output=/home/me/out.json` becomes `--output=out.json`; a Hub name such as `user/model` stays.
    """
    option, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    path = Path(value)
    is_path = path.is_absolute() or value.startswith((".", "~")) or value.count("/") > 1
    # One slash may also be a Hub name; it is a path if its folder exists here.
    is_path = is_path or ("/" in value and path.parent.is_dir())
    if not is_path or " " in value and not path.exists():
        return word
    return f"{option}{equals}{path.name or path.resolve().name}"


def _machine(device: torch.device | None) -> str:
    """The kind of processor and accelerator, without the host name."""
    if device is not None and torch.device(device).type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{platform.machine()} CPU, {platform.system()}, torch {torch.__version__}"
