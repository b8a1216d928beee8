"""Does the loop read a model as transformers does? Asked once, when it is loaded.

Short random prompts are read into two slots, a tree and then a chain behind it, and every row's
logits are held to those that the model itself gives for the same tokens, with transformers' own
attention and no cache. What is wrong for every prompt (a bias by column, a mask that a model does
not pass on, a cache that it does not continue) is so refused before the run starts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.common.contract.drafter import Draft, Needs
from model.common.contract.trees import Tree
from model.common.errors import BadInput, Unsupported, one_line
from model.common.loop.ranking import finite_rows
from model.common.target.attention import NAME, own_attention

PROMPTS = (5, 3)  # tokens; of two slots, where there are several
PARENTS = [-1, 0, -1, 2, 2]  # 0-1 and 2-3, 2-4: two branches, one of them forked
ACCEPTED = [0, 3, 5]  # rows: the root, nodes 2 and 4
TRIES = 6  # in half precision
CONTEXT = 16  # that it needs: rows beyond a model's context are read at its last position
ROUNDING = {torch.float64: 1e-3, torch.float32: 0.02}  # of the logits' spread; half precision: 0.5


@torch.inference_mode()
def check(target) -> None:
    """Raise Unsupported where a target's logits are not the model's own; one with a context below
    CONTEXT is not asked.

    In half precision a row is wrong that is wrong for every one of TRIES prompts: a mixture of
    experts may send a token elsewhere in one reading than in the other, which is rounding.
    """
    if target.context is not None and target.context < CONTEXT:
        return
    generator, wrong = torch.Generator().manual_seed(0), None
    for _ in range(1 if target.dtype in ROUNDING else TRIES):
        errors = _errors(target, generator)
        most = ROUNDING.get(target.dtype, 0.5)
        found = {row: error for row, error in errors.items() if not error <= most}
        wrong = {row: error for row, error in found.items() if wrong is None or row in wrong}
        if not wrong:
            return
    (_, length), error = max(wrong.items(), key=lambda item: item[1])
    raise _refusal(
        target,
        f"its logits after {length} tokens, read behind a cache, are {error:.2g} times their "
        "spread away from those of the model itself",
    )


def _errors(target, generator) -> dict:
    """{(row, tokens that it has read): largest error of its logits, in units of their spread}."""
    most = min(target.vocab_size, 1000)
    prompts = [torch.randint(most // 10, most, (n,), generator=generator) for n in PROMPTS]
    prompts = prompts if target.reads_trees else prompts[:1]
    try:
        with target.runtime.prompts():  # nothing is compiled for it
            found = list(_read_tree(target, prompts, generator, most))
        expected = _whole(target, [ids for ids, _ in found])
    except BadInput:
        raise
    except Exception as error:  # an old model's own forward may trip over anything
        raise _refusal(target, f"it cannot be read ({one_line(error)})") from error
    read = expected if target.dtype in ROUNDING else [*expected, *(logits for _, logits in found)]
    if not finite_rows(torch.stack(read)).all():
        return {}  # half precision overflows: the loop names it, question by question
    errors = {}
    for row, ((ids, logits), right) in enumerate(zip(found, expected)):
        known = right.isfinite()  # -inf: a token that is ruled out
        ours, right = logits[known].double(), right[known].double()
        errors[row, len(ids)] = ((ours - right).abs().max() / right.std()).item()
    return errors


def _refusal(target, reason: str) -> Unsupported:
    return Unsupported(
        f"model type {target.model.config.model_type}: {reason}; it is not supported"
    )


def _read_tree(target, prompts: list[Tensor], generator, most: int):
    """Yield (ids, logits [V] after them) of rows of a tree, and of a chain behind it."""
    device, size = target.device, len(prompts)
    target.reserve(size, 32)
    lengths = [len(ids) for ids in prompts]
    padded = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True).to(device)
    logits = target.prefill(list(range(size)), padded, lengths, Needs()).logits
    before = [ids.tolist() for ids in prompts]
    yield from zip(before, logits)
    shapes = [Tree(torch.tensor(PARENTS, device=device), 2)] if target.reads_trees else [None]
    for shape in [*shapes, None]:
        root = torch.randint(most // 10, most, (size,), generator=generator)
        nodes = torch.randint(most // 10, most, (size, len(PARENTS)), generator=generator)
        draft = Draft(nodes.to(device), shape)
        longest = max(map(len, before)) + 1
        logits, states = target.forward(root.to(device), draft, longest, ("last",))
        target.plain_states = states["last"].shape == (*logits.shape[:2], target.config.hidden_size)
        rows = torch.cat([root.unsqueeze(1), nodes], 1)
        for slot, prefix in enumerate(before):
            for row, line in enumerate(draft.layout.ancestors[0].tolist()):
                above = [int(rows[slot, i]) for i, is_above in enumerate(line) if is_above]
                yield prefix + above, logits[slot, row]
        path = ACCEPTED if shape is not None else [0, 1, 2]
        kept = torch.tensor([path] * size, device=device)
        count = torch.full((size,), len(path), device=device)
        target.cache.keep(kept if shape is not None else None, count)
        before = [ids + rows[slot, path].tolist() for slot, ids in enumerate(before)]


def _whole(target, sequences: list[list[int]]) -> list[Tensor]:
    """The model's own logits after each sequence; what others begin with is read with them."""
    sequences = [tuple(ids) for ids in sequences]
    read: dict[tuple, Tensor] = {}
    if target.reads_trees:
        own_attention(target.model)
    try:
        for ids in sorted(set(sequences), key=len, reverse=True):
            if ids not in read:
                logits = target.whole(list(ids))
                read |= {ids[: len(ids) - i]: logits[-1 - i] for i in range(len(logits))}
    finally:
        if target.reads_trees:
            target.model.set_attn_implementation(NAME)
    return [read[ids] for ids in sequences]
