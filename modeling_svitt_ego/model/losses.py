"""The pretraining objectives as pure functions of tensors.

Letters: b rows of this process, B rows over all processes. Rows of similarities are this process's items, columns
everyone's.
"""

import torch
import torch.nn.functional as F


def shared_action(
    verb_tags: torch.Tensor,
    noun_tags: torch.Tensor,
    all_verb_tags: torch.Tensor | None = None,
    all_noun_tags: torch.Tensor | None = None,
    first: int = 0,
) -> torch.Tensor:
    """
    Which clips count as positives of which: itself and all that share at least one verb **and** one noun (EgoVLP,
    arXiv:2206.01670).

    Args:
        verb_tags, noun_tags (`torch.Tensor` of shapes `(b, num_verbs)` and `(b, num_nouns)`): multi-hot taxonomy
            groups. A clip without tags is positive with itself only.
        all_verb_tags, all_noun_tags: the same of all processes, `(B, …)`; this process's by default.
        first (`int`): which of the B rows is this process's first.

    Returns:
        `torch.BoolTensor` of shape `(b, B)`.
    """
    all_verb_tags = verb_tags if all_verb_tags is None else all_verb_tags
    all_noun_tags = noun_tags if all_noun_tags is None else all_noun_tags
    verbs = verb_tags.float() @ all_verb_tags.float().T
    nouns = noun_tags.float() @ all_noun_tags.float().T
    return ((verbs > 0) & (nouns > 0)) | itself(verbs.shape[0], verbs.shape[1], first, verbs.device)


def itself(rows: int, columns: int, first: int = 0, device=None) -> torch.Tensor:
    """(b, B) mask of each row's own column."""
    own = torch.arange(rows, device=device) + first
    return own[:, None] == torch.arange(columns, device=device)


def info_nce(logits_per_video: torch.Tensor, logits_per_text: torch.Tensor, first: int = 0) -> torch.Tensor:
    """
    InfoNCE (arXiv:1807.03748) in both directions, summed (not halved) as EgoVLP does.

    Args:
        logits_per_video (`torch.Tensor` of shape `(b, B)`): similarity of this process's clips to all texts, divided
            by the temperature; clip i belongs to text `first + i`.
        logits_per_text (`torch.Tensor` of shape `(b, B)`): of this process's texts to all clips.
    """
    targets = torch.arange(logits_per_video.shape[0], device=logits_per_video.device) + first
    return F.cross_entropy(_wide(logits_per_video), targets) + F.cross_entropy(_wide(logits_per_text), targets)


def _wide(logits: torch.Tensor) -> torch.Tensor:
    """At least float32: sums of exponentials are not taken in half precision."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def ego_nce(
    logits_per_video: torch.Tensor,
    logits_per_text: torch.Tensor,
    positives: torch.Tensor,
    form: str = "log_sum",
) -> torch.Tensor:
    """
    EgoNCE (EgoVLP, arXiv:2206.01670): InfoNCE in which all clips of the same action are positives. The
    scene-aware negatives of that paper are rows of the batch like any other (data/sampling.py).

    The batch matters: each row is pushed from all B columns, and positives only help if the batch has some. Without
    shared actions it equals [`info_nce`].

    Args:
        logits_per_video, logits_per_text (`torch.Tensor` of shape `(b, B)`): as in [`info_nce`].
        positives (`torch.BoolTensor` of shape `(b, B)`): from [`shared_action`]; symmetric, so it serves both.
        form (`str`): `"log_sum"` is `-log sum_{j in P} softmax_j`, EgoVLP's; `"sup_con"` is
            `-mean_{j in P} log softmax_j` (SupCon, arXiv:2004.11362; HelpingHands and, halved, SViTT).

    Both are taken in float32 by logsumexp: `log(softmax * mask)` underflows in half precision.
    """
    return _one_direction(logits_per_video, positives, form) + _one_direction(logits_per_text, positives, form)


def _one_direction(logits: torch.Tensor, positives: torch.Tensor, form: str) -> torch.Tensor:
    logits = _wide(logits)
    if form == "log_sum":
        among_positives = logits.masked_fill(~positives, float("-inf")).logsumexp(-1)
        return (logits.logsumexp(-1) - among_positives).mean()
    if form == "sup_con":
        log_probabilities = logits.log_softmax(-1).masked_fill(~positives, 0.0)
        return -(log_probabilities.sum(-1) / positives.sum(-1)).mean()
    raise ValueError(f"form ('{form}') must be 'log_sum' or 'sup_con'.")


def sample_hard_negatives(
    logits: torch.Tensor, positives: torch.Tensor, generator: torch.Generator | None = None
) -> torch.Tensor:
    """
    For each row one column that is no positive, drawn with probability softmax(logits) among those (ALBEF,
    arXiv:2107.07651).

    Args:
        logits (`torch.Tensor` of shape `(rows, columns)`): similarity divided by the temperature.
        positives (`torch.BoolTensor` of the same shape).

    Returns:
        `torch.LongTensor` of shape `(rows,)`; -1 where every column is a positive.
    """
    weights = logits.detach().float().masked_fill(positives, float("-inf"))
    possible = ~positives.all(-1)
    weights = weights.masked_fill(~possible[:, None], 0.0).softmax(-1)  # exactly 0 for positives
    drawn = torch.multinomial(weights, 1, generator=generator).squeeze(1)
    return torch.where(possible, drawn, -1)


def video_text_matching(
    logits: torch.Tensor, labels: torch.Tensor, num_pairs: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Cross-entropy over the pairs, in float32 at least.

    Args:
        logits (`torch.Tensor` of shape `(pairs, 2)`).
        labels (`torch.LongTensor` of shape `(pairs,)`): 1 where clip and text belong together, 0 where they do not,
            -100 where the pair does not count. A `torch.FloatTensor` says how well they fit, in [0, 1].
        num_pairs (`torch.Tensor`, *optional*): divisor of the sum; by default the number of pairs that count.
    """
    if labels.is_floating_point():
        counted = labels != -100
        logits, shares = _wide(logits)[counted], torch.stack([1 - labels, labels], dim=-1)[counted]
        total = F.cross_entropy(logits, shares.to(logits.dtype), reduction="sum")
        return total / (counted.sum().clamp(min=1) if num_pairs is None else num_pairs)
    return _mean_cross_entropy(logits, labels, num_pairs)


def mask_tokens(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    mask_token_id: int,
    cls_token_id: int,
    vocab_size: int,
    probability: float,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    BERT's corruption (arXiv:1810.04805, section 3.1) as SViTT applies it: each token but padding and [CLS] is selected
    with `probability`; of the selected 80 % become [MASK], 10 % a random token, 10 % stay.

    Returns:
        The corrupted ids and the labels (-100 where not selected), both `(batch_size, sequence_length)`.
    """

    def draw(p: float) -> torch.Tensor:
        device = input_ids.device if generator is None else generator.device
        return (torch.rand(input_ids.shape, generator=generator, device=device) < p).to(input_ids.device)

    eligible = input_ids != cls_token_id
    if attention_mask is not None:
        eligible &= attention_mask.bool()
    selected = draw(probability) & eligible
    labels = input_ids.masked_fill(~selected, -100)
    masked = selected & draw(0.8)
    replaced = selected & ~masked & draw(0.5)
    device = input_ids.device if generator is None else generator.device
    anything = torch.randint(vocab_size, input_ids.shape, generator=generator, device=device).to(input_ids.device)
    corrupted = input_ids.masked_fill(masked, mask_token_id)
    return torch.where(replaced, anything, corrupted), labels


def masked_language_modeling(
    logits: torch.Tensor, labels: torch.Tensor, num_selected: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Cross-entropy over the selected tokens, in float32 at least.

    Args:
        logits (`torch.Tensor` of shape `(b, sequence_length, vocab_size)`).
        labels (`torch.LongTensor` of shape `(b, sequence_length)`): -100 where a token is not selected.
        num_selected (`torch.Tensor`, *optional*): divisor of the sum; by default the number of selected tokens.
    """
    return _mean_cross_entropy(logits.flatten(0, 1), labels.flatten(), num_selected)


def _mean_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, count: torch.Tensor | None) -> torch.Tensor:
    """The mean is taken over `count` terms, because the terms may be a share of a larger batch's."""
    total = F.cross_entropy(_wide(logits), labels, ignore_index=-100, reduction="sum")
    return total / ((labels != -100).sum().clamp(min=1) if count is None else count)
