"""A draft model's chain. Its cache trails the committed sequence by two tokens (see Tails)."""

from __future__ import annotations

import torch

from model.common.contract.drafter import Draft, Drafter, DraftShape, Needs, chain_parents
from model.common.errors import BadInput
from model.common.loop.sampling import draw
from model.common.target.devices import on
from model.common.target.loading import load_target
from model.common.target.model import Target
from model.common.target.tails import Tails

SHORTEST = 4  # nodes; static runtimes round varying draft lengths up to powers of two from here
CHAIN = 64  # nodes of a draft that is collected by the calls that read it, at most
GROWTH = 24  # nodes that 12 full accepts in a row add; a longer draft compiles when it comes


class SpSDrafter(Drafter):
    """Draft length per row: constant, heuristic (+2 / -1, reset each turn) or by confidence.

    draft        the draft model as a Target, on any device
    confidence   the schedule ends a row's draft after the first token whose draft probability is
                 below it; that token stays in the draft, so the choice to go on never looks at the
                 token it admits
    reads        what a prefill of the draft model gives
    """

    reads = Needs()

    def __init__(
        self, draft: Target, target: Target, schedule: str, num_draft: int, confidence: float
    ):
        self.draft, self.schedule = draft, schedule
        self.num_draft, self.confidence = num_draft, confidence
        self.vocab_size = target.vocab_size
        # ids beyond it, of a padded target, are read as the last one: a guess may be wrong
        self.last_id = draft.vocab_size - 1
        self.static_shapes = target.static_shapes
        self.reads_per_step = num_draft if schedule == "confidence" else 0
        # no schedule asks how likely a token is: where shapes are static, a call that reads one
        # chooses the next
        self.in_calls = schedule in ("constant", "heuristic")

    def start(self, prefill, max_lengths, sampler):
        self.sampler = sampler
        self.device = prefill.tokens.device
        ids = prefill.tokens.clamp(0, self.last_id).to(self.draft.device)
        lengths = [len(row) - 1 for row in prefill.host_ids]
        self.draft.prefill(ids, lengths, max(max_lengths) + 2 * self.num_draft + 64, self.reads)
        self.tails = Tails(prefill.host_ids, self.draft)
        self.planned = [self.num_draft] * len(lengths)
        self.committed = prefill.max_committed
        self.room = [most - length - 2 for most, length in zip(max_lengths, lengths)]  # for drafts

    def shapes(self):
        if self.schedule == "constant":
            return [DraftShape(self.num_draft)]
        longest = self.num_draft + (GROWTH if self.schedule == "heuristic" else 0)
        widths = [SHORTEST]
        while widths[-1] < longest:
            widths.append(2 * widths[-1])
        return [DraftShape(width) for width in widths]

    def warm(self, capacity):
        self.draft.warm(capacity + self.num_draft)

    def propose(self):
        self.lengths = [max(min(pair), 0) for pair in zip(self.planned, self.room)]
        longest = max(self.planned if self.static_shapes else self.lengths)
        unread = self.tails.rewind(self.committed)
        in_calls = self.in_calls and self.sampler.greedy and self.draft.static_shapes
        if in_calls and 0 < longest <= CHAIN:
            return self._as_draft(self._likeliest_chain(unread, longest), longest, None)
        tokens, probs = [], []
        alive = None  # rows whose draft goes on, None = all
        for node in range(longest):
            logits = self._read(unread, node)
            self.draft.cache.length.add_(unread.shape[1])
            token, distribution, sure = self._choose(logits, node)
            tokens.append(token if alive is None else token.masked_fill(~alive, -1))
            probs.append(distribution)
            unread = token.unsqueeze(1).clamp(max=self.last_id)
            goes_on = self._goes_on(node, token, sure)
            if goes_on is not None:
                alive = goes_on if alive is None else alive & goes_on
                if not alive.any():
                    break
        if not tokens:
            empty = torch.empty(len(self.lengths), 0, dtype=torch.long, device=self.device)
            return Draft.chain(empty)
        width = self._width(len(tokens))
        chain = torch.stack(tokens, 1)
        chain = torch.nn.functional.pad(chain, (0, width - len(tokens)), value=-1)
        return self._as_draft(chain, len(tokens), None if probs[0] is None else probs)

    def _likeliest_chain(self, unread, num: int):
        """Tokens [B, w], num of them the best ones after the unread [B, 2], the others -1."""
        read, chain = self.draft.reader(self.committed + num - 1, self._likeliest), None
        for _ in range(num):
            unread, chain = read(unread, chain)
        width = self._width(num)
        if len(self.lengths) == 1:  # in one operation, with the strides of a tensor of its own
            return chain.as_strided((1, width), (width, 1))
        return chain[:, :width].contiguous()

    def _likeliest(self, logits, _, __, ___, chain) -> tuple:
        """The best token after the rows read [B, 1], and it behind the chain [B, CHAIN], -1 padded.

        chain: None = empty. In the rows' own call; the draft model's cache has them then.
        """
        self.draft.cache.length.add_(logits.shape[1])
        token = _to_width(logits[:, -1:], self.vocab_size).argmax(-1)
        if chain is None:
            return token, torch.nn.functional.pad(token, (0, CHAIN - 1), value=-1)
        columns = torch.arange(CHAIN, device=token.device)
        return token, torch.where(columns == (chain >= 0).sum(1, keepdim=True), token, chain)

    def _width(self, num_nodes: int) -> int:
        """Nodes of a draft of so many tokens: static runtimes round varying lengths up."""
        if self.static_shapes and self.schedule != "constant":
            return max(SHORTEST, 1 << (num_nodes - 1).bit_length())
        return num_nodes

    def _read(self, unread, node: int):
        """The draft model's logits [B, V] after the unread tokens [B, r]."""
        logits, _ = self.draft.read(unread, None, None, self.committed + node)
        return logits[:, -1]

    def _goes_on(self, node: int, token, sure):
        """Rows [B] bool that draft on after this node, which stays in the draft; None = all."""
        return sure

    def _choose(self, logits, node: int):
        """(token [B], its distribution [B, V] or None, whether it is likely enough [B])."""
        logits = _to_width(logits, self.vocab_size)
        if self.sampler.greedy:
            token, distribution = logits.argmax(-1), None
            likely = logits.float().softmax(-1) if self.schedule == "confidence" else None
        else:
            distribution = likely = self.sampler.warp(logits)
            uniform = self.sampler.uniform(1, 1, first=node).squeeze(1).to(logits.device)
            token = draw(distribution, uniform)
        sure = None
        if self.schedule == "confidence":
            sure = likely.gather(1, token.unsqueeze(1)).squeeze(1) >= self.confidence
        return token, distribution, sure

    def _as_draft(self, chain, num_nodes: int, probs: list | None) -> Draft:
        """A draft of tokens [B, w], of which num_nodes are drafted and the others inert.

        probs: the distribution [B, V] of each. Rows shorter than the longest end in inert nodes.
        """
        chain, width = on(self.device, chain), chain.shape[1]
        if min(self.lengths) < num_nodes:
            limits = torch.tensor(self.lengths, device=self.device).unsqueeze(1)
            chain = chain.masked_fill(torch.arange(width, device=self.device) >= limits, -1)
        if probs is None:
            return Draft.chain(chain)
        stacked = torch.stack(probs, 1).to(self.device)
        stacked = torch.nn.functional.pad(stacked, (0, 0, 0, width - num_nodes))
        return Draft(chain, chain_parents(width, chain.device), width, stacked)

    def observe(self, step):
        self.tails.observe(step.host_ids)
        self.committed = step.max_committed
        for row, ids in enumerate(step.host_ids):
            self.room[row] -= len(ids)
            if self.schedule == "heuristic" and ids:
                full = len(ids) - 1 == self.lengths[row]
                planned = self.planned[row]
                self.planned[row] = planned + 2 if full else max(1, planned - 1)


def _to_width(logits, width: int):
    """Cut or pad with -inf to the target's vocabulary (padded vocabularies differ)."""
    missing = width - logits.shape[-1]
    if missing <= 0:
        return logits[..., :width]
    return torch.nn.functional.pad(logits, (0, missing), value=float("-inf"))


def load_draft_model(args, target: Target, usual: str | None = None) -> Target:
    """The draft model in the target's dtype and runtime; one with other token ids is refused.

    usual: size of its twin in this method, see shapes.draft_shape().
    """
    from model.common.prompts.prompter import load_tokenizer
    from model.common.target.loading import check_model_path
    from model.common.target.twin.shapes import draft_shape

    check_model_path(args.drafter_path)
    own = load_tokenizer(args.drafter_path).get_vocab()
    wanted = load_tokenizer(args.model_path).get_vocab()
    if own != wanted:
        token = next(t for t in {**wanted, **own} if own.get(t) != wanted.get(t))
        raise BadInput(
            f"--drafter-path: the vocabulary of {args.drafter_path} ({len(own)} tokens) is not "
            f"that of {args.model_path} ({len(wanted)} tokens): {token!r} is {own.get(token)} in "
            f"the first and {wanted.get(token)} in the second"
        )
    device = args.drafter_device or str(target.device)
    return load_target(
        args.drafter_path, args.dtype, device, args.runtime, scale_to=draft_shape(args, usual)
    )
