"""SPACE's training samples as published, and the loss against a slow sum."""

import pytest
import torch
from conftest import make_model
from space_method import new_method

from model.common.prompts.templates import Row
from model.common.training.features import Features, FrozenTarget
from model.space import samples

M = 99  # a mask's id


def ids_and_mask(*spans, length=None):
    """One row of ids 1, 2, ... whose answers are at the spans."""
    length = length or max(end for _, end in spans)
    mask = torch.zeros(1, length, dtype=torch.bool)
    for begin, end in spans:
        mask[0, begin:end] = True
    return torch.arange(1, length + 1).unsqueeze(0), mask


# --- samples ---


def test_published_sample():
    """m = 8, k = 3, s = 2 behind a prompt of two: y1 is id 3."""
    ids, mask = ids_and_mask((2, 10))
    sample = samples.cut_rows(ids, mask, torch.tensor([M] * 3), [2 + 2])
    assert sample.ids.tolist() == [[1, 2, 3, 4, M, M, M]]
    assert sample.labels.tolist() == [[-1, 3, 4, 5, 6, 7, 8]]  # y1 .. y6
    assert sample.places.tolist() == [[0, 0, 0, 0, 1, 2, 3]]
    assert sample.positions is None and sample.allowed is None


def test_rows_without_a_cut_stay():
    ids, mask = ids_and_mask((2, 5), length=6)
    sample = samples.cut_rows(ids.repeat(2, 1), mask.repeat(2, 1), torch.tensor([M]), [None, 3])
    assert sample.ids.tolist() == [[1, 2, 3, 4, 5, 6], [1, 2, 3, M, 0, 0]]
    assert sample.labels.tolist() == [[-1, 3, 4, 5, -1, -1], [-1, 3, 4, 5, -1, -1]]
    assert sample.places.tolist() == [[0] * 6, [0, 0, 0, 1, 0, 0]]


def test_published_cuts():
    """m = 8, k = 3: s from 0 to 4; an answer of three tokens is never cut."""
    torch.manual_seed(0)
    _, mask = ids_and_mask((2, 10), length=12)
    drawn = [samples.draw_cut(mask[0], 3, 1.0) for _ in range(300)]
    assert set(drawn) == {2, 3, 4, 5, 6}
    assert {samples.draw_cut(mask[0], 7, 1.0) for _ in range(20)} == {2}
    assert samples.draw_cut(mask[0], 8, 1.0) is None
    assert samples.draw_cut(ids_and_mask((1, 4))[1][0], 3, 1.0) is None
    assert samples.draw_cut(mask[0], 3, 0.0) is None
    half = sum(samples.draw_cut(mask[0], 3, 0.5) is not None for _ in range(600))
    assert 240 < half < 360


def test_an_answer_is_drawn_after_the_one_before_it():
    torch.manual_seed(0)
    _, mask = ids_and_mask((1, 6), (8, 10), (12, 18))
    drawn = [samples.draw_cut(mask[0], 3, 0.5) for _ in range(800)]
    first = sum(cut is not None and cut < 6 for cut in drawn)
    last = sum(cut is not None and cut >= 12 for cut in drawn)
    assert not [cut for cut in drawn if cut is not None and 6 <= cut < 12]
    assert abs(first - 400) < 70 and abs(last - 200) < 60


def test_spans():
    mask = torch.tensor([False, True, True, False, True])
    assert samples.answer_spans(mask) == [(1, 3), (4, 5)]
    assert samples.answer_spans(mask[:1]) == []


def test_appended_cuts_fit_and_differ():
    torch.manual_seed(0)
    mask = torch.cat([ids_and_mask((2, 10), length=12)[1], ids_and_mask((5, 8), length=12)[1]])
    seen = set()
    for _ in range(60):
        cuts = samples.draw_cuts(mask, 3, 3, 1.0)
        assert cuts.shape == (2, 3) and cuts[1].tolist() == [-1] * 3
        assert len(set(cuts[0].tolist())) == 3
        seen |= set(cuts[0].tolist())
    assert seen == {2, 3, 4, 5, 6}
    few = samples.draw_cuts(mask, 3, 9, 1.0)[0].tolist()
    assert sorted(few) == [-1] * 4 + [2, 3, 4, 5, 6]
    assert samples.draw_cuts(mask, 12, 2, 1.0).shape == (2, 0)
    share = sum((samples.draw_cuts(mask, 3, 1, 0.5)[0] >= 0).item() for _ in range(400))
    assert 150 < share < 250


def test_no_cut_at_all_is_the_plain_text():
    ids, mask = ids_and_mask((1, 3))
    cuts = samples.draw_cuts(mask, 5, 4, 1.0)
    sample = samples.append_groups(ids, mask, torch.tensor([M] * 5), cuts)
    assert sample.ids.tolist() == ids.tolist() and sample.labels.tolist() == [[2, 3, -1]]


# --- the loss ---


def new_batch(lengths=(17, 30, 9), seed=1):
    generator = torch.Generator().manual_seed(seed)
    rows = [
        Row(torch.randint(0, 90, (n,), generator=generator).int(), torch.arange(n) % 11 > 2)
        for n in lengths
    ]
    return Features(FrozenTarget(make_model()), (), None, {}).batch(rows)


def slow_terms(model, batch, sample):
    """(place, -log p) of every label: one plain forward for every mask group and every row."""
    terms = []
    masks = [90, 91, 92]
    for row in range(len(batch.ids)):
        num = int(batch.lengths[row])
        ids, own = batch.ids[row, :num].tolist(), batch.mask[row, :num].tolist()
        whole = sample.places[row].tolist()
        text = [place for place, label in zip(whole, sample.labels[row].tolist()) if label >= 0]
        cuts = []
        for at, place in enumerate(whole):
            if place == 1 and sample.labels[row, at] >= 0:
                cuts.append(at if sample.positions is None else int(sample.positions[row, at]))
        end = cuts[0] if sample.positions is None and cuts else num
        logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        for t in range(num - 1):
            if own[t + 1] and t < end:
                terms.append((0, -logits[t, ids[t + 1]]))
        for cut in cuts:
            logits = model(torch.tensor([ids[:cut] + masks])).logits[0].log_softmax(-1)
            for j in range(3):
                terms.append((j + 1, -logits[cut + j, ids[cut + 1 + j]]))
        assert len(text) == sum(own[1 : end + 1]) + 3 * len(cuts)
    return terms


@pytest.mark.parametrize("weight", [1.0, 0.5])
@pytest.mark.parametrize("scheme, groups", [("cut", 1), ("append", 1), ("append", 3)])
@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral", "granite"])
def test_loss_against_plain_forwards(family, scheme, groups, weight):
    flags = {"scheme": scheme, "num_groups": groups, "mask_loss_weight": weight}
    more = {"logits_scaling": 4.0} if family == "granite" else {}
    method = new_method(make_model(family, **more), **flags)
    batch = new_batch()
    torch.manual_seed(5)
    sample = method.sample(batch)
    torch.manual_seed(5)
    loss, metrics = method.loss(batch)
    with torch.no_grad():
        terms = slow_terms(method.module, batch, sample)
    assert {place for place, _ in terms} == {0, 1, 2, 3}
    total = sum(loss * (weight if place else 1) for place, loss in terms) / len(terms)
    torch.testing.assert_close(loss.detach(), total, atol=1e-4, rtol=1e-4)
    for place in range(4):
        own = [loss for other, loss in terms if other == place]
        name = f"loss_mask_{place}" if place else "loss_text"
        torch.testing.assert_close(metrics[name], sum(own) / len(own), atol=1e-4, rtol=1e-4)
    loss.backward()
    assert all(p.grad is not None for p in method.module.parameters())


def test_gradient_checkpointing_changes_nothing():
    grads = []
    for on in (False, True):
        method = new_method(make_model(), gradient_checkpointing=on)
        torch.manual_seed(5)
        method.loss(new_batch())[0].backward()
        grads.append(method.module.lm_head.weight.grad)
    torch.testing.assert_close(*grads)


def test_evaluation_masks_every_row():
    method = new_method(make_model(), mask_prob=0.0)
    batch = new_batch()
    assert (method.sample(batch).labels[:, batch.ids.shape[1] :] < 0).all()
    method.module.eval()
    assert (method.sample(batch).labels[:, batch.ids.shape[1] :] >= 0).any(1).all()
