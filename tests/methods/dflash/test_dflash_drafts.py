"""Drafts of DFlash, DFlash2 and DDTree: a slow reference and its faults, the cache, oracles."""

import json
from pathlib import Path

import pytest
import torch
from conformance.cases import Case
from dflash_checks import KINDS, check_cache, head_dir, inject, plain_model, prompts, target_of
from dflash_slow import FAULTS, SlowBlock
from oracle import decode, outputs
from recording import Recording

from model.common.contract.sequence import EmptyDrafter
from model.common.contract.trees import ancestors
from model.common.heads.checkpoint import read_tensors, save_checkpoint
from model.common.loop.sampling import Sampler
from model.common.loop.turns import StopRules
from model.dflash.drafter import DFlashDrafter
from model.dflash.head import BlockHead, load_head

NODES = 14


def drafted(folder, num_slots, num_nodes=None, limit=10):
    """(drafts, turns) of three prompts; one ends early, so that its slot is filled again."""
    target = target_of()
    plain = outputs(decode(target, EmptyDrafter(), prompts(), limit))
    stop = StopRules(frozenset({plain[0][4]}))
    recording = Recording(DFlashDrafter(load_head(folder, target), num_nodes))
    turns = decode(target, recording, prompts(), limit, stop=stop, num_slots=num_slots)
    known = decode(target, EmptyDrafter(), prompts(), limit, stop=stop)
    assert outputs(turns) == outputs(known)
    assert len(recording.drafts) == sum(len(turn.accept_lengths) for turn in turns) > 5
    return recording.drafts, turns


@pytest.mark.parametrize("num_slots", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_chains_equal_a_slow_reference(kind, num_slots):
    folder = head_dir(**KINDS[kind])
    drafts, _ = drafted(folder, num_slots)
    slow = SlowBlock(folder, plain_model())
    for one in drafts[:: 1 if num_slots == 2 else 3]:
        assert one.tokens == slow.chain(one.ids)


class SlotBySlot(DFlashDrafter):
    """Draws one slot after the other."""

    def propose(self):
        logits = self.head.module.logits(self.head.draft(self.root, self.longest))
        pairs = [self.choose(logits[:, slot : slot + 1], slot) for slot in range(logits.shape[1])]
        places, laws = (torch.cat(parts, 1) for parts in zip(*pairs))
        tokens = self.head.draft_ids.of_target(places)
        return self.as_chain(tokens, laws, torch.ones(len(tokens), dtype=torch.bool))


def sampled(make, folder):
    """(drafts, answers, slots that were drawn at a time) of a drafter at temperature 0.8."""
    drafter, widths = make(load_head(folder, target_of())), set()
    choose = drafter.choose
    drafter.choose = lambda scores, *more: widths.add(scores.shape[1]) or choose(scores, *more)
    recording = Recording(drafter)
    turns = decode(target_of(), recording, prompts(), 12, Sampler(0.8), num_slots=2)
    return recording.drafts, outputs(turns), widths


@pytest.mark.parametrize("kind", ["plain", "from anchor", "scaled"])
def test_slots_are_drawn_at_once(kind):
    """Tokens and laws are those of one slot after the other, and the slow reference's."""
    folder = head_dir(**KINDS[kind])
    drafts, answers, widths = sampled(DFlashDrafter, folder)
    others, same, ones = sampled(SlotBySlot, folder)
    assert answers == same and widths == {len(drafts[0].tokens)} and ones == {1}
    slow = SlowBlock(folder, plain_model())
    for number, (one, other) in enumerate(zip(drafts, others, strict=True)):
        assert one.tokens == other.tokens and torch.allclose(one.probs, other.probs, atol=1e-12)
        if number % 4 == 0:
            wanted = (slow.logits(slow.states(one.ids)) / 0.8).softmax(-1)
            assert torch.allclose(one.probs.double(), wanted, atol=1e-6)


@pytest.mark.parametrize("kind", ["plain", "from anchor", "dflash2"])
def test_trees_equal_a_best_first_search(kind):
    folder = head_dir(**KINDS[kind])
    drafts, turns = drafted(folder, 2, NODES)
    slow = SlowBlock(folder, plain_model())
    for one in drafts:
        assert set(one.paths) == slow.tree(one.ids, NODES) and len(one.paths) == NODES
    deepest = max(len(path) for one in drafts for path in one.paths)
    assert deepest > 1 and len({tuple(one.parents) for one in drafts}) > 3
    assert max(max(turn.accept_lengths) for turn in turns) > 1


def test_a_reduced_vocabulary():
    """Its own LM head over 11 of 17 ids, mapped by d2t."""
    ids = torch.tensor([0, 1, 3, 4, 5, 7, 9, 11, 12, 14, 16])

    def edit(tensors):
        generator = torch.Generator().manual_seed(3)
        tensors["lm_head.weight"] = torch.randn(11, 64, generator=generator)
        tensors["d2t"] = ids - torch.arange(11)

    folder = head_dir(draft_vocab_size=11, edit=edit)
    slow = SlowBlock(folder, plain_model())
    for num_nodes in (None, NODES):
        drafts, _ = drafted(folder, 2, num_nodes)
        for one in drafts[::2]:
            assert set(one.tokens) <= set(ids.tolist())
            if num_nodes:
                assert set(one.paths) == slow.tree(one.ids, NODES)
            else:
                assert one.tokens == slow.chain(one.ids)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_seen(fault):
    """A reference that makes a mistake drafts other tokens."""
    folder = head_dir()
    drafts, _ = drafted(folder, 1)
    slow = SlowBlock(folder, plain_model(), fault)
    wrong = [one.tokens != slow.chain(one.ids) for one in drafts]
    assert sum(wrong) > len(wrong) // 4


@pytest.mark.parametrize("variant", ["", "tree", "dflash2"])
def test_the_cache_holds_the_text_and_no_block(variant):
    check_cache(Case("dflash", variant))


class Oracle(DFlashDrafter):
    """Drafts what it is told: `known` answers by prompt, or never right."""

    def __init__(self, head, known, right):
        super().__init__(head)
        self.known, self.right = known, right

    def start(self, prompt):
        super().start(prompt)
        self.texts = getattr(self, "texts", {})
        self.texts |= {slot: list(ids) for slot, ids in zip(prompt.slots, prompt.host_ids)}

    def observe(self, step):
        super().observe(step)
        for slot, ids in enumerate(step.host_ids):
            self.texts[slot] = self.texts.get(slot, []) + ids

    def propose(self):
        draft = super().propose()
        for slot, text in self.texts.items():
            for whole in self.known:
                if whole[: len(text)] == text:
                    coming = whole[len(text) :][: draft.tokens.shape[1]]
                    wrong = [(one + 1) % 17 for one in coming]
                    tokens = torch.tensor(coming if self.right else wrong)
                    draft.tokens[slot, : len(tokens)] = tokens
        return draft


@pytest.mark.parametrize("right, length", [(True, 5), (False, 1)])
def test_right_blocks_are_taken_whole(right, length):
    """An entry of a block's size where all slots are right, of 1 where none is."""
    target, given = target_of(), prompts()
    plain = outputs(decode(target, EmptyDrafter(), given, 40))
    known = [prompt + ids for prompt, ids in zip(given, plain)]
    drafter = Oracle(load_head(head_dir(), target), known, right)
    turns = decode(target, drafter, given, 31, num_slots=2)
    assert outputs(turns) == [ids[:31] for ids in plain]
    assert {one for turn in turns for one in turn.accept_lengths} == {length}


def test_neutral_parts_of_dflash2_change_nothing():
    """Taps 1 and 0, a zero projection and a zero successor codebook: plain DFlash, to the bit."""

    def neutral(tensors):
        for name, tensor in tensors.items():
            if "kernel_projection" in name or "successor" in name:
                tensor.zero_()
            if "base_kernel" in name:
                tensor.zero_()[:, 0] = 1

    second = KINDS["dflash2"]
    folders = [head_dir(edit=neutral, **second)]
    plain = head_dir()
    tensors = read_tensors(f"{folders[0]}/model.safetensors")
    kept = {n: t for n, t in tensors.items() if "conv" not in n and "selector" not in n}
    fields = json.loads(Path(plain, "config.json").read_text())
    save_checkpoint(plain, fields, "model.safetensors", kept)
    first, _ = drafted(folders[0], 2)
    other, _ = drafted(plain, 2)
    assert [one.tokens for one in first] == [one.tokens for one in other]


def test_a_block_does_not_depend_on_what_stands_behind_the_root():
    """Columns behind the committed ones hold an earlier block's rows: they are not read."""
    head = load_head(head_dir(), target_of())
    inject(head, target_of(), prompts()[1])
    longest, root = len(prompts()[1]) - 1, torch.tensor([7])
    with torch.inference_mode():
        first = head.draft(root, longest).clone()
        head.draft(torch.tensor([2]), longest)
        again = head.draft(root, longest)
    assert torch.equal(first, again) and isinstance(head, BlockHead)


def test_mask_of_paths():
    """DDTree's nodes are rows of our verifier: each reads its own line."""
    parents = torch.tensor([-1, 0, -1, -1, 2, 0, 1, 3, 1, 2])
    assert ancestors(parents).sum(-1).tolist() == [1, 2, 3, 2, 2, 3, 3, 4, 3, 4, 3]
