"""EPIC-KITCHENS-100 multi-instance retrieval, zero-shot: clips against sentences by the dual encoder's cosine."""

import os

import numpy as np
from accelerate import Accelerator
from torch import nn

from ..data.epic_kitchens import load_epic_kitchens
from ..model.processing_svitt_ego import SViTTEgoProcessor
from .bootstrap import INTERVAL_RULE
from .ek100_metrics import ek100_intervals, ek100_per_query, ek100_relevance, ek100_retrieval
from .encoding import EncoderSettings
from .evaluator import ClipEvaluator
from .prompts import check_template
from .report import EvaluationReport


class EK100Evaluator(ClipEvaluator):
    """
    Scores a model on EK-100 multi-instance retrieval: `evaluator(model)` returns an [`EvaluationReport`].

    Args:
        csv: `EPIC_100_retrieval_test.csv`, the clips.
        sentence_csv: `EPIC_100_retrieval_test_sentence.csv`, the sentences.
        video_root: folder of the videos, in any known layout.
        processor ([`SViTTEgoProcessor`]): of the model.
        num_frames (`int`): frames per clip, the middle ones of as many segments.
        template (`str`): what is made of a sentence before it is embedded, with `{}` for it. EgoClip's narrations
            begin with "#C C", EPIC-KITCHENS' are bare ("open door").
        settings, accelerator, fields: as in [`ClipEvaluator`].
    """

    benchmark = "ek100"
    primary_metric = "map"

    def __init__(
        self,
        csv: str | os.PathLike,
        sentence_csv: str | os.PathLike,
        video_root: str | os.PathLike,
        processor: SViTTEgoProcessor,
        num_frames: int,
        settings: EncoderSettings | None = None,
        *,
        template: str = "{}",
        accelerator: Accelerator | None = None,
        **fields,
    ):
        self.template = check_template(template, "")
        clips, self.sentences = load_epic_kitchens(csv), load_epic_kitchens(csv, sentence_csv)
        self.classes, self.videos = clips.select_columns(["verb_class", "all_noun_classes"]), list(clips["video_uid"])
        super().__init__(clips, video_root, processor, num_frames, settings, accelerator, **fields)

    def __call__(self, model: nn.Module) -> EvaluationReport:
        scores, failures = self.scores(model)
        relevance = self.relevance()
        per_query = ek100_per_query(scores, relevance)
        return self.make_report(
            ek100_retrieval(scores, relevance, per_query),
            ek100_intervals(per_query, self.videos, list(self.sentences["video_uid"])),
            failures,
            len(failures),
            primary_metrics=["map", "ndcg"],
            interval_rule=INTERVAL_RULE.format(clusters="videos of the queries, gallery fixed"),
            num_items=len(self.dataset),
            scoring_mode="dual",
            scoring_rule="cosine of the two towers' embeddings",
            tie_rule="of equal scores the one that comes first in the file ranks first",
            details={
                "template": self.template,
                "relevance": "(verb classes equal + IoU of noun class sets) / 2, from the two csv files",
            },
        )

    def scores(self, model: nn.Module) -> tuple[np.ndarray, list[dict]]:
        """Cosines `(num_clips, num_texts)`, -inf for a clip that could not be read; and those clips."""
        clips = self.encoder.clips(model, self.dataset, desc="EK-100")
        texts = self.encoder.texts(model, [self.template.format(text) for text in self.sentences["clip_text"]])
        scores = clips.embeds @ texts.T
        scores[clips.failed] = -np.inf
        return scores, clips.failures

    def relevance(self) -> np.ndarray:
        """How well each sentence fits each clip, `(num_clips, num_texts)` in [0, 1]."""
        return ek100_relevance(
            list(self.classes["verb_class"]),
            list(self.classes["all_noun_classes"]),
            list(self.sentences["verb_class"]),
            list(self.sentences["all_noun_classes"]),
        )
