"""EgoNLQ queries with the features of their clips, on which the grounding head is trained and evaluated."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from ..data.egonlq import read_queries
from ..files.json_records import read_json
from .extraction import FAILURES, FeatureFolder, query_key

logger = logging.getLogger(__name__)


class EgoNLQFeatures(Dataset):
    """
    One item per query that has a text and whose video has features; `rows` are those queries.

    Args:
        rows (list of `dict`): queries as [`read_queries`] yields them.
        folder ([`FeatureFolder`] or its path): made by `svitt-ego extract … --nlq` for these queries.
        keep_in_memory (`bool`): read each file of features once; a training step is then several times cheaper. All
            of them must fit: 1.875 rows of `dim` float32 a second of video.

    Attributes:
        num_without_text, num_without_features (`int`): Number of queries that are left out because they have no text,
            or because their video could not be read when the features were made. Count them as missed.
    """

    def __init__(self, rows: Iterable[dict], folder: FeatureFolder | str | os.PathLike, keep_in_memory: bool = False):
        self.folder = folder if isinstance(folder, FeatureFolder) else FeatureFolder(folder)
        if self.folder.settings.kind == "tokens":
            raise ValueError(
                f"{str(self.folder.path)!r} holds features by token; the head takes one vector per window."
            )
        rows = list(rows)
        with_text = [row for row in rows if row["query"] is not None]
        unreadable = set(read_json(str(self.folder.path / FAILURES)))
        self.rows = [row for row in with_text if row["video_uid"] not in unreadable]
        self.num_without_text = len(rows) - len(with_text)
        self.num_without_features = len(with_text) - len(self.rows)
        if len(self.rows) < len(rows):
            logger.warning(
                "%d of %d queries are left out: %d without text, %d of videos without features.",
                len(rows) - len(self.rows), len(rows), self.num_without_text, self.num_without_features,
            )  # fmt: skip
        self._cells = {row["clip_uid"]: self._cells_of(row) for row in self.rows}
        self._kept: dict[tuple[str, str], object] | None = {} if keep_in_memory else None
        # A query that is asked twice about a clip has several right answers, and none of them may count as wrong.
        self._answers: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
        for row in self.rows:
            if row["answer_start"] is not None:
                self._answers[row["clip_uid"], row["query"]].append((row["answer_start"], row["answer_end"]))

    @classmethod
    def from_json(
        cls, paths: str | os.PathLike | Sequence[str | os.PathLike], folder, keep_in_memory: bool = False
    ) -> EgoNLQFeatures:
        """All queries of one or more annotation files."""
        paths = [paths] if isinstance(paths, (str, os.PathLike)) else paths
        return cls([row for path in paths for row in read_queries(os.fspath(path))], folder, keep_in_memory)

    def __len__(self) -> int:
        return len(self.rows)

    def cells(self, index: int) -> np.ndarray:
        """(num_cells, 2) seconds from the start of the query's clip; the first and the last are cut at its ends."""
        return self._cells[self.rows[index]["clip_uid"]][1]

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """
        Returns:
            `dict` with `video_features` `(num_cells, dim)`, `text_features` `(num_tokens, text_dim)`, `text_embeds`
            `(dim,)` and, if the query has an answer, `start_positions` and `end_positions` `(num_answers,)`: of this
            row's answer, then of the same text's others in the same clip.
        """
        row = self.rows[index]
        first, cells = self._cells[row["clip_uid"]]
        video = self._read(self.folder.video, row["video_uid"])[first : first + len(cells)]
        text = self._read(self.folder.text, query_key(row))
        item = {
            "video_features": torch.from_numpy(video).float(),
            "text_features": torch.from_numpy(text["token_features"]),
            "text_embeds": torch.from_numpy(text["features"]),
        }
        if row["answer_start"] is not None:
            own = (row["answer_start"], row["answer_end"])
            others = [answer for answer in self._answers[row["clip_uid"], row["query"]] if answer != own]
            spans = torch.tensor([nearest_cells(cells, *answer) for answer in (own, *others)])
            item |= {"start_positions": spans[:, 0], "end_positions": spans[:, 1]}
        return item

    def _read(self, read, name: str):
        if self._kept is None:
            return read(name)
        key = (read.__name__, name)
        if key not in self._kept:
            self._kept[key] = read(name)
        return self._kept[key]

    def times(self, index: int, spans: Sequence[tuple[int, int]]) -> list[list[float]]:
        """Spans of cells (first, last) as seconds of the clip."""
        cells = self.cells(index)
        return [[float(cells[first, 0]), float(cells[last, 1])] for first, last in spans]

    def _cells_of(self, row: dict) -> tuple[int, np.ndarray]:
        """The index of the first cell of the clip in its video, and the cells of the clip in its seconds."""
        cells = self.folder.cells(row["video_uid"])
        # A cell that overlaps the clip only by a rounding error does not belong to it.
        inside = np.minimum(cells[:, 1], row["clip_end"]) - np.maximum(cells[:, 0], row["clip_start"]) > 1e-3
        if not inside.any():
            raise ValueError(
                f"Clip {row['clip_uid']!r} is [{row['clip_start']}, {row['clip_end']}) s of video "
                f"{row['video_uid']!r}, which has features for {cells[-1, 1]:.3f} s."
            )
        span = np.clip(cells[inside], row["clip_start"], row["clip_end"]) - row["clip_start"]
        return int(np.argmax(inside)), span


def nearest_cells(cells: np.ndarray, start: float, end: float) -> tuple[int, int]:
    """First and last cell of the span whose bounds are nearest to [start, end]; at least one cell."""
    first = int(np.abs(cells[:, 0] - start).argmin())
    return first, max(first, int(np.abs(cells[:, 1] - end).argmin()))


def collate_egonlq(items: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Items of [`EgoNLQFeatures`] → a padded batch with `video_mask` and `text_mask`."""
    batch = {}
    for name, mask in (("video_features", "video_mask"), ("text_features", "text_mask")):
        rows = [item[name] for item in items]
        batch[name] = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        batch[mask] = torch.arange(batch[name].shape[1]) < lengths[:, None]
    batch["text_embeds"] = torch.stack([item["text_embeds"] for item in items])
    if all("start_positions" in item for item in items):
        for name in ("start_positions", "end_positions"):
            rows = [torch.atleast_1d(item[name]) for item in items]
            batch[name] = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
    return batch
