"""The card's table of results: own numbers next to published ones of the same set, every cell as safe text."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..evaluation.published import PUBLISHED
from ..evaluation.report import EvaluationReport

NOT_RECORDED, NOT_MEASURED = "not recorded", "not measured"
# What Markdown or HTML would read as markup.
_SPECIAL = re.compile(r"[&<>|`*_\[\]\\~!$\"']")
# The directory part of an absolute path, or of one below the home directory.
_DIRECTORIES = re.compile(r"(?<![\w.])(?:~|[A-Za-z]:)?[/\\](?:[^\s'\"/\\]+[/\\])*")


# An own number is in one row with a published one only if it was counted on this many items: the same benchmark on
# another set is another number. EgoMCQ has about 39,000 questions (EgoVLP, arXiv:2206.01670).
PUBLISHED_ITEMS = {"egomcq": (38_000, 40_500)}
PUBLISHED_HERE = [result for result in PUBLISHED if result.model == "SViTT-Ego"]
BENCHMARK_NAMES = {
    "egomcq": "EgoMCQ",
    "egonlq": "EgoNLQ",
    "ek100": "EPIC-KITCHENS-100 multi-instance retrieval",
    "ek100-cls": "EPIC-KITCHENS-100 action recognition",
    "egtea": "EGTEA Gaze+",
    "charades-ego": "Charades-Ego",
}
# Tasks that the Hub knows; it has none for moments in a video.
TASK_TYPES = {
    "egomcq": "multiple-choice",
    "ek100": "text-retrieval",
    **dict.fromkeys(("video-classification", "ek100-cls", "egtea", "charades-ego"), "video-classification"),
}


@dataclass(frozen=True)
class ResultRow:
    """A row of the card's table, every cell as text. `commit` is that of the package, and its version."""

    benchmark: str
    metric: str
    published: str
    own: str
    num_items: str
    num_frames: str
    scoring_mode: str
    date: str
    commit: str
    command: str


def result_rows(evaluations: Iterable[EvaluationReport]) -> list[ResultRow]:
    """Own numbers next to the published ones of the same set, then published ones that were not measured here."""
    published = {(p.benchmark, metric): value for p in PUBLISHED_HERE for metric, value in p.metrics.items()}
    rows, unmatched = [], dict(published)
    for evaluation in evaluations:
        same_set = is_published_set(evaluation)
        for metric, value in evaluation.shown().items():
            key = (evaluation.benchmark, metric)
            if same_set:
                unmatched.pop(key, None)
            name = BENCHMARK_NAMES.get(evaluation.benchmark, evaluation.benchmark)
            name += "".join(f", {part}" for part in (evaluation.dataset, evaluation.condition) if part)
            version = evaluation.package_version and f"version {evaluation.package_version}"
            made_by = ", ".join(part for part in (_short(evaluation.commit), version) if part)
            rows.append(
                ResultRow(
                    benchmark=_cell(name),
                    metric=_cell(metric),
                    published=f"{published[key]:.1f}" if same_set and key in published else "–",
                    own=f"{value:.1f}{_interval(evaluation, metric)}{_of_which_weights(evaluation)}",
                    num_items=_num_items(evaluation, metric),
                    num_frames=_cell(evaluation.num_frames),
                    scoring_mode=_cell(evaluation.scoring_mode),
                    date=_cell(evaluation.date),
                    commit=_cell(made_by or None),
                    command=_command(evaluation.command),
                )
            )
    for (benchmark, metric), value in unmatched.items():
        rows.append(ResultRow(BENCHMARK_NAMES[benchmark], metric, f"{value:.1f}", NOT_MEASURED, *["–"] * 6))
    return rows


def is_published_set(evaluation: EvaluationReport) -> bool:
    """Whether the same questions were asked as in publications, the clips as they are."""
    low, high = PUBLISHED_ITEMS.get(evaluation.benchmark, (0, -1))
    if evaluation.num_items is None or evaluation.dataset or evaluation.condition:
        return False
    return low <= evaluation.num_items <= high


def _interval(evaluation: EvaluationReport, metric: str) -> str:
    interval = evaluation.intervals.get(metric)
    return f" [{interval[0]:.1f}, {interval[1]:.1f}]" if interval else ""


def _of_which_weights(evaluation: EvaluationReport) -> str:
    """A number without the hash of its weights may be of any model."""
    return "" if evaluation.checkpoint_sha256 else f" (weights {NOT_RECORDED})"


def _num_items(evaluation: EvaluationReport, metric: str) -> str:
    number = evaluation.counts.get(f"num_{metric}", evaluation.num_items)
    if number is None:
        return NOT_RECORDED
    failed = evaluation.failures.get("num_failed")
    return f"{number:,}" + (f" ({failed:,} clips unreadable)" if failed else "")


def _command(command: str | None) -> str:
    if command is None:
        return NOT_RECORDED
    # Directories say who works where, and help nobody to repeat the command.
    return f"<code>{plain(_DIRECTORIES.sub('', command))}</code>"


def _short(commit: str | None) -> str | None:
    if commit is None:
        return None
    sha, plus, changes = commit.partition("+")
    return sha[:10] + plus + changes


def _cell(value) -> str:
    return NOT_RECORDED if value is None else plain(str(value))


def plain(text: str) -> str:
    """
    Text as it is read, in a Markdown table: neither Markdown nor HTML in it takes effect.

    An evaluation's file may come from anyone, and its command or data set names end up on a public page.
    """
    text = "".join(character if character.isprintable() else " " for character in text)
    return _SPECIAL.sub(lambda found: f"&#{ord(found[0])};", " ".join(text.split()))
