"""EPIC-KITCHENS-100 multi-instance retrieval, zero-shot: clips against sentences by the dual encoder's cosine."""

import os

import numpy as np

from ..data.clips import EgoClipDataset
from ..data.epic_kitchens import load_epic_kitchens
from ..data.layouts import VideoStore
from .bootstrap import INTERVAL_RULE
from .ek100_metrics import ek100_intervals, ek100_per_query, ek100_relevance, ek100_retrieval
from .encoding import Encoder, describe_crop, describe_failures, describe_window
from .report import EvaluationReport


class EK100Evaluator:
    """
    Args:
        csv: `EPIC_100_retrieval_test.csv`, the clips.
        sentence_csv: `EPIC_100_retrieval_test_sentence.csv`, the sentences.
        video_root: where the videos lie, in any known layout.
        processor ([`SViTTEgoProcessor`]): of the model.
        num_frames (`int`): frames per clip, the middle ones of as many segments.
        template (`str`): what is made of a sentence before it is embedded, with `{}` for it. EgoClip's narrations
            begin with "#C C", EPIC-KITCHENS' are bare ("open door").
        layout (`str`, *optional*): of the videos; found by looking otherwise.
        encoder: settings of [`Encoder`].
    """

    def __init__(
        self,
        csv: str | os.PathLike,
        sentence_csv: str | os.PathLike,
        video_root: str | os.PathLike,
        processor,
        num_frames: int,
        template: str = "{}",
        layout: str | None = None,
        **encoder,
    ):
        if "{}" not in template:
            raise ValueError(f"template ({template!r}) has no place {{}} for the sentence.")
        clips, self.sentences = load_epic_kitchens(csv), load_epic_kitchens(csv, sentence_csv)
        self.classes, self.videos = clips.select_columns(["verb_class", "all_noun_classes"]), list(clips["video_uid"])
        self.processor = processor
        self.num_frames = num_frames
        self.template = template
        self.encoder = Encoder(processor, **encoder)
        self.dataset = EgoClipDataset(clips, VideoStore(video_root, layout), num_frames=num_frames, sampling="middle")

    def scores(self, model) -> tuple[np.ndarray, list[dict]]:
        """Cosines `(num_clips, num_texts)`, -inf for a clip that could not be read; and those clips."""
        clips = self.encoder.clips(model, self.dataset, desc="EK-100")
        texts = self.encoder.texts(model, [self.template.format(text) for text in self.sentences["clip_text"]])
        scores = clips.embeds @ texts.T
        scores[clips.failed] = -np.inf
        return scores, clips.failures

    def report(self, model, dataset: str | None = None) -> EvaluationReport:
        """The whole record, without its origin."""
        scores, failures = self.scores(model)
        relevance = ek100_relevance(
            list(self.classes["verb_class"]),
            list(self.classes["all_noun_classes"]),
            list(self.sentences["verb_class"]),
            list(self.sentences["all_noun_classes"]),
        )
        per_query = ek100_per_query(scores, relevance)
        return EvaluationReport.of_numbers(
            "ek100",
            ek100_retrieval(scores, relevance, per_query),
            ["map", "ndcg"],
            ek100_intervals(per_query, self.videos, list(self.sentences["video_uid"])),
            interval_rule=INTERVAL_RULE.format(clusters="videos of the queries, gallery fixed"),
            num_items=len(self.dataset),
            num_frames=self.num_frames,
            scoring_mode="dual",
            scoring_rule="cosine of the two towers' embeddings",
            crop=describe_crop(self.processor),
            window_rule=describe_window(self.num_frames),
            tie_rule="of equal scores the one that comes first in the file ranks first",
            failures=describe_failures(failures, len(failures), self.encoder.on_error),
            dataset=dataset,
            details={
                "template": self.template,
                "relevance": "(verb classes equal + IoU of noun class sets) / 2, from the two csv files",
            },
        )
