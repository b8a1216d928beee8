"""SAM-Decoding: copy after the longest match in the text or in a corpus, else ask another drafter.

Match lengths include the last committed token, the root of the draft. The published code looks a
draft up before that token is text; here it has been appended, which gives the same matches.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from model.common.args import is_warm
from model.common.contract.drafter import Draft, Drafter, DraftShape, chain_parents
from model.common.contract.sequence import Guess, PerSequence, SequenceDrafter
from model.common.errors import BadInput
from model.common.prompts.prompter import load_tokenizer
from model.common.target.devices import ids_on
from model.samd.automaton import SuffixAutomaton
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


class SamRow(SequenceDrafter):
    """One sequence: the automaton of its text and, if there is one, a cursor into the corpus'."""

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


class SamRows(PerSequence):
    """SAM-Decoding without an auxiliary drafter: chains, and trees where there is a corpus."""

    def shapes(self):
        chains = [DraftShape(self.pad_to)] if self.pad_to and self.deepest else []
        return super().shapes() + chains


class CombinedDrafter(Drafter):
    """Every row copies where its match is long enough; the auxiliary drafter guesses elsewhere.

    One sequence that copies nothing gets the auxiliary's draft as it is. In a batch of both kinds
    the rows have parents of their own and end in inert nodes. An auxiliary drafter guesses points
    (no probs, no probes) and observes steps whose draft was not its own.
    """

    def __init__(self, rows: PerSequence, auxiliary: Drafter):
        self.rows, self.auxiliary, self.warm = rows, auxiliary, auxiliary.warm
        self.needs, self.reads_per_step = auxiliary.needs, auxiliary.reads_per_step

    def start(self, prefill, max_lengths, sampler):
        self.device = prefill.tokens.device
        self.rows.start(prefill, max_lengths, sampler)
        self.auxiliary.start(prefill, max_lengths, sampler)

    def forget(self):
        self.auxiliary.forget()

    def observe(self, step):
        self.rows.observe(step)
        self.auxiliary.observe(step)

    def facts(self):
        return {**self.auxiliary.facts(), **self.rows.facts()}

    def shapes(self):
        shapes = self.rows.shapes() + self.auxiliary.shapes()
        if len(self.rows.active) > 1 and self.rows.pad_to:
            widest = max(shape.num_nodes for shape in shapes)
            deepest = max(self.rows.pad_to, *(shape.depth for shape in shapes))
            shapes.append(DraftShape(widest, self.rows.any_parents(widest), deepest))
        return shapes

    def propose(self):
        copies = [row.propose() for row in self.rows.active]
        longest = max(len(copy or ()) for copy in copies)
        chosen = [row for row, copy in enumerate(copies) if copy is not None]
        if not chosen:
            return self.auxiliary.propose()
        if len(chosen) == len(copies):
            return Draft.chain(self._padded(copies, max(longest, self.rows.pad_to or 0)))
        guessed = self.auxiliary.propose()
        batch, num_guessed = guessed.tokens.shape
        num_nodes = max(longest, num_guessed, self.rows.pad_to or 0)
        tokens = guessed.tokens.new_full((batch, num_nodes), -1)
        parents = tokens.clone()
        tokens[:, :num_guessed], parents[:, :num_guessed] = guessed.tokens, guessed.parents
        tokens[chosen] = self._padded([copies[row] for row in chosen], num_nodes)
        parents[chosen] = chain_parents(num_nodes, self.device)
        return Draft(tokens, parents, max(longest, guessed.depth, self.rows.pad_to or 0))

    def _padded(self, copies: list[list[int]], num_nodes: int) -> torch.Tensor:
        """[len(copies), num_nodes], inert beyond each copy."""
        rows = [copy + [-1] * (num_nodes - len(copy)) for copy in copies]
        return ids_on(self.device, rows)


def build_drafter(args, target) -> Drafter:
    """The drafter that a command line asks for."""
    other = auxiliary(args.auxiliary, args, target)
    if other is None and is_warm(args):
        raise BadInput("--state warm needs an --auxiliary that keeps state")
    static = None
    if args.static_path:
        static = StaticAutomaton.open(args.static_path, load_tokenizer(args.model_path))
    numbers = (args.n_predicts, args.alpha, args.len_threshold, args.len_bias)
    settings = Settings(*numbers, combined=other is not None)
    pad_to = args.n_predicts - 1 if target.static_shapes else None
    facts = static.facts if static else dict
    deepest = args.n_predicts - 1 if static and other is None else None
    rows = SamRows(lambda: SamRow(settings, static), pad_to, facts, deepest)
    return rows if other is None else CombinedDrafter(rows, other)


def auxiliary(name: str, args, target) -> Drafter | None:
    """The drafter for short matches, by the name on the command line."""
    if name == "none":
        return None
    if name == "recycling":
        from model.recycling.drafter import RecyclingDrafter, read_tree

        tree = read_tree(str(Path(__file__).with_name("recycling_tree.json")), target.vocab_size)
        where = target.vocab_size, target.device
        return RecyclingDrafter(tree, *where, is_warm(args), runtime=args.runtime)
    if name == "eagle2":
        from model.eagle2.inference_eagle2 import build

        if not args.eagle_path:
            raise BadInput("--auxiliary eagle2 needs --eagle-path")
        if is_warm(args):
            raise BadInput("--state warm: --auxiliary eagle2 keeps no state")
        drafter = build(args, target)
        drafter.foreign = max(drafter.rows, args.n_predicts)  # steps may commit a whole copy
        return drafter
    raise BadInput(f"--auxiliary {name}: no such drafter")
