"""What is accepted of a slot under the three exact rules, and the law of sampled answers."""

import itertools

import pytest
import torch
from dflash_checks import KINDS, config_dir
from dflash_dirs import block_dir
from tiny_laws import COOL, FULL, TINY, answer_law, fits, plain_model, sampled, tiny

from model.common.contract.drafter import Draft
from model.common.loop import verify
from model.dflash.drafter import DFlashDrafter
from model.dflash.head import load_head

P, Q = [0.6, 0.3, 0.1], [0.5, 0.4, 0.1]
GRID = (torch.arange(20000).double() + 0.5) / 20000  # uniforms


def share(tokens, probs):
    """How often a draft of tokens [N] is accepted, one uniform each, evenly spread."""
    num, warp = len(tokens), lambda logits: logits.softmax(-1)
    logits = torch.tensor(P).log().expand(num, 2, 3)
    draft = Draft(tokens.unsqueeze(1), probs=probs)
    rule = verify.token_matching if probs is None else verify.rejection
    uniforms = GRID[torch.randperm(num, generator=torch.Generator().manual_seed(0))]
    found = rule(logits, draft, warp, torch.stack([uniforms, uniforms], 1))
    return (found.count == 2).double().mean().item()


def test_the_three_rules():
    """Argmax and matching .60, sampled and matching .43, sampled and rejection .90: ours."""
    drawn = torch.bucketize(GRID, torch.tensor(Q).cumsum(0)[:2].double(), right=True)
    best = torch.zeros_like(drawn)
    laws = torch.tensor(Q).expand(len(GRID), 1, 3)
    assert share(best, None) == pytest.approx(0.6, abs=0.01)
    assert share(drawn, None) == pytest.approx(0.43, abs=0.01)
    assert share(drawn, laws) == pytest.approx(0.9, abs=0.01)


def tiny_head(tmp_path, **fields):
    """A random head for the law's tiny target of two layers."""
    path = config_dir(num_hidden_layers=2, **TINY)
    more = {"num_attention_heads": 2, "head_dim": 8, "num_key_value_heads": 1}
    more |= {"target_layer_ids": [-1, 0], "block_size": 4}
    return block_dir(tmp_path / "head", path, 0, 0.4, **{**fields, **more})


@pytest.mark.slow
@pytest.mark.parametrize("settings", [FULL, COOL])
@pytest.mark.parametrize("kind", ["plain", "dflash2", "tree"])
def test_sampled_answers_follow_the_law(kind, settings, tmp_path):
    target = tiny(0, 2)
    fields = {} if kind == "tree" else KINDS[kind]
    drafter = DFlashDrafter(
        load_head(tiny_head(tmp_path, **fields), target), 9 if kind == "tree" else None
    )
    answers, mean = sampled(target, drafter, settings)
    assert 1.05 < mean < 4
    assert min(fits(answers, answer_law(plain_model(), 5, settings))) > 1e-4


def test_a_drafts_law_is_what_its_tokens_are_drawn_from(tmp_path):
    """Slot by slot, over many seeds; the selector's law is 0 outside its candidates."""
    from collections import Counter

    from model.common.contract.drafter import Needs
    from model.common.loop.sampling import Sampler

    for kind in ("plain", "dflash2"):
        target = tiny(0, 2)
        drafter = DFlashDrafter(load_head(tiny_head(tmp_path / kind, **KINDS[kind]), target))
        sampler, ids, num = Sampler(1.0), torch.tensor([[3, 1, 4]]), 2000
        target.reserve(1, 32)
        found = target.prefill([0], ids, [3], Needs(hidden=drafter.needs.hidden))
        sampler.reserve(num, target.device)
        drafter.reserve(num, 32, sampler)
        sampler.begin(list(range(num)), list(range(num)), [16] * num)
        states = drafter.head.states_of(found.hidden).expand(num, -1, -1)
        with torch.inference_mode():
            drafter.head.read_prompt(list(range(num)), states, torch.full((num,), 3))
            drafter.root, drafter.longest = torch.full((num,), 5), 3
            draft = drafter.propose()
        assert torch.allclose(draft.probs.sum(-1), torch.ones(num, 3))
        assert bool((draft.probs.gather(2, draft.tokens.unsqueeze(2)) > 0).all())
        widest = int((draft.probs > 0).sum(-1).max())
        assert widest == (5 if kind == "dflash2" else 11)
        for slot, token in itertools.product(range(3), range(11)):
            counts = Counter(draft.tokens[:, slot].tolist())
            wanted = float(draft.probs[:, slot, token].mean())
            spread = (wanted * (1 - wanted) / num) ** 0.5
            assert abs(counts[token] / num - wanted) < 5 * spread + 1e-3
