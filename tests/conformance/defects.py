"""Planted defects: each is a way to be wrong that has been seen in speculative decoders.

A defect is a function that patches the project through pytest's MonkeyPatch. EXPECTED names, for
each, the checks that have to turn red and the case in which.
"""

from __future__ import annotations

import dataclasses
import itertools

import torch
from dflash_checks import check_cache
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

from conformance import greedy, law, runs
from conformance.cases import world_of
from conformance.drafter_defects import kept_blocks, leaking_drafter, uncorrected_laws
from model.common.contract.drafter import Draft
from model.common.contract.sequence import PerSequence
from model.common.loop import verify
from model.common.loop.penalties import PenalisedSlots
from model.common.loop.sampling import TARGET, Sampler, draw
from model.common.loop.turns import StopRules
from model.common.prompts.conversation import Conversation
from model.common.prompts.prompter import Prompter
from model.common.target.attention import additive
from model.common.target.cache import KVCache
from model.common.target.model import Target
from model.sps.drafter import SpSDrafter

# --- acceptance rules ---


def typical_called_exact(patch):
    """Whatever the target finds likely enough is accepted (Medusa's rule)."""
    rule = verify.choose

    def lossy(sampler, draft, typical=None):
        return rule(sampler, draft, None if sampler.greedy else (0.09, 0.3))

    patch.setattr(verify, "choose", lossy)


def unwarped_bonus(patch):
    """The token behind a fully accepted draft is drawn at temperature 1 without top-p."""
    rule = verify.rejection

    def forgetful(logits, draft, warp, uniforms):
        accepted = rule(logits, draft, warp, uniforms)
        full = accepted.count == logits.shape[1]
        bonus = draw(logits[:, -1].softmax(-1), uniforms[:, -1])
        last = accepted.successors[:, -1]
        accepted.successors[:, -1] = torch.where(full, bonus, last)
        return accepted

    patch.setattr(verify, "rejection", forgetful)


def unwarped_everything(patch):
    """The rule of point guesses draws from the plain softmax."""
    rule = verify.token_matching

    def plain(logits, draft, warp, uniforms):
        return rule(logits, draft, lambda scores: scores.softmax(-1), uniforms)

    patch.setattr(verify, "token_matching", plain)


def forgotten_residual(patch):
    """What replaces a refused token is drawn from p, not from the rest of p over q."""
    patch.setattr(verify, "_residual", lambda target, proposal: target)


def shared_uniforms(patch):
    """The drafter draws with the numbers that the rule decides with."""
    uniform = Sampler.uniform

    def same(self, num, purpose, first=0):
        return uniform(self, num, TARGET, first)

    patch.setattr(Sampler, "uniform", same)


def last_of_equals(patch):
    """The argmax takes the last of equally good tokens."""

    def last(logits):
        return logits.shape[-1] - 1 - logits.flip(-1).argmax(-1)

    patch.setattr(verify, "best_id", last)


def second_best_will_do(patch):
    """Greedy acceptance of a drafted token that is among the two best."""
    rule = verify.greedy

    def lenient(logits, draft):
        if draft.tokens.shape[1] == 0:
            return rule(logits, draft)
        rows = torch.arange(len(logits)).unsqueeze(1)
        parents = verify._parents(draft)
        second = logits.topk(2, dim=-1).indices[..., 1][rows, parents]
        wanted = torch.where(second == draft.tokens, parents, -1)
        raised = logits.clone()
        for row, node in (wanted >= 0).nonzero().tolist():
            raised[row, parents[row, node], draft.tokens[row, node]] = float("inf")
        return rule(raised, draft)

    patch.setattr(verify, "greedy", lenient)


# --- penalties ---


def forgotten_ancestors(patch):
    """Every row of a draft is penalised for the committed tokens alone."""

    def committed_alone(self, logits, draft):
        if not self.penalties:
            return logits
        return self.penalties.apply(logits, self.counts.unsqueeze(1), self.in_prompt.unsqueeze(1))

    patch.setattr(PenalisedSlots, "rows", committed_alone)


def stale_counts(patch):
    """A slot's next answer is penalised for what the one before it held."""
    begin = PenalisedSlots.begin

    def kept(self, slots, ids, lengths, logits):
        before = None if self.counts is None else self.counts.clone()
        scores = begin(self, slots, ids, lengths, logits)
        if before is not None:
            self.counts += before.where(self.counts == 0, 0)
        return scores

    patch.setattr(PenalisedSlots, "begin", kept)


# --- stop rules ---


def peeking_stop(patch):
    """A drafter takes its last token back where it finds that token unlikely."""
    propose = SpSDrafter.propose

    def peeking(self):
        draft = propose(self)
        if draft.probs is None:
            return draft
        tokens = draft.tokens.clone()
        last = (tokens >= 0).sum(1, keepdim=True).clamp(min=1) - 1
        token = tokens.gather(1, last)
        index = last.unsqueeze(2).expand(-1, -1, draft.probs.shape[2])
        chance = draft.probs.gather(1, index).squeeze(1).gather(1, token.clamp(min=0))
        tokens.scatter_(1, last, torch.where(chance < 0.5, -1, token))
        return Draft(tokens, probs=draft.probs)

    patch.setattr(SpSDrafter, "propose", peeking)


def forgotten_ends(patch):
    """EOS and stop strings are looked for behind a step's last token only."""
    cut = StopRules.cut

    def late(self, ids, new, limit):
        kept = min(new, limit - (len(ids) - new))
        return kept, cut(self, ids[: len(ids) - new + kept], 1, limit)[1]

    patch.setattr(StopRules, "cut", late)


def forgotten_limit(patch):
    """An answer ends with the step that reaches the limit, whole as it is."""
    cut = StopRules.cut

    def late(self, ids, new, limit):
        kept, reason = cut(self, ids, new, 10**6)
        return kept, reason or ("length" if len(ids) >= limit else "")

    patch.setattr(StopRules, "cut", late)


# --- cache, mask, positions ---


def shifted_cache(patch):
    """Committed rows are taken one row too early."""
    keep = KVCache.keep

    def shifted(self, path, count):
        if path is not None:
            path = torch.where(path > 0, path - 1, path)
        keep(self, path, count)

    patch.setattr(KVCache, "keep", shifted)


def stale_rows(patch):
    """A path's rows stay where they were drafted: refused ones stand in their places."""
    keep = KVCache.keep
    patch.setattr(KVCache, "keep", lambda self, path, count: keep(self, None, count))


def batch_keeps_the_longest(patch):
    """Every row of a batch keeps as many cache rows as the one that accepted most."""
    keep = KVCache.keep

    def longest(self, path, count):
        keep(self, path, torch.where(count > 0, count.max(), count))

    patch.setattr(KVCache, "keep", longest)


def read_wrapped(patch, change):
    """Have the target's read() see change(ancestors, depths) of every tree."""
    read = Target.read

    def changed(self, tokens, ancestors, depths, *more, **named):
        if ancestors is not None:
            ancestors, depths = change(ancestors, depths)
        return read(self, tokens, ancestors, depths, *more, **named)

    patch.setattr(Target, "read", changed)


def seen_siblings(patch):
    """The tree mask lets a row read its siblings."""

    def with_siblings(known, depths):
        above = known & ~torch.eye(known.shape[-1], dtype=torch.bool)
        siblings = (above.unsqueeze(-2) == above.unsqueeze(-3)).all(-1)
        return known | siblings, depths

    read_wrapped(patch, with_siblings)


def positions_off_by_one(patch):
    """Nodes of a tree sit one position behind their own."""
    read_wrapped(patch, lambda known, depths: (known, depths + (depths > 0)))


BOUNDARY = 20  # position from which on call_maximum() reads all rows of a call otherwise


def call_maximum(patch):
    """All rows of a call have the rotary factors of its largest position, as longrope has them.

    transformers' own forward of one prefix has them too, and is right: it ends at that position.
    """
    forward = LlamaRotaryEmbedding.forward

    def stretched(self, x, position_ids):
        far = bool(position_ids.max() >= BOUNDARY)
        return forward(self, x, position_ids / 4 if far else position_ids)

    patch.setattr(LlamaRotaryEmbedding, "forward", stretched)
    new_answers(patch)


def column_bias(patch):
    """Attention is biased by the columns of a call, as ALiBi is where it counts the cache's index.

    Chains stand where they belong and are read rightly, nodes of a tree do not.
    """
    forward = LlamaAttention.forward

    def biased(self, hidden_states, attention_mask=None, **named):
        mask, rows = attention_mask, hidden_states.shape[1]
        if mask is None:
            mask = torch.ones(1, 1, rows, rows, dtype=torch.bool).tril()
        if mask.dtype == torch.bool:
            mask = additive(mask.squeeze(1), hidden_states.dtype)
        bias = torch.arange(mask.shape[-1], dtype=mask.dtype)
        return forward(self, hidden_states, attention_mask=mask + bias, **named)

    patch.setattr(LlamaAttention, "forward", biased)
    new_answers(patch)


def new_answers(patch):
    """The plain model is another one under a patch of its class: no answer is known yet."""
    patch.setattr(world_of(), "_answers", {})


# --- state ---


def wrong_slot(patch):
    """A prompt begins in the first slots, whichever it was given."""
    start = PerSequence.start

    def first(self, prompt):
        start(self, dataclasses.replace(prompt, slots=list(range(len(prompt.slots)))))

    patch.setattr(PerSequence, "start", first)


def stale_slot(patch):
    """A slot is not emptied for its next sequence: the new prompt stands behind the old rows."""
    rewind = KVCache.rewind

    def kept(self, lengths, slots=None):
        if slots is None or len(slots) == self.num_slots:
            rewind(self, lengths, slots)
        else:
            rewind(self, lengths.to(self.device).clamp(min=1), slots)

    patch.setattr(KVCache, "rewind", kept)


def forgotten_answer(patch):
    """The second prompt has the first question, but not the answer to it."""
    render = Prompter.render
    patch.setattr(
        Prompter, "render", lambda self, turns, answers: render(self, turns, [""] * len(answers))
    )


def seeds_by_order(patch):
    """What is drawn depends on how many questions the process has answered."""
    calls = itertools.count()
    patch.setattr(Conversation, "seed", lambda self, seed, turn: next(calls))


# --- what has to turn red ---

EXPECTED = [  # (defect, check, method, variant)
    (typical_called_exact, law.check_law, "medusa", ""),
    (typical_called_exact, law.check_law, "eagle2", ""),
    (unwarped_bonus, law.check_law, "sps", ""),
    (unwarped_everything, law.check_law, "pld", ""),
    (unwarped_everything, law.check_law, "vanilla", ""),
    (forgotten_residual, law.check_law, "sps", ""),
    (forgotten_residual, law.check_law, "eagle", ""),
    (shared_uniforms, law.check_law, "sps", ""),
    (forgotten_ancestors, greedy.check_penalties, "recycling", ""),
    (forgotten_ancestors, greedy.check_penalties, "medusa", ""),
    (forgotten_ancestors, law.check_penalised_law, "sps", ""),
    (forgotten_ancestors, law.check_penalised_law, "pld", ""),
    (stale_counts, greedy.check_penalties, "vanilla", ""),
    (forgotten_ends, runs.check_flags, "recycling", ""),
    (peeking_stop, law.check_law, "sps", ""),
    (last_of_equals, greedy.check_ties, "vanilla", ""),
    (last_of_equals, greedy.check_ties, "medusa", ""),
    (second_best_will_do, greedy.check_exact, "recycling", ""),
    (second_best_will_do, greedy.check_exact, "nasd", ""),
    (forgotten_ends, greedy.check_eos, "recycling", ""),
    (forgotten_ends, greedy.check_ragged, "lookahead", ""),
    (forgotten_ends, greedy.check_stop_strings, "sps", ""),
    (forgotten_limit, greedy.check_limits, "nasd", ""),
    (forgotten_limit, greedy.check_full_context, "recycling", ""),
    (shifted_cache, greedy.check_logits, "medusa", ""),
    (shifted_cache, greedy.check_exact, "recycling", ""),
    (stale_rows, greedy.check_logits, "recycling", ""),
    (stale_rows, greedy.check_exact, "lookahead", ""),
    (batch_keeps_the_longest, greedy.check_exact, "sps", ""),
    (batch_keeps_the_longest, greedy.check_ragged, "recycling", ""),
    (batch_keeps_the_longest, greedy.check_empty, "nasd", ""),
    (seen_siblings, greedy.check_logits, "medusa", ""),
    (seen_siblings, greedy.check_exact, "recycling", ""),
    (positions_off_by_one, greedy.check_logits, "medusa", ""),
    (positions_off_by_one, greedy.check_exact, "recycling", ""),
    (call_maximum, greedy.check_exact, "vanilla", ""),
    (call_maximum, greedy.check_exact, "sps", ""),
    (column_bias, greedy.check_logits, "medusa", ""),
    (column_bias, greedy.check_exact, "recycling", ""),
    (wrong_slot, greedy.check_refilled, "pld", ""),
    (wrong_slot, greedy.check_refilled, "nasd", ""),
    (stale_slot, greedy.check_refilled, "vanilla", ""),
    (leaking_drafter, greedy.check_memory, "nasd", ""),
    (leaking_drafter, runs.check_order, "nasd", ""),
    (forgotten_answer, runs.check_two_turns, "vanilla", ""),
    (kept_blocks, check_cache, "dflash", ""),
    (uncorrected_laws, law.check_law, "dspark", ""),
    (seeds_by_order, runs.check_order, "vanilla", ""),
    (seeds_by_order, runs.check_resume, "vanilla", ""),
]
