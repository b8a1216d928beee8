"""A draft model that follows what B slots commit, two tokens behind.

After a full accept it has not read its own last token, otherwise only the new root is unread. So
every draft begins by reading the last two committed tokens, which is one shape for all cases.
Example: 10 tokens are committed, the root included; 8 are in the cache, catch_up() reads the other
two, and the draft's rows follow from column 10 on. If three more tokens are committed then, the
cache goes back to 11 rows, and of the draft's rows the first stays.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from model.common.contract.drafter import Needs, Step
from model.common.errors import BadInput
from model.common.target.loading import check_model_path, load_target
from model.common.target.model import Target
from model.common.target.placement import wanted_placement
from model.common.target.runtime import tell_once

NAMED = 8  # tokens of differing vocabularies that a line names


class DraftModel:
    """A draft model beside the B slots of the loop.

    model      the draft model's Target, on any device. Ids that it lacks, of a padded target, are
               read as its last one: a guess may be wrong
    window     tokens behind which a method cannot use it, None = none but the model's context
    committed  [B] host ints: tokens of each slot's sequence, the root included; 0 = idle
    longest    host int: rows that the longest running slot has in the cache, kept by catch_up() and
               read(); what Target.read() is to be told
    """

    def __init__(self, model: Target, window: int | None = None):
        self.model, self.window = model, window or sys.maxsize
        self.last_id = model.vocab_size - 1
        self.longest = 0

    def reserve(self, num_slots: int, capacity: int) -> None:
        """Room for B slots; capacity: tokens of a sequence and the rows of a draft behind it."""
        self.model.reserve(num_slots, capacity)
        self.committed = [0] * num_slots
        self.tails = [[0, 0] for _ in range(num_slots)]  # the last two committed ids
        self.max_lengths, self.limits = [0] * num_slots, [0] * num_slots

    def start(self, prompt: Step) -> None:
        """Read the prompts of prompt.slots; their last tokens stay unread, as their roots.

        Those that leave no room for a draft are not read at all.
        """
        for slot, ids, most in zip(prompt.slots, prompt.host_ids, prompt.max_lengths):
            self.committed[slot], self.tails[slot] = len(ids), ids[-2:]
            self.max_lengths[slot] = most
            self.limits[slot] = min(self.model.limit_after(len(ids) - 1), self.window)
        self.model.cache.clear(prompt.slots)
        left = self.context_room
        rows = [row for row, slot in enumerate(prompt.slots) if left[slot]]
        if rows:
            lengths = [len(prompt.host_ids[row]) - 2 for row in rows]
            ids = prompt.tokens[rows, : max(lengths) + 1].clamp(0, self.last_id)
            slots = [prompt.slots[row] for row in rows]
            self.model.prefill(slots, ids.to(self.model.device), lengths, Needs())

    def observe(self, step: Step) -> None:
        """Take over what every slot has committed."""
        for slot, ids in enumerate(step.host_ids):
            self.committed[slot] += len(ids)
            self.tails[slot] = (self.tails[slot] + ids)[-2:]

    def end(self, slots: list[int]) -> None:
        """These slots are idle from now on: what is read for them goes to column 0 and on."""
        for slot in slots:
            self.committed[slot], self.tails[slot] = 0, [0, 0]

    @property
    def context_room(self) -> list[int]:
        """Tokens that can still be drafted behind each sequence before the model's context ends,
        [B]; 0 = none, or idle."""
        pairs = zip(self.limits, self.committed)
        return [max(limit - length - 1, 0) if length else 0 for limit, length in pairs]

    @property
    def room(self) -> list[int]:
        """Tokens that each answer can still take of a draft, the bonus left out, as far as the
        model's context goes, [B]; 0 = none, or idle."""
        rows = zip(self.max_lengths, self.committed, self.context_room)
        return [max(min(most - length - 1, left), 0) for most, length, left in rows]

    def unread(self) -> Tensor:
        """The last two committed ids of every slot, [B, 2], as the model reads them."""
        return torch.tensor(self.tails, device=self.model.device).clamp(max=self.last_id)

    def catch_up(self) -> Tensor:
        """Forget the last draft and read the two unread tokens; logits [B, V] after them."""
        pairs = zip(self.committed, self.context_room)
        kept = [max(length - 2, 0) if left else 0 for length, left in pairs]
        self.model.cache.rewind(torch.tensor(kept))
        self.longest = max(kept)
        return self.read(self.unread())[0]

    def read(self, tokens: Tensor, hidden: tuple = ()) -> tuple[Tensor, dict]:
        """Read the next tokens [B, r] of every slot, which stay until the next catch_up().

        Returns (logits [B, V], {name: [B, H]}) after the last of them; hidden: names as in Needs.
        """
        tokens = tokens.clamp(0, self.last_id)
        logits, states = self.model.read(tokens, None, None, self.longest, hidden=hidden)
        self.model.cache.advance(tokens.shape[1])
        self.longest += tokens.shape[1]
        return logits[:, -1], {name: rows[:, -1] for name, rows in states.items()}


def load_draft_model(args, target: Target, usual: str | None = None, trees: bool = False) -> Target:
    """The draft model in the target's dtype and runtime; one with other token ids is refused.

    usual: size of its twin in this method, see shapes.draft_shape(); trees: the method reads trees
    with it.
    """
    from model.common.target.twin.shapes import draft_shape

    check_model_path(args.drafter_path)
    check_vocabularies(args.drafter_path, args.model_path)
    share = wanted_placement(args).drafter
    model = load_target(
        args.drafter_path, args.dtype, share, args.runtime, scale_to=draft_shape(args, usual)
    )
    if not model.reads_trees and (trees or args.batch_size > 1):
        why = "can only read chains" if trees else "reads one question at a time (--batch-size 1)"
        kind = model.config.model_type
        raise BadInput(f"--drafter-path: model type {kind} keeps a cache of its own and {why}")
    tell_shorter("context", model.context, target)
    return model


def tell_shorter(what: str, size: int | None, target: Target) -> None:
    """Say once that nothing is drafted beyond a draft model's `size` tokens, None = no end, where
    the target goes on."""
    if size is not None and size < (target.context or sys.maxsize):
        tell_once(f"--drafter-path: its {what} is {size} tokens; nothing is drafted beyond them")


def check_vocabularies(draft_path: str, target_path: str) -> None:
    """Refuse a draft model whose tokenizer gives a token of text another id than the target's.

    Special and added tokens may differ, as between sizes of a family: a line on stderr names them.
    They cost acceptance alone. Ids that the draft model lacks are read as its last one, and it is
    never asked for ids that the target lacks.
    """
    from model.common.prompts.prompter import load_tokenizer

    draft, target = load_tokenizer(draft_path), load_tokenizer(target_path)
    own, wanted = draft.get_vocab(), target.get_vocab()
    every = sorted(own | wanted, key=lambda token: wanted.get(token, own.get(token)))
    differ = [token for token in every if own.get(token) != wanted.get(token)]
    free = {token for one in (draft, target) for token in one.get_added_vocab()}
    free.update(draft.all_special_tokens, target.all_special_tokens)
    if refused := [token for token in differ if token not in free]:
        token = refused[0]
        raise BadInput(
            f"--drafter-path: the vocabulary of {draft_path} ({len(own)} tokens) is not "
            f"that of {target_path} ({len(wanted)} tokens): {token!r} is {own.get(token)} in "
            f"the first and {wanted.get(token)} in the second"
        )
    if differ:
        named = [f"{token!r} ({own.get(token)}, {wanted.get(token)})" for token in differ[:NAMED]]
        more = f" and {len(differ) - NAMED} more" if len(differ) > NAMED else ""
        print(
            f"--drafter-path: {draft_path} and {target_path} differ in special or added tokens "
            f"(ids in the first and second): {', '.join(named)}{more}; drafts around them will be "
            "refused",
            file=sys.stderr,
        )
