"""Acceptance rules: pure functions of the target's logits, the draft and one uniform per position.

    greedy            exact for any tree, temperature 0
    token_matching    exact for any tree of point guesses: draw the target's token where you stand,
                      walk on while a child carries it
    rejection         exact for a chain sampled from known distributions
                      (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318)
    multi_round       exact for a tree sampled from known distributions, siblings with or without
                      replacement (SpecInfer, arXiv 2305.09781; EAGLE, arXiv 2401.15077)
    typical           lossy: accepts what the target finds likely enough (Medusa, arXiv 2401.10774)

One uniform decides a position: after a refusal with probability 1 - a, (u - a) / (1 - a) is uniform
again and independent of the refusal, so it serves the next sibling and at last the draw from the
residual.

logits [B, 1+n, V]; uniforms [B, 1+depth], float64; nodes and rows as in contract/trees.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.common.contract import trees as tree
from model.common.contract.drafter import Draft
from model.common.contract.trees import Accepted
from model.common.loop.ranking import best_id
from model.common.loop.sampling import draw


def choose(sampler, draft: Draft, typical: tuple[float, float] | None = None):
    """The rule for a draft under a sampler, as a function of logits; typical = (epsilon, delta)."""
    if typical is not None:
        return lambda logits: typical_acceptance(logits, draft, sampler.temperature, *typical)
    if sampler.greedy:
        return lambda logits: greedy(logits, draft)
    uniforms = sampler.uniform(1 + draft.depth, 0)
    if draft.probs is None:
        rule = token_matching
    else:
        rule = rejection if draft.is_chain else multi_round
    return lambda logits: rule(logits, draft, sampler.warp, uniforms)


def _tree_result(draft: Draft, row: Tensor, bonus: Tensor) -> Accepted:
    """The path to `row` [B]: its own tokens shifted by one, then the bonus [B]."""
    shape = draft.layout
    return tree.line_to(row, bonus, draft.tokens, shape.ancestors, shape.depths, draft.depth)


def greedy(logits: Tensor, draft: Draft) -> Accepted:
    """Keep the longest path whose every token is the target's first best at its parent."""
    best = best_id(logits)  # [B, 1+n]
    if draft.is_chain:
        return greedy_chain(best, draft.tokens)
    match = draft.candidates == best.gather(1, _parents(draft))
    row = tree.deepest(match, draft.layout.ancestors, draft.layout.depths)
    return _tree_result(draft, row, best.gather(1, row.unsqueeze(1)).squeeze(1))


def greedy_chain(best: Tensor, tokens: Tensor) -> Accepted:
    """greedy() of a chain of tokens [B, n], from the target's best ids [B, 1+n]."""
    match = tokens == best[:, :-1]
    return Accepted(1 + match.cumprod(1).sum(1), best)


def _parents(draft: Draft) -> Tensor:
    """Parent row of every node, [B, n]."""
    return draft.layout.parent_rows[:, 1:].expand(draft.tokens.shape)


def token_matching(logits: Tensor, draft: Draft, warp, uniforms: Tensor) -> Accepted:
    """Draw the target's token where you stand and walk on while a child carries it.

    You stand on every node that spells the tokens drawn so far: drafts of several chains repeat
    common prefixes. Only one row of them is warped: a top-p sort of all rows would cost more than
    the forward.
    """
    batch = draft.tokens.shape[0]
    tokens, parents = draft.candidates, _parents(draft)
    rows = torch.arange(batch, device=logits.device)
    row = torch.zeros_like(rows)
    here = torch.zeros(batch, 1 + tokens.shape[1], dtype=torch.bool, device=logits.device)
    here[:, 0] = True
    walking = torch.ones_like(rows, dtype=torch.bool)
    bonus = row
    for level in range(1 + draft.depth):
        token = draw(warp(logits[rows, row]), uniforms[:, level])
        bonus = torch.where(walking, token, bonus)
        if level == draft.depth:
            break
        child = here.gather(1, parents) & (tokens == token.unsqueeze(1))
        walking = walking & child.any(1)
        if _nobody(walking):
            break
        row = torch.where(walking, child.int().argmax(1) + 1, row)
        here = torch.nn.functional.pad(child, (1, 0))
    return _tree_result(draft, row, bonus)


def _nobody(mask: Tensor) -> bool:
    """Whether a loop can end early; asked only where the answer costs no device read."""
    return mask.device.type == "cpu" and not bool(mask.any())


def _residual(target: Tensor, proposal: Tensor) -> Tensor:
    """Normalised positive part of target - proposal; the target itself where nothing is left."""
    rest = (target - proposal).clamp(min=0)
    total = rest.sum(-1, keepdim=True)
    return torch.where(total > 0, rest / total.clamp(min=1e-38), target)


def _ratio(target: Tensor, proposal: Tensor, token: Tensor) -> Tensor:
    """min(1, p(token) / q(token)), float64; 0 for inert tokens and where q is 0."""
    index = token.clamp(min=0).unsqueeze(-1)
    above = target.gather(-1, index).squeeze(-1).double()
    below = proposal.gather(-1, index).squeeze(-1).double()
    ratio = (above / below.clamp(min=1e-300)).clamp(max=1)
    return ratio.masked_fill((token < 0) | (below <= 0), 0.0)


def rejection(logits: Tensor, draft: Draft, warp, uniforms: Tensor) -> Accepted:
    """Accept d_j with probability min(1, p_j(d_j) / q_j(d_j)), else draw from the residual."""
    target = warp(logits)  # [B, 1+n, V]
    num_nodes = draft.tokens.shape[1]
    inert = draft.tokens < 0
    accept = _ratio(target[:, :-1], draft.probs, draft.tokens)  # [B, n]
    kept = (uniforms[:, :num_nodes] < accept).long().cumprod(1).sum(1)  # [B]
    at = kept.view(-1, 1, 1).expand(-1, 1, target.shape[-1])
    stop = target.gather(1, at).squeeze(1)  # [B, V]
    uniform = uniforms.gather(1, kept.unsqueeze(1)).squeeze(1)
    if num_nodes:
        last = kept.clamp(max=num_nodes - 1).unsqueeze(1)
        proposal = draft.probs.gather(1, last.unsqueeze(-1).expand(-1, 1, stop.shape[-1])).squeeze(
            1
        )
        refused = (kept < num_nodes) & ~inert.gather(1, last).squeeze(1)
        chance = accept.gather(1, last).squeeze(1)
        stop = torch.where(refused.unsqueeze(1), _residual(stop, proposal), stop)
        again = (uniform - chance) / (1 - chance).clamp(min=1e-300)
        uniform = torch.where(refused, again, uniform)
    bonus = draw(stop, uniform)
    tokens = torch.cat([draft.tokens, bonus.unsqueeze(1)], dim=1)
    return Accepted(kept + 1, tokens.scatter(1, kept.unsqueeze(1), bonus.unsqueeze(1)))


def multi_round(logits: Tensor, draft: Draft, warp, uniforms: Tensor) -> Accepted:
    """Try the children of the node reached one after another, taking what each refused out of the
    target.

    One pass over the nodes in order: parents stand before children, siblings in the order of their
    draws.
    """
    tokens, parents = draft.candidates, _parents(draft)
    rows = torch.arange(tokens.shape[0], device=logits.device)
    row, level = torch.zeros_like(rows), torch.zeros_like(rows)
    target, uniform = warp(logits[:, 0]), uniforms[:, 0]
    for node in range(tokens.shape[1]):
        token, proposal = tokens[:, node], draft.probs[:, node]
        known = proposal.gather(1, token.clamp(min=0).unsqueeze(1)).squeeze(1) > 0
        tried = (parents[:, node] == row) & (token >= 0) & known
        if _nobody(tried):
            continue
        chance = _ratio(target, proposal, token)
        taken = tried & (uniform < chance)
        refused = tried & ~taken
        again = (uniform - chance) / (1 - chance).clamp(min=1e-300)
        uniform = torch.where(refused, again, uniform)
        target = torch.where(refused.unsqueeze(1), _residual(target, proposal), target)
        if _nobody(taken):
            continue
        row, level = torch.where(taken, node + 1, row), level + taken.long()
        target = torch.where(taken.unsqueeze(1), warp(logits[rows, row]), target)
        uniform = torch.where(taken, uniforms.gather(1, level.unsqueeze(1)).squeeze(1), uniform)
    return _tree_result(draft, row, draw(target, uniform))


def typical_acceptance(
    logits: Tensor, draft: Draft, temperature: float, epsilon: float = 0.09, delta: float = 0.3
) -> Accepted:
    """Accept a node whose probability exceeds min(epsilon, delta * exp(-entropy)); then the argmax.

    Lossy by design. Ties between deepest nodes go to the likelier path. Temperature 0 reads as 1.
    """
    logp = (
        (logits if logits.dtype == torch.float64 else logits.float()) / (temperature or 1.0)
    ).log_softmax(-1)
    entropy = -(logp.exp() * (logp.exp() + 1e-5).log()).sum(-1)  # [B, 1+n]
    threshold = (delta * (-entropy).exp()).clamp(max=epsilon)
    parents, tokens = _parents(draft), draft.candidates
    at = logp.gather(1, parents.unsqueeze(-1).expand(-1, -1, logp.shape[-1]))
    node_logp = at.gather(2, tokens.clamp(min=0).unsqueeze(-1)).squeeze(-1)  # [B, n]
    match = (node_logp.exp() > threshold.gather(1, parents)) & (tokens >= 0)
    ancestors = draft.layout.ancestors
    own = torch.cat([node_logp.new_zeros(node_logp.shape[0], 1), node_logp], dim=1)
    score = (ancestors * own.unsqueeze(1)).sum(-1)
    row = tree.deepest(match, ancestors, draft.layout.depths, score)
    bonus = best_id(logits).gather(1, row.unsqueeze(1)).squeeze(1)
    return _tree_result(draft, row, bonus)
