"""Labelled clips from the files that benchmarks publish; which one it is, is told from its header."""

import csv
import os
from pathlib import Path

import datasets
import numpy as np

from .charades_ego import load_charades_ego
from .egoclip import load_egoclip
from .egtea import load_egtea
from .epic_kitchens import load_epic_kitchens
from .labelled_clips import LabelledClips
from .taxonomy import read_taxonomy

LABEL_COLUMNS = ("video_uid", "clip_start", "clip_end", "label")


def load_labelled_clips(path: str | os.PathLike) -> LabelledClips:
    """
    Clips and their classes, from `egoclip.csv` (rows with one verb and one noun tag), from EPIC-KITCHENS'
    `EPIC_100_validation.csv`, from EGTEA Gaze+'s `test_split1.txt`, from Charades-Ego's
    `CharadesEgo_v1_test_only1st.csv` (by video), or from a csv with the columns video_uid, clip_start, clip_end
    (seconds) and label.
    """
    path = os.fspath(path)
    if path.lower().endswith(".txt"):
        return load_egtea(path)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            first = file.readline().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path!r} is not UTF-8 text: {error}.") from None
    if {"clip_text", "tag_verb", "tag_noun"} <= set(first.split("\t")):
        table = load_egoclip(path, strict=True, num_verbs=None, num_nouns=None)
        verbs, nouns = list(table["tag_verb"]), list(table["tag_noun"])
        kept = [i for i, (verb, noun) in enumerate(zip(verbs, nouns)) if len(verb) == len(noun) == 1]
        if not kept:
            raise ValueError(f"{path!r} has no row with exactly one verb and one noun tag, of {len(table)}.")
        classes = {"verb": np.array([verbs[i][0] for i in kept]), "noun": np.array([nouns[i][0] for i in kept])}
        return LabelledClips(_places(table.select(kept)), classes, num_left_out=len(table) - len(kept))
    header = next(csv.reader([first]), [])
    if "narration_id" in header:
        table = load_epic_kitchens(path)
        classes = {"verb": np.array(table["verb_class"]), "noun": np.array(table["noun_class"])}
        return LabelledClips(_places(table), classes, names=_epic_names(path), benchmark="ek100-cls")
    if {"id", "actions", "length"} <= set(header):
        return load_charades_ego(path)
    if set(LABEL_COLUMNS) <= set(header):
        return _read_labels(path)
    raise ValueError(
        f"{path!r} is not an egoclip.csv, an EPIC-KITCHENS csv, a Charades-Ego csv or a csv with "
        f"{', '.join(LABEL_COLUMNS)}; its header is {first[:200]!r}."
    )


def _places(table: datasets.Dataset) -> datasets.Dataset:
    return table.select_columns(["video_uid", "clip_start", "clip_end"])


def _epic_names(path: str) -> dict[str, list[str]]:
    """Class names of EPIC-KITCHENS' lists, published in the same folder as the annotations; empty without them."""
    files = {kind: Path(path).parent / f"EPIC_100_{kind}_classes.csv" for kind in ("verb", "noun")}
    if not all(file.is_file() for file in files.values()):
        return {}
    return {kind: list(read_taxonomy(file).labels) for kind, file in files.items()}


def _read_labels(path: str) -> LabelledClips:
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError(f"{path!r} has a header but no rows.")
    clips = []
    for number, row in enumerate(rows, start=2):
        try:
            place = {"video_uid": row["video_uid"], **{k: float(row[k]) for k in ("clip_start", "clip_end")}}
        except (TypeError, ValueError):
            raise ValueError(f"{path!r}, line {number}: clip_start and clip_end must be seconds.") from None
        if not row["label"] or not row["label"].strip():
            raise ValueError(f"{path!r}, line {number}: the label is empty.")
        clips.append(place)
    names = sorted({row["label"].strip() for row in rows})
    labels = np.array([names.index(row["label"].strip()) for row in rows])
    return LabelledClips(datasets.Dataset.from_list(clips), {"label": labels}, names)
