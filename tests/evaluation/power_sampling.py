"""How often the audit of sampled answers is wrong and what it finds, simulated with verify.py.

A run is a file of SEQUENCES answers of a Markov target (markov.py), drafted and verified in the
loop's way, each cut at its first END token. The null are the exact rules; a fault is one thing done
wrong in one of them. Rates are of runs whose p-value is at most the level, test by test and for the
audit's own decision (Holm over the three tests of one file).

Run:  python tests/evaluation/power_sampling.py                # 500 runs a rule, 2 to 3 minutes
      python tests/evaluation/power_sampling.py --runs 2000
"""

import argparse
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from markov import START, Proposer, sample, tables, written_out  # noqa: E402

from evaluation.sampling import evidence, token_law  # noqa: E402
from model.common.loop import verify  # noqa: E402
from model.common.loop.sampling import Sampler, draw  # noqa: E402

SEQUENCES, LENGTH, END = 200, 8, 0
SIZES = (200, 1000)  # answers a run, where faults are looked for: about 800 and 4,000 tokens
SETTINGS = {
    "T 0.7": (0.7, 0, 1.0),
    "T 0.6, top-p 0.9": (0.6, 0, 0.9),
    "T 1, top-k 3": (1.0, 3, 1.0),
    "T 1.2, min-p 0.2": (1.2, 0, 1.0, 0.2),
}
CHAIN, TREE = Proposer([-1, 0]), Proposer([-1, -1, -1, 0, 0, 1], distinct=True)
GUESSES = Proposer([-1, 0], guesses=True)
NULL = {
    "rejection": (CHAIN, verify.rejection),
    "multi-round": (TREE, verify.multi_round),
    "token matching": (GUESSES, verify.token_matching),
}


def with_bonus(choose):
    """The papers' rule with a bonus of its own: choose(logits, warp, uniform) -> [B]."""

    def rule(logits, draft, warp, uniforms):
        accepted = verify.rejection(logits, draft, warp, uniforms)
        full = accepted.count == 1 + draft.depth
        bonus = choose(logits[:, -1], warp, uniforms[:, -1])
        last = accepted.successors[:, -1]
        successors = accepted.successors.clone()
        successors[:, -1] = torch.where(full, bonus, last)
        return verify.Accepted(accepted.count, successors)

    return rule


def narrow(change):
    """The papers' rule under another warp: change(warped probabilities) -> probabilities."""

    def rule(logits, draft, warp, uniforms):
        return verify.rejection(logits, draft, lambda rows: change(warp(rows)), uniforms)

    return rule


def without_boundary(probs):
    """A nucleus that leaves out the token with which the mass reaches top-p."""
    last = probs.masked_fill(probs <= 0, 2).argmin(-1, keepdim=True)
    kept = probs.scatter(-1, last, 0.0)
    kept = torch.where(kept.sum(-1, keepdim=True) > 0, kept, probs)
    return kept / kept.sum(-1, keepdim=True)


def typical(logits, draft, warp, uniforms):
    return verify.typical_acceptance(logits, draft, 0.6)


PLAIN = with_bonus(lambda row, warp, uniform: draw(row.softmax(-1), uniform))
BEST = with_bonus(lambda row, warp, uniform: row.argmax(-1))
FAULTS = {  # name: (proposer, rule, whether the drafter sees the rule's uniforms)
    "bonus not warped": (CHAIN, PLAIN, False),
    "bonus is the argmax": (CHAIN, BEST, False),
    "no residual": (CHAIN, written_out("no residual"), False),
    "uniform not rescaled": (CHAIN, written_out("uniform not rescaled"), False),
    "acceptance unwarped": (CHAIN, written_out("acceptance by unwarped target"), False),
    "top-p off by one": (CHAIN, narrow(without_boundary), False),
    "drafter peeks": (CHAIN, verify.rejection, True),
    "typical acceptance": (CHAIN, typical, False),
}


def law_of_words(words, settings, seed=0, margin=token_law.MARGINS["float32"]):
    """The TokenLaw of a run's words [sequences, LENGTH]; margin: of the audit, in logits."""
    ended = (words == END).long().cumsum(1)
    alive = (ended - (words == END).long()) == 0  # the END token is part of the answer
    before = torch.cat([torch.full_like(words[:, :1], START), words[:, :-1]], 1)
    logits = tables("random")[0][before[alive]]
    uniforms = token_law.audit_uniforms(seed, "simulated", 0, 0, len(logits))
    sampling = token_law.Sampling(*settings, margin=margin)
    return token_law.token_law(logits, words[alive], uniforms, sampling)


def p_values(proposer, rule, settings, runs, shared=False, sequences=SEQUENCES, seed=0, **more):
    """{test: [p of every run]}; a run with an impossible token has "impossible" 0, else 1.

    more: of law_of_words()
    """
    warp = Sampler(*settings).warp
    num = runs * sequences
    words, _ = sample("random", proposer, warp, rule, num, LENGTH, seed, fresh=True, shared=shared)
    found = {name: [] for name in (*evidence.TESTS, "audit", "impossible")}
    for number, own in enumerate(words.split(sequences)):
        law = law_of_words(own, settings, seed=1000 * seed + number, **more)
        own = evidence.Evidence.of(law)
        tests = evidence.run_tests(own)
        ps = [tests[name]["p"] for name in evidence.TESTS]
        for name, p in zip(evidence.TESTS, ps):
            found[name].append(p)
        found["audit"].append(min(evidence.holm(ps)))
        found["impossible"].append(0.0 if law.impossible.any() else 1.0)
    return found


def rate(ps, level):
    """Share of p-values at most `level`."""
    return sum(p <= level for p in ps) / len(ps)


def main():
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=500, help="simulated files of each kind")
    args = parser.parse_args()
    torch.set_num_threads(1)
    names = ["audit", *evidence.TESTS, "impossible"]
    print(f"false alarms of {args.runs} runs at level 0.05 / 0.01, {SEQUENCES} answers a run")
    print(" " * 45, *(f"{name:>13}" for name in names[:-1]))
    for label, settings in SETTINGS.items():
        for kind, (proposer, rule) in NULL.items():
            ps = p_values(proposer, rule, settings, args.runs)
            cells = [f"{rate(ps[n], 0.05):.3f}/{rate(ps[n], 0.01):.3f}" for n in names[:-1]]
            print(f"{label + ', ' + kind:45}", *(f"{cell:>13}" for cell in cells))
    print("\npower at level 0.01; impossible: runs with a token that the warped law cannot give")
    for label, settings in SETTINGS.items():
        for kind, (proposer, rule, shared) in FAULTS.items():
            for size in SIZES:
                ps = p_values(proposer, rule, settings, min(args.runs, 100), shared, size)
                cells = [rate(ps[name], 0.01) for name in names]
                label_of_row = f"{label}, {kind}, {size}"
                print(f"{label_of_row:45}", *(f"{cell:13.2f}" for cell in cells))


if __name__ == "__main__":
    main()
