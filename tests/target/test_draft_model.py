"""DraftModel: what it has read of every slot, whatever was accepted, begun or ended beside it."""

import pytest
import torch
from conftest import make_model
from draft_models import next_logits, plain
from replays import with_graphs
from steps import chain_step, prompt_step

from model.common.target.draft_model import DraftModel
from model.common.target.model import Target

ONE, TWO, THREE = [5, 6, 7, 8, 9], [11, 12], [21, 22, 23, 24, 25, 26, 27, 28]


class Followed:
    """A DraftModel of three slots and the texts that it has to know."""

    def __init__(self, recorded):
        model = make_model(num_hidden_layers=2)
        self.plain = plain(model)
        self.draft = DraftModel(with_graphs(model)[0] if recorded else Target(model))
        self.draft.reserve(3, 64)
        self.texts = [[], [], []]

    def start(self, slots, texts):
        for slot, text in zip(slots, texts):
            self.texts[slot] = list(text)
        self.draft.start(prompt_step(texts, [20] * len(texts), slots))

    def check(self, logits, more=None):
        """Logits [3, V] of the running slots follow from their texts and one more token each."""
        for slot, text in enumerate(self.texts):
            if text:
                ids = text if more is None else [*text, *more[slot].tolist()]
                assert torch.allclose(logits[slot], next_logits(self.plain, ids), atol=1e-4)

    def draft_tokens(self, num):
        """Read a chain of num tokens [3, num] behind the texts; its logits are checked."""
        logits = self.draft.catch_up()
        self.check(logits)
        chain = logits.argmax(-1, keepdim=True)
        for _ in range(num - 1):
            logits, _ = self.draft.read(chain[:, -1:])
            self.check(logits, chain)
            chain = torch.cat([chain, logits.argmax(-1, keepdim=True)], 1)
        return chain.tolist()

    def observe(self, host_ids):
        for text, ids in zip(self.texts, host_ids):
            text += ids
        self.draft.observe(chain_step(host_ids))
        assert self.draft.committed == [len(text) for text in self.texts]

    def end(self, slots):
        for slot in slots:
            self.texts[slot] = []
        self.draft.end(slots)


@pytest.mark.parametrize("recorded", [False, True], ids=["eager", "recorded"])
@torch.inference_mode()
def test_slots_begin_end_and_accept_for_themselves(recorded):
    followed = Followed(recorded)
    followed.start([0, 2], [ONE, TWO])
    assert followed.draft.running == [True, False, True]
    assert followed.draft.room == [20 - 5 - 1, 0, 20 - 2 - 1]
    chain = followed.draft_tokens(3)
    assert followed.draft.longest == 5 + 2  # all tokens but the last are read
    followed.observe([[*chain[0], 90], [], [chain[2][0], 91]])  # all of them, none, one of them
    assert followed.draft.room == [20 - 9 - 1, 0, 20 - 4 - 1]
    followed.start([1], [THREE])
    followed.draft_tokens(4)
    followed.observe([[92], [93], [94]])
    followed.end([0, 2])
    assert followed.draft.committed == [0, 9, 0] and followed.draft.room == [0, 10, 0]
    followed.start([2], [ONE])
    chain = followed.draft_tokens(2)
    followed.observe([[], [*chain[1], 95], [chain[2][0], 96]])
    followed.draft_tokens(2)


@torch.inference_mode()
def test_a_full_answer_leaves_no_room():
    followed = Followed(False)
    followed.start([0, 1, 2], [ONE, TWO, THREE])
    followed.observe([[1] * 14, [1] * 17, [1] * 12])
    assert followed.draft.room == [0, 0, 0]


@torch.inference_mode()
def test_ids_that_the_model_lacks_are_read_as_its_last_one():
    draft = DraftModel(Target(make_model(vocab_size=50, num_hidden_layers=1)))
    draft.reserve(1, 64)
    draft.start(prompt_step([[1, 60, 3, 70, 4, 80]]))
    reference = plain(draft.model.model)
    logits = draft.catch_up()
    assert torch.allclose(logits[0], next_logits(reference, [1, 49, 3, 49, 4, 49]), atol=1e-4)
    logits, _ = draft.read(torch.tensor([[96]]))
    assert torch.allclose(logits[0], next_logits(reference, [1, 49, 3, 49, 4, 49, 49]), atol=1e-4)
