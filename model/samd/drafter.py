"""SAM-Decoding: copy after the longest match in the text or in a corpus, else ask another drafter.

Match lengths include the last committed token, the root of the draft. The published code looks a
draft up before that token is text; here it has been appended, which gives the same matches.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch

from model.common.args import is_warm
from model.common.contract.drafter import Draft, Drafter
from model.common.contract.sequence import Guess, PerSequence, SequenceDrafter, draft_of, padded
from model.common.contract.trees import Tree
from model.common.errors import BadInput
from model.common.prompts.prompter import load_tokenizer
from model.samd.automaton import SuffixAutomaton
from model.samd.flags import settings_of
from model.samd.static import StaticAutomaton

DYNAMIC, STATIC, AUXILIARY = "dynamic", "static", "auxiliary"


@dataclass(frozen=True)
class Settings:
    """Published names. n_predicts and alpha * match count a draft's rows with its root.

    combined   an auxiliary drafter is there for short matches: threshold and bias decide and every
               copy has n_predicts rows; otherwise a copy has at most 1 + alpha * match rows
    """

    n_predicts: int = 40
    alpha: float = 4.0
    len_threshold: int = 5
    len_bias: int = 5
    combined: bool = False

    def select(self, dynamic: int, static: int) -> str:
        """Which source drafts, by match lengths; ties go to the text's own automaton."""
        if not self.combined:
            return DYNAMIC if dynamic >= static else STATIC
        static -= self.len_bias
        if max(dynamic, static) < self.len_threshold:
            return AUXILIARY
        return DYNAMIC if dynamic >= static else STATIC

    def num_draft(self, match: int) -> int:
        """Draft tokens after the root for a match of this length."""
        if self.combined:
            return self.n_predicts - 1
        return min(self.n_predicts - 1, int(self.alpha * match))


class SamSequence(SequenceDrafter):
    """One sequence: the automaton of its text and, if there is one, a cursor into the corpus'.

    Both begin anew with every prompt, also that of a question's second turn, as published; the
    first turn stands in that prompt.
    """

    def __init__(self, settings: Settings, static: StaticAutomaton | None = None):
        self.settings, self.static = settings, static

    def start(self, ids):
        self.dynamic, self.cursor = SuffixAutomaton(), (0, 0)
        self.observe(ids)

    def observe(self, ids):
        self.dynamic.extend(ids)
        if self.static:
            self.cursor = self.static.move(self.cursor, ids)

    def propose(self):
        """A chain, a tree from the corpus, or None where the auxiliary drafter should guess."""
        settings = self.settings
        match, (state, static_match) = self.dynamic.match(), self.cursor
        source = settings.select(match, static_match)
        if source == AUXILIARY:
            return None
        if source == DYNAMIC:
            return self.dynamic.copy(settings.num_draft(match), climb=settings.combined)
        num = settings.num_draft(static_match)
        if settings.combined:
            return self.static.copy(state, num)
        tokens, parents, depths = self.static.tree(state, num)
        return Guess(tokens, parents, max(depths, default=0))


class CombinedDrafter(Drafter):
    """Every slot copies where its match is long enough; the auxiliary drafter guesses elsewhere.

    Where no slot copies, the draft is the auxiliary's as it is. In a batch of both kinds the slots
    have parents of their own and end in inert nodes. An auxiliary drafter guesses points (no probs,
    no probes) and observes steps whose draft was not its own; what it keeps from one turn or
    question to the next is its own affair.
    """

    def __init__(self, copies: PerSequence, auxiliary: Drafter):
        self.copies, self.auxiliary = copies, auxiliary
        self.needs, self.reads_per_step = auxiliary.needs, auxiliary.reads_per_step
        self.max_nodes = max(copies.max_nodes, auxiliary.max_nodes)
        self.max_depth = max(copies.max_nodes, auxiliary.max_depth or auxiliary.max_nodes)

    def facts(self):
        return {**self.auxiliary.facts(), **self.copies.facts()}

    def forget(self):
        self.auxiliary.forget()

    def reserve(self, num_slots, capacity, sampler):
        self.copies.reserve(num_slots, capacity, sampler)
        self.auxiliary.reserve(num_slots, capacity, sampler)

    def start(self, prompt):
        self.device = prompt.tokens.device
        self.copies.start(prompt)
        self.auxiliary.start(prompt)

    def observe(self, step):
        self.copies.observe(step)
        self.auxiliary.observe(step)

    def end(self, slots):
        self.copies.end(slots)
        self.auxiliary.end(slots)

    def propose(self):
        copies = self.copies.guesses()  # None where the auxiliary is asked
        if None not in copies:
            return draft_of(copies, self.device)
        guessed = self.auxiliary.propose()
        if not any(runs for copy, runs in zip(copies, self.copies.running) if copy is not None):
            return guessed
        copied = draft_of([copy or [] for copy in copies], self.device)
        num_nodes = max(copied.tokens.shape[1], guessed.tokens.shape[1])
        depth = max(copied.depth, guessed.depth)
        copied, guessed = (padded(draft, num_nodes, depth) for draft in (copied, guessed))
        copies_here = [[copy is not None] for copy in copies]
        copies_here = torch.tensor(copies_here, device=self.device)  # [B, 1]
        tokens = torch.where(copies_here, copied.tokens, guessed.tokens)
        parents = torch.where(copies_here, copied.layout.parents, guessed.layout.parents)
        sound = None if guessed.sound is None else guessed.sound | copies_here[:, 0]
        return Draft(tokens, Tree(parents, depth), sound=sound)


def build_drafter(args, target) -> Drafter:
    """The drafter that a command line asks for."""
    found = settings_of(args)
    other = auxiliary(args, found, target)
    if other is None and is_warm(args):
        raise BadInput("--state warm needs an --auxiliary that keeps state")
    static = None
    if args.static_path:
        static = StaticAutomaton.open(args.static_path, load_tokenizer(args.model_path))
    chosen = {name: found[name] for name in ("alpha", "len_threshold", "len_bias") if name in found}
    settings = Settings(args.n_predicts, combined=other is not None, **chosen)
    facts = static.facts if static else dict
    num_draft = args.n_predicts - 1
    max_depth = num_draft if static and other is None else None  # trees come from the corpus
    copies = PerSequence(lambda: SamSequence(settings, static), num_draft, max_depth, facts)
    return copies if other is None else CombinedDrafter(copies, other)


def auxiliary(args, found: dict, target) -> Drafter | None:
    """The drafter for short matches, None = there is none; found: of settings_of()."""
    if args.auxiliary == "none":
        return None
    if args.auxiliary == "recycling":
        from model.recycling.drafter import RecyclingDrafter, read_tree

        tree = read_tree(str(Path(__file__).with_name("recycling_tree.json")), target.vocab_size)
        settings = is_warm(args), found["prompt_seeds"]
        return RecyclingDrafter(tree, target.vocab_size, target.device, *settings)
    from model.eagle2.inference_eagle2 import build

    if not args.eagle_path:
        raise BadInput("--auxiliary eagle2 needs --eagle-path")
    if is_warm(args):
        raise BadInput("--state warm: --auxiliary eagle2 keeps no state")
    own = copy.copy(args)
    vars(own).update(found)
    return build(own, target)
