"""P-EAGLE's training: which rows it samples and what they see, and its loss, written out."""

import pytest
import torch
from test_head_training import batch_of, cross_entropy, training

from model.common.training.unroll import accepted
from model.peagle.cod import Rows, chain_rows, num_kept, sampled_rows

FLAGS = ["--num-layers", "2", "--num-depths", "4", "--mask-id", "5", "--draft-vocab-size", "11"]


def test_golden_mask():
    """Rows (0,0) (1,0) (2,0) (3,0) (0,1) (1,1) (0,2)."""
    rows = Rows(torch.tensor([[0, 1, 2, 3, 0, 1, 0]]), torch.tensor([[0, 0, 0, 0, 1, 1, 2]]))
    (seen,) = rows.visible()
    assert seen.sum(-1).tolist() == [1, 2, 3, 4, 2, 3, 3] and seen.sum() == 18
    assert seen[5].nonzero().flatten().tolist() == [0, 1, 5]
    assert rows.position.tolist() == [[0, 1, 2, 3, 1, 2, 2]]


def test_golden_counts():
    assert [num_kept(100, depth, 0.7, 0.2) for depth in range(1, 8)] == [69, 48, 33, 23, 19, 18, 18]
    assert num_kept(3, 4, 0.7, 0.2) == 0


def test_sampled_rows_follow_kept_ones():
    """A row of depth d is kept where its predecessor was, and no more than are counted."""
    torch.manual_seed(0)
    learned = torch.zeros(3, 140, dtype=torch.bool)
    learned[0, 20:120], learned[1, :9], learned[1, 30:60] = True, True, True  # two answers, none
    rows = sampled_rows(learned, 8, 0.7, 0.2)
    for line in range(3):
        anchor, depth = rows.anchor[line], rows.depth[line]
        assert anchor[:140].tolist() == list(range(140)) and not depth[:140].any()
        masks = list(zip(anchor[140:].tolist(), depth[140:].tolist()))
        found = [pair for pair in masks if pair != (-1, 1)]
        assert len(set(found)) == len(found) and all(a >= 0 and d > 0 for a, d in found)
        assert all(learned[line, a + d] for a, d in found)
        assert all(d == 1 or (a, d - 1) in found for a, d in found)
        total = int(learned[line].sum())
        for d in range(1, 8):
            assert sum(depth == d for _, depth in found) <= num_kept(total, d, 0.7, 0.2)
    first = [pair for pair in zip(rows.anchor[0].tolist(), rows.depth[0].tolist()) if pair[1]]
    assert sum(depth == 1 and anchor >= 0 for anchor, depth in first) == 69
    assert rows.visible()[1, -1].sum() == (rows.anchor[1] < 0).sum() > 0  # fillers see each other


def outputs_alone(method, batch, b, a, d):
    """The head's output at row (a, d), drafted from a as at inference: rows 0..a, then masks."""
    states = torch.cat([batch.hidden[layer] for layer in method.layers], -1)[b : b + 1, : a + 1]
    tokens = torch.cat([batch.ids[b, 1 : a + 2], batch.ids.new_full((d,), 5)])[None]
    masks = method.module.mask_hidden.weight.expand(1, d, -1)
    states = torch.cat([states, masks], 1)
    rotary, mask = method.rows.rotary(states), method.rows.mask(states)
    return method.module((tokens, states), rotary, mask, None)[0, -1]


def test_loss():
    """Row (a, d) learns what the target says of token a + d + 2; all rows count alike."""
    method, target = training("peagle", *FLAGS)
    batch, module = batch_of(method, target), method.module
    torch.manual_seed(3)
    rows = sampled_rows(batch.labelled(2), 4, 0.7, 0.2)
    terms, depths = [], []
    for b in range(3):
        for a, d in zip(rows.anchor[b].tolist(), rows.depth[b].tolist()):
            place = a + d + 1
            if a < 0 or place + 1 >= int(batch.lengths[b]) or not batch.mask[b, place + 1]:
                continue
            says = target.lm_head(batch.hidden["last"][b, place])
            if says.argmax() < 11:  # the most frequent ids are the small ones
                logits = module.lm_head(module.norm(outputs_alone(method, batch, b, a, d)))
                terms.append(cross_entropy(says[:11], logits))
                depths.append(d)
    assert set(depths) == {0, 1, 2, 3}
    torch.manual_seed(3)
    loss, metrics = method.loss(batch)
    assert torch.allclose(loss, torch.stack(terms).mean(), atol=1e-5)
    for depth in range(4):
        own = torch.stack([term for term, d in zip(terms, depths) if d == depth])
        assert torch.allclose(metrics[f"loss_{depth + 1}"], own.mean(), atol=1e-5)
    loss.backward()
    assert module.mask_hidden.weight.grad.any() and module.embed_tokens.weight.grad[5].any()


def test_held_out_chains_are_what_is_drafted():
    method, target = training("peagle", *FLAGS)
    batch = batch_of(method, target)
    with torch.no_grad():
        chains = method.drafts(batch, 3)
        anchors = batch.labelled(2)
        assert (chains[~anchors] == -1).all() and anchors.any()
        for b, a in anchors.nonzero().tolist():
            for d in range(3):
                logits = method.logits(outputs_alone(method, batch, b, a, d))
                assert chains[b, a, d] == method.ids[logits.argmax()]
    assert accepted(chains, batch.ids, batch.mask)[1] > 0


def test_one_depth_has_no_mask_rows():
    learned = torch.ones(2, 5, dtype=torch.bool)
    assert sampled_rows(learned, 1, 0.7, 0.2).anchor.shape == (2, 5)
    assert chain_rows(learned, 1).anchor.shape == (2, 5)


@pytest.mark.parametrize("embedding", ["own", "target"])
def test_what_is_trained_and_stored(embedding, tmp_path):
    method, target = training("peagle", *FLAGS, "--embedding", embedding)
    own = embedding == "own"
    assert not target.embedding.weight.requires_grad
    assert ("embed_tokens.weight" in method.module.state_dict()) is own
    method.save(tmp_path)
    from model.common.heads.checkpoint import Checkpoint, read_config

    stored = Checkpoint(str(tmp_path), ("model.safetensors",)).tensors
    assert stored["mask_hidden"].shape == (1, 1, 192) and "layers.1.mlp.up_proj.weight" in stored
    assert ("embed_tokens.weight" in stored) is own
    assert read_config(str(tmp_path))["mask_token_id"] == 5


def test_mask_ids_that_cannot_be():
    from model.common.errors import BadInput

    with pytest.raises(BadInput, match="--mask-id 23: 23 ids are there"):
        training("peagle", *FLAGS, "--mask-id", "23")
