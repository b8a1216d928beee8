"""Draft trees the slow way: lines of rows as lists, and random parents."""

import random


def slow_lines(parents):
    """The rows from the root to each row, as lists: row 0 is the root, node i is row i + 1."""
    lines = [[0]]
    for node, parent in enumerate(parents):
        lines.append(lines[parent + 1] + [node + 1])
    return lines


def random_parents(num_nodes, seed):
    """Parents before children, -1 = the root."""
    chance = random.Random(seed)
    return [chance.randint(-1, node - 1) for node in range(num_nodes)]
