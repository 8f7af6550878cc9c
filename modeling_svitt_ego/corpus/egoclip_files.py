"""`svitt-ego build-egoclip`: from the narration file to `egoclip.csv`, at once or in shards.

Nearly all of the time goes into tagging the sentences. So a shard (`--shard I/N`) tags its part of the distinct
sentences and writes them into a file next to the output; the merge looks the tags up and writes the same bytes as one
run would.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tqdm.auto import tqdm

from ..data.taxonomy import read_taxonomy
from ..files.folder_lock import locked
from ..files.sharding import Shard, file_name, shard_files
from ..files.writing import aside, file_hash, read_json_lines, write_json_lines
from .egoclip_building import DROPPABLE, Row, Selection, egoclip_rows, write_egoclip
from .narration_tagger import NarrationTagger
from .narrations import DroppedNarration, narrations_of, read_narrated_videos


@dataclass
class BuildReport:
    """What became of every sentence of a narration file.

    Args:
        read, kept: sentences; the difference is counted by reason in `dropped`.
        videos, passes: with at least one clip; a pass is one annotator's account of one video.
        other_person, unsure: clips whose text contains `#O` or `#unsure`.
        no_verb, no_noun: clips without a group of that kind: positive only with themselves in EgoNCE.
        mean_seconds: length of a window, before readers clamp it to the video.
    """

    narrations: str
    output: str
    read: int = 0
    kept: int = 0
    videos: int = 0
    passes: int = 0
    other_person: int = 0
    unsure: int = 0
    no_verb: int = 0
    no_noun: int = 0
    mean_seconds: float = 0.0
    dropped: dict[str, int] = field(default_factory=dict)
    dropped_list: str | None = None

    def as_dict(self) -> dict:
        return asdict(self)

    def table(self) -> str:
        def line(name: str, count: int, total: int) -> str:
            return f"  {name:36}{count:>12,}  {count / max(total, 1):7.2%}"

        lines = [f"{self.narrations}: {self.read:,} sentences", line("kept", self.kept, self.read)]
        lines += [line(f"dropped: {reason}", count, self.read) for reason, count in self.dropped.items()]
        lines += [
            f"{self.output}: {self.kept:,} clips of {self.mean_seconds:.2f} s on average, "
            f"{self.videos:,} videos, {self.passes:,} passes",
            line("another person acts (#O)", self.other_person, self.kept),
            line("an unknown word (#unsure)", self.unsure, self.kept),
            line("no verb group", self.no_verb, self.kept),
            line("no noun group", self.no_noun, self.kept),
        ]
        if self.dropped_list:
            lines.append(f"Dropped sentences are listed in {self.dropped_list}")
        return "\n".join(lines)


def build_egoclip_file(
    narration_json: str | Path,
    output: str | Path,
    verb_taxonomy: str | Path,
    noun_taxonomy: str | Path,
    durations: Mapping[str, float],
    selection: Selection | None = None,
    merge: bool = False,
) -> BuildReport:
    """`narration.json` -> `egoclip.csv`, and a list of what was dropped next to it (`<output>.dropped.tsv`).

    Args:
        merge: take the tags from the files that [`tag_shard`] wrote, and remove those files.

    Raises:
        ValueError: A file is malformed, not one sentence could be kept, or (`merge`) a shard is missing. Nothing is
            written then.
        FileExistsError: Another process is writing this output.
    """
    output = Path(output)
    with locked(output):
        verbs, nouns = read_taxonomy(verb_taxonomy), read_taxonomy(noun_taxonomy)
        tag = _merged_tags(output, _inputs(narration_json, verb_taxonomy, noun_taxonomy)) if merge else None
        dropped: list[DroppedNarration] = []
        narrations = narrations_of(read_narrated_videos(narration_json), narration_json, durations, dropped)
        report = BuildReport(str(narration_json), str(output), read=len(narrations) + len(dropped))
        rows = egoclip_rows(narrations, verbs, nouns, selection, dropped, tag)
        rows = tqdm(rows, total=len(narrations), desc="Tagging", unit="sentence")
        write_egoclip(_counted(rows, report, dropped), output)
        report.dropped = _count(dropped)
        report.dropped_list = _write_dropped(Path(f"{output}.dropped.tsv"), dropped)
        if merge:
            for path in _tag_files(output):
                path.unlink()
    return report


def _counted(rows: Iterable[Row], report: BuildReport, dropped: list[DroppedNarration]) -> Iterator[Row]:
    """The rows, counted into the report as they pass."""
    videos, passes, seconds = set(), set(), 0.0
    for row in rows:
        report.kept += 1
        videos.add(row["video_uid"])
        passes.add((row["video_uid"], row["narration_source"]))
        seconds += row["clip_end"] - row["clip_start"]
        report.other_person += bool(DROPPABLE["other"].search(row["clip_text"]))
        report.unsure += bool(DROPPABLE["unsure"].search(row["clip_text"]))
        report.no_verb += not row["tag_verb"]
        report.no_noun += not row["tag_noun"]
        yield row
    if report.kept == 0:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in _count(dropped).items())
        raise ValueError(f"{report.narrations}: none of its {report.read} sentences makes a clip ({reasons}).")
    report.videos, report.passes = len(videos), len(passes)
    report.mean_seconds = round(seconds / report.kept, 4)


def _write_dropped(path: Path, dropped: list[DroppedNarration]) -> str | None:
    path.unlink(missing_ok=True)
    if not dropped:
        return None
    with aside(path) as part, open(part, "w", encoding="utf-8") as file:
        file.write("\t".join(DroppedNarration._fields) + "\n")
        file.writelines("\t".join(str(cell) for cell in item) + "\n" for item in dropped)
    return str(path)


def _count(dropped: Sequence[DroppedNarration]) -> dict[str, int]:
    return dict(Counter(item.reason for item in dropped).most_common())


# ── in shards ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class TagReport:
    """One shard's part of the sentences."""

    output: str
    shard: str
    num_texts: int

    def as_dict(self) -> dict:
        return asdict(self)

    def table(self) -> str:
        return f"{self.output}: shard {self.shard}, {self.num_texts:,} distinct sentences; next: --merge"


def tag_shard(
    narration_json: str | Path, output: str | Path, verb_taxonomy: str | Path, noun_taxonomy: str | Path, shard: Shard
) -> TagReport:
    """Tag the distinct sentences that belong to `shard`, for [`build_egoclip_file`] with `merge`."""
    output = Path(output)
    with locked(output, shard):
        tagger = NarrationTagger(read_taxonomy(verb_taxonomy), read_taxonomy(noun_taxonomy))
        videos = read_narrated_videos(narration_json)
        narrations = narrations_of(videos, narration_json, dict.fromkeys(videos, float("inf")), [])
        texts = sorted({item.text for item in narrations if shard.owns(item.text)})
        rows = []
        for text in tqdm(texts, desc=f"Tagging {shard}", unit="sentence"):
            verbs, nouns = tagger.tag(text)
            rows.append({"text": text, "tag_verb": list(verbs), "tag_noun": list(nouns)})
        head = {"inputs": _inputs(narration_json, verb_taxonomy, noun_taxonomy), "num_texts": len(rows)}
        path = output.with_name(file_name(f"{output.name}.tags.jsonl", shard))
        write_json_lines(path, [head, *rows])
    return TagReport(str(path), str(shard), len(rows))


def _inputs(*files: str | Path) -> list[str]:
    return [file_hash(file) for file in files]


def _tag_files(output: Path) -> list[Path]:
    return shard_files(output.parent, f"{output.name}.tags.jsonl")


def _merged_tags(output: Path, inputs: list[str]) -> Callable[[str], tuple[Sequence[int], Sequence[int]]]:
    """A look-up of the tags that all shards wrote.

    Raises:
        ValueError: A shard is missing, incomplete, or was made from other files.
    """
    paths = _tag_files(output)
    counts = {int(path.name.rsplit("-of-", 1)[1].split(".")[0]) for path in paths}
    if len(counts) != 1 or len(paths) != (count := counts.pop()):
        raise ValueError(
            f"{str(output)!r}: {len(paths)} files of shards, of splits into {sorted(counts) or 'no'} shards. Run "
            "every shard of one split, then --merge."
        )
    tags = {}
    for path in paths:
        head, *rows = read_json_lines(path) or [{}]
        if head.get("inputs") != inputs:
            raise ValueError(f"{str(path)!r} was made from other narrations or taxonomies. Run its shard again.")
        if head["num_texts"] != len(rows):
            raise ValueError(f"{str(path)!r} is incomplete ({len(rows)} of {head['num_texts']} sentences).")
        tags |= {row["text"]: (row["tag_verb"], row["tag_noun"]) for row in rows}

    def tag(text: str) -> tuple[Sequence[int], Sequence[int]]:
        if text not in tags:
            raise ValueError(f"{str(output)!r}: none of the {count} shards has tagged {text[:100]!r}.")
        return tags[text]

    return tag
