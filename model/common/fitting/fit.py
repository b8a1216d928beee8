"""Cut a drafter's tree to what pays on this machine, before the first question is timed.

The price of verification is measured, the whole tree is looked at over some of the questions, and
what the drafter itself takes is timed with the whole tree, with a chain and with one level. The
choice and what it was made from stand in the meta file (fitted_tree); a run that is resumed, and
all runs of one command, draft the same tree.
"""

from __future__ import annotations

from statistics import median

from model.common.contract.drafter import Drafter
from model.common.errors import BadInput, one_line
from model.common.fitting.choice import Cut, Seen, best_cut, by_confidence, by_rank
from model.common.fitting.price import price_of_rows
from model.common.loop.source import Prompts, Request

QUESTIONS, TOKENS = 8, 48  # that the whole tree is looked at over, at most, and of each answer
STEPS = 120  # after which no further question is begun
TIMED_TOKENS = 32  # of one answer, for each of the three trees
DEAREST = 8  # one-row forwards that a forward of the whole tree may take


def recorded_tree(files) -> dict | None:
    """What the answer files of a run have recorded; answers of several trees are bad input."""
    found = [(file.path, file.meta["fitted_tree"]) for file in files if "fitted_tree" in file.meta]
    for path, tree in found:
        if any(tree.get(name) != found[0][1].get(name) for name in ("num_nodes", "depth", "paths")):
            raise BadInput(
                f"{path}: its answers are of another tree than those of {found[0][0]}; "
                f"--overwrite replaces them"
            )
    return found[0][1] if found else None


def use(drafter: Drafter, tree: dict) -> None:
    """Let the drafter draft a recorded tree."""
    paths = tree.get("paths")
    paths = None if paths is None else [tuple(path) for path in paths]
    drafter.resize(tree["num_nodes"], tree["depth"], paths)


def said(tree: dict) -> str:
    """A recorded tree in a line."""
    nodes, depth = tree["whole"]
    return (
        f"tree: {tree['num_nodes']} of {nodes} nodes, depth {tree['depth']} of {depth}; expected "
        f"{tree['expected']:.2f} tokens a step and, after the prompt, {tree['tokens_per_s']:.1f} "
        f"tokens/s, without a draft {tree['plain_tokens_per_s']:.1f}"
    )


def fit_tree(drafter: Drafter, target, prompts: dict, num_slots: int, decode) -> dict:
    """Measure and choose; the drafter drafts the chosen tree from then on.

    prompts: {question id: ids}; decode(drafter, source) runs this run's loop in num_slots slots.
    Returns what is recorded: num_nodes, depth and, of a static tree, paths; `whole`: nodes and
    depth of the tree that was cut; price_s {rows: seconds of a forward}; beside_s, the drafter's
    seconds of a step; expected, tokens of a step; tokens_per_s of a slot, plain_tokens_per_s
    without a draft; the questions and the number of steps looked at.
    """
    prompts = dict(_spread(list(prompts.items()), QUESTIONS))
    if not prompts:
        raise BadInput("no question has a prompt that a tree could be fitted on; give its size")
    whole, paths = (drafter.max_nodes, drafter.max_depth), drafter.paths
    middle = sorted(prompts.values(), key=len)[len(prompts) // 2]
    try:
        dearest = min(DEAREST, 1 + whole[1])  # nothing of this depth could make up for more
        hidden = drafter.needs.hidden
        price = price_of_rows(target, middle, num_slots, 1 + whole[0], dearest, hidden)
        most = min(whole[0], max(price) - 1)
        drafter.resize(most, whole[1], paths and paths[:most])
        depth, paths = drafter.max_depth, drafter.paths
        seen, looked_at = _look(drafter, prompts, num_slots, decode)
        beside = _beside(drafter, most, middle, num_slots, decode)
    except BadInput:
        raise
    except Exception as error:  # of the device or of the model's own code
        raise BadInput(f"a tree cannot be fitted ({one_line(error)}); give its size") from error
    if paths is None:
        expected, order = by_confidence(seen, most, depth), None
    else:
        expected, order = by_rank(seen, paths)
    cut = best_cut(expected, price, beside)
    kept = {}
    if paths is not None:
        best = [node for node in order if len(paths[node]) <= cut.depth][: cut.num_nodes]
        kept = {"paths": [list(paths[node]) for node in sorted(best)]}
    found = {"num_nodes": cut.num_nodes, "depth": cut.depth, **kept, "whole": list(whole)}
    use(drafter, found)
    return found | _reasons(cut, price, beside) | {"questions": looked_at, "steps": len(seen)}


def _reasons(cut: Cut, price: dict[int, float], beside) -> dict:
    """What the choice was made from, for the record."""
    return {
        "price_s": {str(rows): round(seconds, 6) for rows, seconds in price.items()},
        "beside_s": round(beside(cut.num_nodes, cut.depth), 6),
        "expected": round(cut.expected, 3),
        "tokens_per_s": round(cut.tokens_per_s, 3),
        "plain_tokens_per_s": round(1 / price[1], 3),
    }


def _spread(items: list, num: int) -> list:
    """Some of a list, evenly over it.

    >>> _spread([0, 1, 2, 3, 4, 5, 6, 7], 3)
    [0, 2, 5]
    """
    num = min(num, len(items))
    return [items[place * len(items) // num] for place in range(num)]


def _look(drafter: Drafter, prompts: dict, num_slots: int, decode) -> tuple[list[Seen], list]:
    """(drafts of the whole tree in answers, as the target judged them; the questions)."""
    watched, names, reasons = Watched(drafter), list(prompts), []
    for begin in range(0, len(names), num_slots):
        group = names[begin : begin + num_slots]
        seeded = enumerate(group, begin)
        source = Prompts([Request(prompts[name], TOKENS, seed) for seed, name in seeded])
        decode(watched, source)
        reasons += source.reasons.values()
        if len(watched.seen) >= STEPS:
            break
    if not watched.seen:
        reason = reasons[0] if reasons else "their answers end at once"
        raise BadInput(f"no tree can be fitted on these questions: {reason}")
    return watched.seen, names[: begin + num_slots]


def _beside(drafter: Drafter, most: int, prompt: list[int], num_slots: int, decode):
    """beside(nodes, depth): seconds of a step that are not the target's forward.

    Linear in both, from the whole tree, a chain as deep, and one level of it.
    """
    paths, depth = drafter.paths, drafter.max_depth
    chain = paths and [path for path in paths if max(path) == 0]
    if chain == []:  # a tree without a node's best child
        chain = [paths[-1][:length] for length in range(1, 1 + len(paths[-1]))]
    level = paths and [path for path in paths if len(path) == 1]
    deep = len(chain) if paths else min(depth, most)
    wide = len(level) if paths else deep

    def seconds(*tree) -> float:
        drafter.resize(*tree)
        source = Prompts([Request(prompt, TIMED_TOKENS, seed) for seed in range(num_slots)])
        decode(drafter, source)
        phases = [turn.phase_s for turn in source.answers()]
        steps = [sum(pair) for one in phases for pair in zip(one["draft"], one["commit"])]
        return median(steps) if steps else 0.0

    of_whole, of_chain = seconds(most, depth, paths), seconds(deep, deep, chain)
    of_level = seconds(wide, 1, level)
    by_node = max(of_whole - of_chain, 0.0) / max(most - deep, 1)
    by_depth = max(of_chain - of_level - by_node * (deep - wide), 0.0) / max(deep - 1, 1)

    def beside(num_nodes: int, depth: int) -> float:
        return of_level + by_depth * (depth - 1) + by_node * max(num_nodes - wide, 0)

    return beside


class Watched(Drafter):
    """A drafter whose drafts are kept, with what the target accepted of them.

    seen  [Seen] of every step and running slot
    """

    def __init__(self, inner: Drafter):
        self.inner, self.needs = inner, inner.needs
        self.max_nodes, self.max_depth = inner.max_nodes, inner.max_depth
        self.seen: list[Seen] = []

    def reserve(self, num_slots, capacity, sampler):
        self.inner.reserve(num_slots, capacity, sampler)

    def start(self, prompt):
        self.inner.start(prompt)

    def propose(self):
        self.draft = self.inner.propose()
        return self.draft

    def observe(self, step):
        draft = self.draft
        tokens, tree = draft.tokens.tolist(), draft.layout
        parents = tree.parents.expand(draft.tokens.shape).tolist()
        depths = tree.depths.expand(len(tokens), -1)[:, 1:].tolist()
        scores = [[]] * len(tokens) if draft.scores is None else draft.scores.tolist()
        for slot, path in enumerate(step.path.tolist()):
            if step.host_ids[slot]:
                rows = set(path)
                accepted = [node + 1 in rows for node in range(len(tokens[slot]))]
                self.seen.append(Seen(scores[slot], depths[slot], parents[slot], accepted))
        self.inner.observe(step)

    def end(self, slots):
        self.inner.end(slots)
