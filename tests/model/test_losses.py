"""The objectives against their definitions."""

import pytest
import torch

from modeling_svitt_ego.model.losses import (
    ego_nce,
    info_nce,
    itself,
    mask_tokens,
    masked_language_modeling,
    sample_hard_negatives,
    shared_action,
    video_text_matching,
)


def make_logits(rows=7, columns=7, temperature=0.07, dtype=torch.float64):
    torch.manual_seed(0)
    cosines = torch.rand(rows, columns, dtype=torch.float64) * 2 - 1
    other = torch.rand(rows, columns, dtype=torch.float64) * 2 - 1
    return (cosines / temperature).to(dtype).requires_grad_(), (other / temperature).to(dtype).requires_grad_()


def some_positives(rows=7):
    verbs = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1], [0, 0, 0], [0, 1, 0]])[:rows]
    nouns = torch.tensor([[1, 0], [1, 0], [0, 1], [0, 1], [0, 1], [1, 1], [1, 0]])[:rows]
    return verbs, nouns


def test_clips_that_share_a_verb_and_a_noun_are_positives():
    """Catches "or" for "and", tags matched across kinds, and a clip without tags losing itself."""
    verbs, nouns = some_positives()
    expected = torch.eye(7, dtype=torch.bool)
    for i, j in ((0, 1), (3, 4), (1, 6)):
        expected[i, j] = expected[j, i] = True
    assert torch.equal(shared_action(verbs, nouns), expected)
    part = shared_action(verbs[2:5], nouns[2:5], verbs, nouns, first=2)
    assert torch.equal(part, expected[2:5])
    assert torch.equal(itself(2, 5, first=3), torch.eye(5, dtype=torch.bool)[3:])


@pytest.mark.parametrize("form", ["log_sum", "sup_con"])
def test_ego_nce_equals_info_nce_without_shared_actions(form):
    """Catches a positive too many, and a direction counted once or halved."""
    logits = make_logits()
    positives = torch.eye(7, dtype=torch.bool)
    ours, plain = ego_nce(*logits, positives, form), info_nce(*logits)
    torch.testing.assert_close(ours, plain)
    for a, b in zip(torch.autograd.grad(ours, logits), torch.autograd.grad(plain, logits)):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("form", ["log_sum", "sup_con"])
def test_ego_nce_equals_a_naive_double_precision_loop(form):
    """Catches a wrong sum over positives, in value and in gradient."""
    logits = make_logits()
    positives = shared_action(*some_positives())
    loops = 0.0
    for direction in logits:
        rows = []
        for i in range(7):
            share = direction[i].exp() / direction[i].exp().sum()
            chosen = [share[j] for j in range(7) if positives[i, j]]
            rows.append(-sum(chosen).log() if form == "log_sum" else -sum(x.log() for x in chosen) / len(chosen))
        loops = loops + sum(rows) / 7
    ours = ego_nce(*logits, positives, form)
    torch.testing.assert_close(ours, loops, rtol=1e-12, atol=1e-12)
    for a, b in zip(torch.autograd.grad(ours, logits), torch.autograd.grad(loops, logits)):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", ["log_sum", "sup_con"])
def test_no_underflow_at_the_lowest_temperature_in_half_precision(form):
    """Catches log(softmax * mask): at temperature 0.001 every positive's probability is 0 in float16."""
    logits = make_logits(temperature=0.001, dtype=torch.float16)
    positives = shared_action(*some_positives())
    loss = ego_nce(*logits, positives, form)
    exact = ego_nce(*(x.detach().double() for x in logits), positives, form)
    assert loss.dtype == torch.float32 and exact > 100
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0)
    for gradient in torch.autograd.grad(loss, logits):
        assert gradient.isfinite().all() and gradient.abs().sum() > 0


def test_an_unknown_form_is_refused():
    """Catches a misspelt form falling back to another loss."""
    with pytest.raises(ValueError, match="supcon"):
        ego_nce(*make_logits(), torch.eye(7, dtype=torch.bool), "supcon")


@pytest.mark.parametrize("scale", [1.0, 1e4], ids=["soft", "all-weight-on-a-positive"])
def test_a_hard_negative_is_never_a_positive(scale):
    """Catches a positive drawn: over 10,000 draws, also where softmax leaves every negative a weight of 0."""
    positives = shared_action(*some_positives())
    positives[5] = True
    logits = scale * (torch.randn(7, 7, generator=torch.Generator().manual_seed(0)) + 3 * positives)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([sample_hard_negatives(logits, positives, generator) for _ in range(10_000 // 7 + 1)])
    assert (drawn[:, 5] == -1).all(), "a row of positives only has no negative"
    others = [row for row in range(7) if row != 5]
    assert not positives[others, :].gather(1, drawn[:, others].T).any()
    assert (drawn[:, others] >= 0).all()


def test_hard_negatives_are_drawn_by_softmax():
    """Catches uniform negatives: 20,000 draws within five standard deviations of softmax among the negatives."""
    logits = torch.tensor([[5.0, 1.0, 0.0, -1.0]]).expand(20_000, -1)
    positives = torch.tensor([[True, False, False, False]]).expand(20_000, -1)
    drawn = sample_hard_negatives(logits, positives, torch.Generator().manual_seed(0))
    expected = logits[0, 1:].softmax(0)
    deviation = (expected * (1 - expected) / 20_000).sqrt()
    assert ((drawn.bincount(minlength=4)[1:] / 20_000 - expected).abs() < 5 * deviation).all()


def test_tokens_are_masked_at_bert_rates_and_never_padding_or_cls():
    """Catches wrong shares (half selected; of those 80 % [MASK], 10 % random, 10 % kept), and masked padding."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(1000, 30_000, (2000, 32), generator=generator)
    input_ids[:, 0] = 101
    attention_mask = (torch.arange(32) < 20).long().expand(2000, -1)
    corrupted, labels = mask_tokens(input_ids, attention_mask, 103, 101, 30_522, 0.5, generator)
    selected = labels != -100
    assert not selected[:, 0].any() and not selected[:, 20:].any()
    assert torch.equal(labels[selected], input_ids[selected])
    assert torch.equal(corrupted[~selected], input_ids[~selected])
    candidates = 2000 * 19
    assert abs(selected.sum() / candidates - 0.5) < 0.02
    masked = (corrupted == 103) & selected
    kept = (corrupted == input_ids) & selected
    shares = torch.tensor([masked.sum(), kept.sum(), (selected & ~masked & ~kept).sum()]) / selected.sum()
    assert (shares - torch.tensor([0.8, 0.1, 0.1])).abs().max() < 0.02


def test_masking_repeats_with_its_generator():
    """Catches a draw that does not come from the generator."""
    ids = torch.arange(5, 69).view(2, 32)
    draws = [mask_tokens(ids, None, 2, 1, 99, 0.5, torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(draws[0][0], draws[1][0]) and torch.equal(draws[0][1], draws[1][1])
    assert not torch.equal(draws[0][1], draws[2][1])


def test_language_modelling_is_the_mean_over_selected_tokens():
    """Catches a mean over all positions, and NaN where nothing was selected."""
    logits = torch.randn(2, 5, 11, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[-100, 3, -100, 4, -100], [-100, -100, 10, -100, -100]])
    loss = masked_language_modeling(logits, labels)
    log_probabilities = logits.log_softmax(-1)
    by_hand = -(log_probabilities[0, 1, 3] + log_probabilities[0, 3, 4] + log_probabilities[1, 2, 10]) / 3
    torch.testing.assert_close(loss, by_hand)
    nothing = masked_language_modeling(logits, torch.full_like(labels, -100))
    nothing.backward()
    assert nothing == 0 and logits.grad.abs().sum() == 0


def test_matching_leaves_rows_without_a_negative_out():
    """Catches label -100 being counted as a row."""
    logits = torch.tensor([[1.0, 2.0], [0.5, -0.5], [9.0, 9.0]])
    labels = torch.tensor([1, 0, -100])
    torch.testing.assert_close(video_text_matching(logits, labels), video_text_matching(logits[:2], labels[:2]))
