"""The one record of an evaluation: what was measured, how, on which weights. `svitt-ego evaluate` writes it as JSON.

The numbers of this field disagree because frames, crop, scoring mode and denominators go unsaid: here they are fields.
"""

import json
import math
import os
import platform
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import date
from pathlib import Path

import torch

from ..weights.provenance import package_commit, weights_sha256
from .published import PUBLISHED

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class EvaluationReport:
    """
    Args:
        benchmark (`str`): `egomcq`, `egonlq`, `ek100` or `video-classification`.
        metrics (`dict[str, float]`): every variant by name, in per cent; one without any item is left out.
        primary_metrics (`list[str]`): the names in `metrics` that papers report under this benchmark's name.
        intervals (`dict[str, list[float]]`): by metric `[low, high]`, per cent; see `interval_rule`.
        counts (`dict[str, int]`): how many items of each kind the metrics are over.
        num_items (`int`): questions, queries, clips: what was counted in all.
        num_frames (`int`, *optional*): frames per clip; `None` where no clip was seen (a prediction file).
        scoring_mode (`str`): how scores were made: `dual`, `fusion`, `ensemble`, `zero-shot`, `head`, …
        scoring_rule, crop, window_rule, tie_rule (`str`, *optional*): the protocol in words.
        failures (`dict`): `policy`, `num_failed`, `num_items_affected`, `first` (some, with path and reason).
        dataset (`str`, *optional*): what was asked, where it is not the published data.
        condition (`str`, *optional*): what was done to the input, such as `frames shuffled`.
        details (`dict`): settings of this benchmark alone (prompts, files, batch size).
        checkpoint (`str`): name or folder as given; checkpoint_sha256 (`str`): of its weight files.
        package_version, commit, command, date, machine (`str`): what made it.
    """

    benchmark: str
    metrics: dict[str, float]
    primary_metrics: list[str]
    num_items: int
    scoring_mode: str
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
        if not self.metrics:
            raise ValueError(f"An evaluation of {self.benchmark} without any metric is none.")
        for name, value in self.metrics.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f"{self.benchmark}: metric {name!r} must be a finite number, got {value!r}.")
        unknown = [name for name in (*self.primary_metrics, *self.intervals) if name not in self.metrics]
        if unknown:
            raise ValueError(f"{self.benchmark}: {unknown} are not among the metrics {sorted(self.metrics)}.")

    @classmethod
    def of_numbers(cls, benchmark: str, numbers: dict, primary_metrics: list[str], intervals: dict, **rest):
        """
        From what the metric functions return: counts (whole numbers) apart, metrics and intervals of no item left out.
        """
        counts = {name: value for name, value in numbers.items() if isinstance(value, int)}
        metrics = {name: value for name, value in numbers.items() if isinstance(value, float)}
        return cls(
            benchmark=benchmark,
            metrics=metrics,
            primary_metrics=[name for name in primary_metrics if name in metrics],
            intervals={name: value for name, value in intervals.items() if value is not None and name in metrics},
            counts=counts,
            **rest,
        )

    def with_origin(self, checkpoint: str | None, folder: str | os.PathLike | None, command: str, device=None):
        """With the checkpoint (as named, and its local folder), this package, the command and today's date."""
        from .. import __version__

        return replace(
            self,
            checkpoint=checkpoint,
            checkpoint_sha256=weights_sha256(folder) if folder is not None else None,
            package_version=__version__,
            commit=package_commit(),
            command=command,
            date=date.today().isoformat(),
            machine=_machine(device),
        )

    def save(self, path: str | os.PathLike) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1, allow_nan=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike) -> "EvaluationReport":
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is no JSON file: {error}") from error
        if not isinstance(content, dict) or content.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"{path} is no evaluation report of schema version {SCHEMA_VERSION}.")
        unknown = sorted(content.keys() - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"{path} has the unknown field(s) {unknown}.")
        try:
            return cls(**content)
        except TypeError as error:
            raise ValueError(f"{path} is no evaluation report: {error}") from error

    def table(self) -> str:
        """Own numbers, the papers' metric first, then published ones, which are marked as such."""
        how = [self.scoring_mode]
        how += [f"{self.num_frames} frames"] if self.num_frames else []
        how += [part for part in (self.dataset, self.condition) if part]
        lines = [f"{self.benchmark}: {self.num_items:,} items, {', '.join(how)}"]
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
                f"{self.failures['num_items_affected']} items count as wrong for it"
            )
        published = [entry for entry in PUBLISHED if entry.benchmark == self.benchmark]
        if published:
            lines.append("published by others on the real benchmark, not measured here:")
        for entry in published:
            numbers = "  ".join(f"{name} {value:g}" for name, value in entry.metrics.items())
            lines.append(f"  {entry.model:28}{numbers}  ({entry.protocol}; {entry.source})")
        return "\n".join(lines)


def _machine(device: torch.device | None) -> str:
    """Kind of processor and of accelerator; no host name."""
    if device is not None and torch.device(device).type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{platform.machine()} CPU, {platform.system()}, torch {torch.__version__}"
