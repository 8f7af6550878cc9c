"""EPIC-KITCHENS-100 multi-instance retrieval: clips against sentences by cosine, by dual softmax, or re-ranked."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from accelerate import Accelerator
from torch import nn

from ..data.epic_kitchens import load_epic_kitchens
from ..model.processing_svitt_ego import SViTTEgoProcessor
from .bootstrap import INTERVAL_RULE
from .ek100_metrics import ek100_intervals, ek100_per_query, ek100_relevance, ek100_retrieval
from .ek100_submission import write_submission
from .encoding import EncoderSettings
from .evaluator import ClipEvaluator
from .prompts import check_template
from .report import EvaluationReport
from .rescoring import dual_softmax, rerank, top_pairs

# Published tables mix these rules. Here, each rule is a mode with a name.
SCORING_RULES = {
    "dual": "cosine of the two towers' embeddings",
    "dual-softmax": "cosines, then softmax over the sentences times softmax over the clips of the whole test set",
    "rerank": "cosines; the {top_k} best of each ranking ordered by the matching head's log odds of a match",
}


@dataclass(frozen=True)
class EK100Scores:
    """
    Args:
        per_video (`np.ndarray` of shape `(num_clips, num_texts)`): ranks the sentences for each clip; -inf for a clip
            that could not be read.
        per_text (`np.ndarray` of shape `(num_texts, num_clips)`): ranks the clips for each sentence.
        failures (`list[dict]`): clips that could not be read.
    """

    per_video: np.ndarray
    per_text: np.ndarray
    failures: list[dict]


class EK100Evaluator(ClipEvaluator):
    """
    Scores a model on EK-100 multi-instance retrieval: `evaluator(model)` returns an [`EvaluationReport`].

    Args:
        csv: `EPIC_100_retrieval_test.csv`, the clips.
        sentence_csv: `EPIC_100_retrieval_test_sentence.csv`, the sentences.
        video_root: folder of the videos, in any known layout.
        processor ([`SViTTEgoProcessor`]): of the model.
        num_frames (`int`): frames per clip, the middle ones of as many segments.
        template (`str`): Prompt around a sentence, which replaces `{}`. The narrations of EgoClip begin with "#C C",
            those of EPIC-KITCHENS do not ("open door").
        scoring (`str`): `"dual"`, `"dual-softmax"` or `"rerank"`, see `SCORING_RULES`. The last needs a model with
            `match`, as [`SViTTEgoForVideoTextRetrieval`], and decodes the clips a second time.
        top_k (`int`): how many of each ranking are re-ranked.
        temperature (`float`): of the dual softmax.
        submission (`str`, *optional*): the challenge's file to write, with `supervision`, see [`write_submission`].
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
        scoring: str = "dual",
        top_k: int = 20,
        temperature: float = 0.05,
        submission: str | os.PathLike | None = None,
        supervision: Sequence[int] | None = None,
        accelerator: Accelerator | None = None,
        **fields,
    ):
        self.template = check_template(template, "")
        if scoring not in SCORING_RULES:
            raise ValueError(f"scoring ({scoring!r}) must be one of {', '.join(SCORING_RULES)}.")
        if top_k < 1 or temperature <= 0:
            raise ValueError(f"top_k ({top_k}) must be at least 1 and temperature ({temperature}) above 0.")
        if submission is not None and scoring == "rerank":
            raise ValueError(
                "The challenge takes one matrix, and re-ranking gives one for each direction: submit with "
                "scoring='dual' or 'dual-softmax'."
            )
        if submission is not None and supervision is None:
            raise ValueError("A submission declares its supervision: three levels, see write_submission.")
        self.scoring, self.top_k, self.temperature = scoring, top_k, temperature
        self.submission, self.supervision = submission, supervision
        clips, self.sentences = load_epic_kitchens(csv), load_epic_kitchens(csv, sentence_csv)
        self.classes, self.videos = clips.select_columns(["verb_class", "all_noun_classes"]), list(clips["video_uid"])
        self.clip_ids = list(clips["narration_id"])
        super().__init__(clips, video_root, processor, num_frames, settings, accelerator, **fields)

    def __call__(self, model: nn.Module) -> EvaluationReport:
        scores = self.scores(model)
        relevance = self.relevance()
        per_query = ek100_per_query(scores.per_video, relevance, scores.per_text)
        if self.submission is not None:
            self._submit(scores)
        settings = {"top_k": self.top_k} if self.scoring == "rerank" else {}
        settings |= {"temperature": self.temperature} if self.scoring == "dual-softmax" else {}
        return self.make_report(
            ek100_retrieval(scores.per_video, relevance, per_query),
            ek100_intervals(per_query, self.videos, list(self.sentences["video_uid"])),
            scores.failures,
            len(scores.failures),
            primary_metrics=["map", "ndcg"],
            interval_rule=INTERVAL_RULE.format(clusters="videos of the queries, gallery fixed"),
            num_items=len(self.dataset),
            scoring_mode=self.scoring,
            scoring_rule=SCORING_RULES[self.scoring].format(top_k=self.top_k),
            tie_rule="of equal scores the one that comes first in the file ranks first",
            details={
                "template": self.template,
                "relevance": "(verb classes equal + IoU of noun class sets) / 2, from the two csv files",
                **settings,
            },
        )

    def scores(self, model: nn.Module) -> EK100Scores:
        """Scores of all clips with all sentences, in the scoring mode of this evaluator."""
        if self.scoring == "rerank" and not hasattr(model, "match"):
            raise ValueError(
                f"scoring='rerank' needs a model with a matching head, such as SViTTEgoForVideoTextRetrieval; "
                f"{type(model).__name__} has none."
            )
        clips = self.encoder.clips(model, self.dataset, desc="EK-100")
        sentences = [self.template.format(text) for text in self.sentences["clip_text"]]
        scores = clips.embeds @ self.encoder.texts(model, sentences).T
        scores[clips.failed] = -np.inf
        if self.scoring == "dual":
            return EK100Scores(scores, scores.T, clips.failures)
        if self.scoring == "dual-softmax":
            scores = dual_softmax(scores, self.temperature)
            return EK100Scores(scores, scores.T, clips.failures)
        pairs = top_pairs(scores, self.top_k)
        matches = self.encoder.clips(model, self.dataset, texts=sentences, pairs=pairs, desc="re-ranking")
        odds = np.full(scores.shape, np.nan)
        odds[tuple(pairs.T)] = matches.match_logits
        return EK100Scores(rerank(scores, odds, self.top_k), rerank(scores.T, odds.T, self.top_k), clips.failures)

    def _submit(self, scores: EK100Scores) -> None:
        if self.accelerator is None or self.accelerator.is_main_process:
            names = self.clip_ids, list(self.sentences["narration_id"])
            write_submission(self.submission, scores.per_video, *names, self.supervision)

    def relevance(self) -> np.ndarray:
        """Relevance of each sentence for each clip, `(num_clips, num_texts)` in [0, 1]."""
        return ek100_relevance(
            list(self.classes["verb_class"]),
            list(self.classes["all_noun_classes"]),
            list(self.sentences["verb_class"]),
            list(self.sentences["all_noun_classes"]),
        )
