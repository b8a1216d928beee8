"""SpecExec by its definition: best-first on a dictionary of paths, a plain forward for each node.

Nothing here is shared with the method's code.
"""

import math


def best_paths(laws, shape, deepest):
    """{path: score} of the budget best nodes, grown in passes as SpecExec grows them.

    laws(path) -> log probabilities [V] after a path; deepest: most tokens of a path.
    """
    bonus = math.log(shape.decay)
    found, done = {}, set()
    for number in range(shape.beam_len):
        open_paths = [path for path in found if path not in done and len(path) < deepest]
        open_paths.sort(key=lambda path: -found[path])
        batch = [()] if number == 0 else open_paths[: shape.num_beams]
        for path in batch:
            done.add(path)
            logq = laws(path).tolist()
            order = sorted(range(len(logq)), key=lambda token: -logq[token])
            for token in order[: shape.branch_width]:
                score = found.get(path, 0.0) + bonus + logq[token]
                if score > shape.min_log_prob:
                    found[(*path, token)] = score
        best = sorted(found, key=lambda path: -found[path])[: shape.budget]
        found = {path: found[path] for path in best}
    return found


def every_path(laws, vocab_size, depth, decay=0.95):
    """{path: score} of all paths up to a depth."""
    found, layer = {}, {(): 0.0}
    for _ in range(depth):
        layer = {
            (*path, token): score + math.log(decay) + logq
            for path, score in layer.items()
            for token, logq in enumerate(laws(path).tolist()[:vocab_size])
        }
        found |= layer
    return found


def paths_of(draft, slot=0):
    """Token paths of a draft's nodes, inert ones left out."""
    tokens = draft.tokens[slot].tolist()
    parents = draft.layout.parents.expand(draft.tokens.shape)[slot].tolist()
    return live_paths(tokens, parents)


def live_paths(tokens, parents):
    """Token paths of nodes given as lists; -1 is an inert node."""
    paths = []
    for token, parent in zip(tokens, parents):
        above = () if parent < 0 else paths[parent]
        paths.append(None if token < 0 or above is None else (*above, token))
    return [path for path in paths if path is not None]
