"""EgoMCQ: every clip is decoded once and every text embedded once, then five scores per question decide."""

import os

import numpy as np
from accelerate import Accelerator

from ..data.clips import EgoClipDataset
from ..data.egomcq import EgoMCQClips, load_egomcq
from ..data.layouts import VideoStore
from .bootstrap import INTERVAL_RULE
from .egomcq_metrics import TIE_RULE, egomcq_accuracy, egomcq_intervals
from .encoding import Encoder, describe_crop, describe_failures, describe_window, one_thread, wrong_order
from .report import EvaluationReport

CHANCE = 20.0  # per cent: one of five
# Published tables mix these; here each is a mode by name.
SCORING_RULES = {
    "dual": "cosine of the two towers' embeddings",
    "fusion": "log odds of a match from the matching head, for each of the five clips with the question",
    # EgoVLPv2 (arXiv:2307.05463) adds the same two.
    "ensemble": "cosine of the two towers' embeddings plus the matching head's probability of a match",
}


class EgoMCQEvaluator:
    """
    Scores a model on EgoMCQ: `evaluator(model)` → metrics, `evaluator.report(model)` → [`EvaluationReport`].

    Args:
        json_path: `egomcq.json`.
        video_root: where the videos lie, in any known layout.
        processor ([`SViTTEgoProcessor`]): of the model.
        num_frames (`int`): frames per clip, the middle ones of as many segments.
        batch_size (`int`): clips embedded at once.
        num_workers (`int`): processes that decode clips.
        accelerator (`Accelerator`, *optional*): shards the clips over its processes; each is counted once.
        scoring (`str`): `"dual"`, `"fusion"` or `"ensemble"`, see `SCORING_RULES`. All but the first need a model with
            `match`, as [`SViTTEgoForVideoTextRetrieval`].
        on_error (`str`): `"raise"` at a clip that cannot be read, or `"wrong"`: its questions count as wrong.
        cache (`str`, *optional*): folder for embeddings, see [`Encoder`].
        layout (`str`, *optional*): of the videos; found by looking otherwise.
    """

    primary_metric = "intra"

    def __init__(
        self,
        json_path: str | os.PathLike,
        video_root: str | os.PathLike,
        processor,
        num_frames: int,
        batch_size: int = 32,
        num_workers: int = 0,
        accelerator: Accelerator | None = None,
        scoring: str = "dual",
        on_error: str = "raise",
        cache: str | os.PathLike | None = None,
        layout: str | None = None,
    ):
        if scoring not in SCORING_RULES:
            raise ValueError(f"scoring ({scoring!r}) must be one of {', '.join(SCORING_RULES)}.")
        self.questions = EgoMCQClips(load_egomcq(json_path))
        self.processor = processor
        self.num_frames = num_frames
        self.scoring = scoring
        self.encoder = Encoder(processor, batch_size, num_workers, accelerator, on_error, cache)
        self.dataset = EgoClipDataset(
            self.questions.clips, VideoStore(video_root, layout), num_frames=num_frames, sampling="middle"
        )

    @property
    def accelerator(self) -> Accelerator | None:
        return self.encoder.accelerator

    @accelerator.setter
    def accelerator(self, accelerator: Accelerator | None) -> None:
        self.encoder.accelerator = accelerator

    def __call__(self, model, shuffle_frames: bool = False, desc: str = "EgoMCQ") -> dict:
        """
        Args:
            model: with `get_video_features` and `get_text_features`.
            shuffle_frames (`bool`): put the frames of each clip into a wrong order (never the right one), seeded: what
                is lost is what the model owes to time.

        Returns:
            The metrics of [`egomcq_accuracy`], `num_frames` and `scoring`.
        """
        scores, _ = self.scores(model, shuffle_frames, desc)
        metrics = egomcq_accuracy(scores, self.questions.answers, self.questions.is_intra)
        return metrics | {"num_frames": self.num_frames, "scoring": self.scoring}

    def scores(self, model, shuffle_frames: bool = False, desc: str = "EgoMCQ") -> tuple[np.ndarray, list[dict]]:
        """
        Returns:
            `np.ndarray` of shape `(num_questions, 5)`, and the clips that could not be read. A question with such a
            clip has -inf throughout, which counts as wrong.
        """
        if self.scoring != "dual" and not hasattr(model, "match"):
            raise ValueError(
                f"scoring={self.scoring!r} needs a model with a matching head, such as SViTTEgoForVideoTextRetrieval; "
                f"{type(model).__name__} has none."
            )
        questions, encoder = self.questions, self.encoder
        pairs = None
        if self.scoring != "dual":
            pairs = np.stack(
                [questions.choices, np.broadcast_to(questions.text_of[:, None], questions.choices.shape)], -1
            )
            pairs, pair_of = np.unique(pairs.reshape(-1, 2), axis=0, return_inverse=True)
            pair_of = pair_of.reshape(questions.choices.shape)
        was_training = model.training
        model.eval()
        try:
            clips = encoder.clips(
                model,
                self.dataset,
                shuffle_frames=shuffle_frames,
                texts=questions.texts,
                pairs=pairs,
                desc=desc,
            )
            if self.scoring != "fusion":
                texts = encoder.texts(model, questions.texts)
        finally:
            model.train(was_training)
        scores = np.zeros(questions.choices.shape)
        if self.scoring != "fusion":
            scores += np.einsum("qd,qcd->qc", texts[questions.text_of], clips.embeds[questions.choices])
        if self.scoring == "fusion":
            scores += clips.match_logits[pair_of]
        elif self.scoring == "ensemble":
            scores += 1 / (1 + np.exp(-clips.match_logits[pair_of].astype(np.float64)))
        scores[clips.failed[questions.choices].any(axis=1)] = -np.inf
        return scores, clips.failures

    def report(self, model, shuffle_frames: bool = False, dataset: str | None = None) -> EvaluationReport:
        """The whole record, without its origin (see [`EvaluationReport.with_origin`])."""
        scores, failures = self.scores(model, shuffle_frames)
        questions = self.questions
        videos = np.array(self.dataset.table["video_uid"])
        right = videos[questions.choices[np.arange(len(questions)), questions.answers]]
        return EvaluationReport.of_numbers(
            "egomcq",
            egomcq_accuracy(scores, questions.answers, questions.is_intra),
            ["inter", "intra"],
            egomcq_intervals(scores, questions.answers, questions.is_intra, right),
            interval_rule=INTERVAL_RULE.format(clusters="videos of the right clips"),
            num_items=len(questions),
            num_frames=self.num_frames,
            scoring_mode=self.scoring,
            scoring_rule=SCORING_RULES[self.scoring],
            crop=describe_crop(self.processor),
            window_rule=describe_window(self.num_frames),
            tie_rule=TIE_RULE,
            failures=describe_failures(failures, int(np.isneginf(scores).all(axis=1).sum()), self.encoder.on_error),
            dataset=dataset,
            condition="frames shuffled" if shuffle_frames else None,
        )


__all__ = ["CHANCE", "EgoMCQEvaluator", "SCORING_RULES", "one_thread", "wrong_order"]
