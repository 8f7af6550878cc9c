"""EgoMCQ: every clip is decoded once and every text is embedded once; the best of five scores answers a question."""

import os

import numpy as np
from accelerate import Accelerator
from torch import nn

from ..data.egomcq import EgoMCQClips, load_egomcq
from ..model.processing_svitt_ego import SViTTEgoProcessor
from .bootstrap import INTERVAL_RULE
from .egomcq_metrics import TIE_RULE, egomcq_accuracy, egomcq_intervals
from .encoding import EncoderSettings
from .evaluator import ClipEvaluator
from .report import EvaluationReport

CHANCE = 20.0  # per cent: one of five
# Published tables mix these rules. Here, each rule is a mode with a name.
SCORING_RULES = {
    "dual": "cosine of the two towers' embeddings",
    "fusion": "log odds of a match from the matching head, for each of the five clips with the question",
    # EgoVLPv2 (arXiv:2307.05463) adds the same two.
    "ensemble": "cosine of the two towers' embeddings plus the matching head's probability of a match",
}


class EgoMCQEvaluator(ClipEvaluator):
    """
    Scores a model on EgoMCQ (EgoVLP, arXiv:2206.01670): `evaluator(model)` returns an [`EvaluationReport`].

    ```python
    evaluator = EgoMCQEvaluator("egomcq.json", "videos", processor, num_frames=4, batch_size=64)
    report = evaluator(model)
    report.metrics["intra"]                                  # per cent
    evaluator.with_settings(frame_order="shuffled")(model)   # a control: how much does the order of the frames matter?
    ```

    Args:
        json_path: `egomcq.json`.
        video_root: folder of the videos, in any known layout.
        processor ([`SViTTEgoProcessor`]): of the model.
        num_frames (`int`): frames per clip, the middle ones of as many segments.
        scoring (`str`): `"dual"`, `"fusion"` or `"ensemble"`, see `SCORING_RULES`. All but the first need a model with
            `match`, as [`SViTTEgoForVideoTextRetrieval`].
        settings ([`EncoderSettings`], *optional*): how clips are read and embedded.
        accelerator (`Accelerator`, *optional*): divides the clips over its processes; each clip counts once.
        fields: single fields of the settings, such as `batch_size=8`.
    """

    benchmark = "egomcq"
    primary_metric = "intra"

    def __init__(
        self,
        json_path: str | os.PathLike,
        video_root: str | os.PathLike,
        processor: SViTTEgoProcessor,
        num_frames: int,
        settings: EncoderSettings | None = None,
        *,
        scoring: str = "dual",
        accelerator: Accelerator | None = None,
        **fields,
    ):
        if scoring not in SCORING_RULES:
            raise ValueError(f"scoring ({scoring!r}) must be one of {', '.join(SCORING_RULES)}.")
        self.questions = EgoMCQClips(load_egomcq(json_path))
        self.scoring = scoring
        super().__init__(self.questions.clips, video_root, processor, num_frames, settings, accelerator, **fields)

    def __call__(self, model: nn.Module) -> EvaluationReport:
        scores, failures = self.scores(model)
        questions = self.questions
        videos = np.array(self.dataset.table["video_uid"])
        right = videos[questions.choices[np.arange(len(questions)), questions.answers]]
        return self.make_report(
            egomcq_accuracy(scores, questions.answers, questions.is_intra),
            egomcq_intervals(scores, questions.answers, questions.is_intra, right),
            failures,
            int(np.isneginf(scores).all(axis=1).sum()),
            primary_metrics=["inter", "intra"],
            interval_rule=INTERVAL_RULE.format(clusters="videos of the right clips"),
            num_items=len(questions),
            scoring_mode=self.scoring,
            scoring_rule=SCORING_RULES[self.scoring],
            tie_rule=TIE_RULE,
        )

    def scores(self, model: nn.Module) -> tuple[np.ndarray, list[dict]]:
        """
        Returns:
            `np.ndarray` of shape `(num_questions, 5)`, and the clips that could not be read. All scores of a question
            with such a clip are -inf, and it counts as wrong.
        """
        if self.scoring != "dual" and not hasattr(model, "match"):
            raise ValueError(
                f"scoring={self.scoring!r} needs a model with a matching head, such as SViTTEgoForVideoTextRetrieval; "
                f"{type(model).__name__} has none."
            )
        questions = self.questions
        pairs = None
        if self.scoring != "dual":
            pairs = np.stack(
                [questions.choices, np.broadcast_to(questions.text_of[:, None], questions.choices.shape)], -1
            )
            pairs, pair_of = np.unique(pairs.reshape(-1, 2), axis=0, return_inverse=True)
            pair_of = pair_of.reshape(questions.choices.shape)
        clips = self.encoder.clips(model, self.dataset, texts=questions.texts, pairs=pairs, desc="EgoMCQ")
        scores = np.zeros(questions.choices.shape)
        if self.scoring != "fusion":
            texts = self.encoder.texts(model, questions.texts)
            scores += np.einsum("qd,qcd->qc", texts[questions.text_of], clips.embeds[questions.choices])
        if self.scoring == "fusion":
            scores += clips.match_logits[pair_of]
        elif self.scoring == "ensemble":
            scores += 1 / (1 + np.exp(-clips.match_logits[pair_of].astype(np.float64)))
        scores[clips.failed[questions.choices].any(axis=1)] = -np.inf
        return scores, clips.failures
