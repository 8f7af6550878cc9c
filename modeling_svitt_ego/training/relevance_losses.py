"""Losses for retrieval in which a text fits a clip in part: EPIC-KITCHENS-100 multi-instance retrieval.

Pure functions of tensors. Letters as in model/losses.py: b rows of this process, B rows over all processes.
`per_video` (b, B) compares this process's clips with everyone's texts, `per_text` (b, B) its texts with everyone's
clips; clip i belongs to text `first + i`. Relevance in [0, 1] has the same layout. The margin losses take cosines, the
other takes cosines over temperature.

They are taken in float32 at least, and each is a mean over the rows given: the mean of the losses of equal slices of
the rows is the loss of all rows, as gradient caching needs it.
"""

import torch

from ..model.losses import itself
from ..model.objective_base import at_least_float32

SAME_RELEVANCE = 0.005  # closer than this two relevances are equal: they are sums of fractions of small sets


def tag_relevance(
    verb_tags: torch.Tensor,
    noun_tags: torch.Tensor,
    text_verb_tags: torch.Tensor | None = None,
    text_noun_tags: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Relevance of texts for clips: half the IoU of the verb class sets plus half the IoU of the noun class sets
    (EPIC-KITCHENS-100, arXiv:2006.13256). The same as `evaluation.ek100_metrics.ek100_relevance`, of a batch.

    Two empty sets share nothing that could be told: their IoU is 0.

    Args:
        verb_tags, noun_tags (`torch.Tensor` of shapes `(rows, num_verbs)` and `(rows, num_nouns)`): multi-hot, of the
            clips.
        text_verb_tags, text_noun_tags: of the texts, `(columns, …)`; those of the clips by default.

    Returns:
        `torch.FloatTensor` of shape `(rows, columns)`, in [0, 1].
    """
    text_verb_tags = verb_tags if text_verb_tags is None else text_verb_tags
    text_noun_tags = noun_tags if text_noun_tags is None else text_noun_tags
    return (_overlap(verb_tags, text_verb_tags) + _overlap(noun_tags, text_noun_tags)) / 2


def _overlap(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Intersection over union of multi-hot sets, `(rows, columns)`."""
    rows, columns = at_least_float32(rows), at_least_float32(columns)
    shared = rows @ columns.T
    union = rows.sum(1)[:, None] + columns.sum(1)[None, :] - shared
    return shared / union.clamp(min=1)


def adaptive_max_margin(
    per_video: torch.Tensor,
    per_text: torch.Tensor,
    relevance_per_video: torch.Tensor,
    relevance_per_text: torch.Tensor,
    margin: float = 0.2,
    scaled_by: str = "negative",
    first: int = 0,
) -> torch.Tensor:
    """
    Adaptive multi-instance max-margin (MI-MM): the own text must score higher than every other by a margin, and the
    margin is smaller where the other text fits as well.

    `mean over i != j of relu(margin * scale - s_ii + s_ij)`, in both directions. Without scale it is MI-MM (JPoSE,
    arXiv:1908.03477): it also pushes away texts that say the same, which is wrong for most batches of EK-100.

    Args:
        per_video, per_text (`torch.Tensor` of shape `(b, B)`): cosines.
        relevance_per_video, relevance_per_text (`torch.Tensor` of shape `(b, B)`): from [`tag_relevance`].
        margin (`float`): 0.2 to 0.4 in published work, as a difference of cosines.
        scaled_by (`str`): `"negative"` scales by 1 minus the relevance of the other text (relevance margin,
            arXiv:2203.08688); `"positive"` by the relevance of the own text, which is below 1 where the text was drawn
            among the relevant ones (what EgoVLP, LaViLa and AVION run under the name adaptive MI-MM).
    """
    if scaled_by not in ("negative", "positive"):
        raise ValueError(f"scaled_by ('{scaled_by}') must be 'negative' or 'positive'.")

    def one_direction(scores: torch.Tensor, relevance: torch.Tensor) -> torch.Tensor:
        own, gap = _gap_to_own(scores, first)
        scale = 1 - relevance if scaled_by == "negative" else _own(relevance, own)[:, None]
        return _mean_of_others(torch.relu(margin * scale - gap), own)

    return (one_direction(per_video, relevance_per_video) + one_direction(per_text, relevance_per_text)) / 2


def symmetric_multi_similarity(
    per_video: torch.Tensor,
    per_text: torch.Tensor,
    relevance_per_video: torch.Tensor,
    relevance_per_text: torch.Tensor,
    margin: float = 0.6,
    threshold: float = 0.1,
    first: int = 0,
) -> torch.Tensor:
    """
    Symmetric multi-similarity, SMS (arXiv:2406.12256; EVA02-AT, arXiv:2506.14356).

    Scores must differ in proportion to how relevances differ. With `R = relevance_ii - relevance_ij` and
    `d = s_ii - s_ij`, each pair i != j costs

        relu(margin R - d)             where the own text fits better (R > 0),
        relu(|d| - threshold)          where both fit equally well: their scores may differ a little, no more,
        relu(d - margin R)             where the other text fits better (R < 0): then it must score higher.

    The last case occurs where the own text was drawn among the relevant ones. The mean is over all pairs of both
    directions.

    Args:
        per_video, per_text (`torch.Tensor` of shape `(b, B)`): cosines.
        relevance_per_video, relevance_per_text (`torch.Tensor` of shape `(b, B)`): from [`tag_relevance`].
        margin (`float`): difference of cosines that a difference of 1 in relevance asks for.
        threshold (`float`): by how much the cosines of equally relevant texts may differ.
    """

    def one_direction(scores: torch.Tensor, relevance: torch.Tensor) -> torch.Tensor:
        own, gap = _gap_to_own(scores, first)
        better = _own(relevance, own)[:, None] - relevance  # R
        short = margin * better - gap
        equal = torch.relu(gap.abs() - threshold)
        cost = torch.where(better > 0, torch.relu(short), torch.relu(-short))
        return _mean_of_others(torch.where(better.abs() < SAME_RELEVANCE, equal, cost), own)

    return (one_direction(per_video, relevance_per_video) + one_direction(per_text, relevance_per_text)) / 2


def soft_info_nce(
    logits_per_video: torch.Tensor,
    logits_per_text: torch.Tensor,
    relevance_per_video: torch.Tensor,
    relevance_per_text: torch.Tensor,
    threshold: float = 0.1,
    first: int = 0,
) -> torch.Tensor:
    """
    InfoNCE with soft targets: the cross-entropy with a distribution over the texts in proportion to their relevance,
    both directions summed as in [`~losses.info_nce`].

    Without a second relevant text in the batch it equals InfoNCE.

    Args:
        logits_per_video, logits_per_text (`torch.Tensor` of shape `(b, B)`): cosines over temperature.
        relevance_per_video, relevance_per_text (`torch.Tensor` of shape `(b, B)`): from [`tag_relevance`].
        threshold (`float`): texts of at most this relevance are no targets.
    """

    def one_direction(logits: torch.Tensor, relevance: torch.Tensor) -> torch.Tensor:
        logits = at_least_float32(logits)
        weights = relevance.to(logits.dtype) * (relevance > threshold)
        own = itself(*logits.shape, first=first, device=logits.device)
        weights = torch.where(own & (weights == 0), 1.0, weights)  # a pair without classes still belongs together
        weights = weights / weights.sum(1, keepdim=True)
        return -(weights * logits.log_softmax(1)).sum(1).mean()

    return one_direction(logits_per_video, relevance_per_video) + one_direction(logits_per_text, relevance_per_text)


def _gap_to_own(scores: torch.Tensor, first: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The mask of the own columns, and s_ii - s_ij, both `(b, B)`."""
    if scores.shape[1] < 2:
        raise ValueError("A margin loss compares a pair with others: the batch needs at least 2 rows.")
    scores = at_least_float32(scores)
    own = itself(*scores.shape, first=first, device=scores.device)
    return own, _own(scores, own)[:, None] - scores


def _own(values: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """The value of each row's own column, `(b,)`."""
    return (values * own).sum(1)


def _mean_of_others(costs: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    return costs.masked_fill(own, 0.0).sum() / (costs.shape[0] * (costs.shape[1] - 1))


__all__ = ["adaptive_max_margin", "soft_info_nce", "symmetric_multi_similarity", "tag_relevance"]
