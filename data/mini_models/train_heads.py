"""Train the mini target's draft heads: the methods' own trainers on one corpus with one budget.

Run:    python data/mini_models/train_heads.py medusa hydra eagle eagle3 peagle mtp dflash dspark
        python data/mini_models/train_heads.py specdecpp space sd2 sd2_sft
        python data/mini_models/train_heads.py --num-threads 1 eagle --fresh
Every head sees the same 15,000 invented conversations once; SpecDec++'s, which judges the drafts of
the mini draft model, sees 2,500 four times, answered by the target itself; SPACE's model, which is
the target with masks, sees fewer; the sorted draft (sd2) and its control (sd2_sft) are models of
their own and see it three times. Further flags go to the trainers. An interrupted run goes on from
its last checkpoint.
"""

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MINI = Path("data/mini_models")
CORPUS = MINI / ".work" / "heads.jsonl"
NUM_CONVERSATIONS, CORPUS_SEED = 15_000, 2  # the target itself was trained with seed 1
SHARED = ["--dtype", "float32", "--mixed-precision", "no", "--device", "cpu", "--max-length", "512"]
SHARED += ["--batch-tokens", "2048", "--accumulate", "2", "--clip-norm", "1", "--clip-value", "0"]
SHARED += ["--warmup", "0.05", "--schedule", "cosine", "--min-rate", "0.05", "--eval-every", "200"]
BLOCKS = ["--learning-rate", "2e-3", "--mask-token-id", "2", "--num-layers", "2"]
BLOCKS += ["--layer-ids", "1,3,5", "--anchors", "96"]  # id 2 pads: no text has it
# small models want larger steps than the published recipes of 7B heads
OWN = {
    "medusa": ["--learning-rate", "2e-3"],
    "hydra": ["--learning-rate", "2e-3", "--dropout", "0"],
    "eagle": ["--learning-rate", "2e-3", "--bias", "off"],
    "eagle3": ["--learning-rate", "2e-3", "--lm-head-init", "target"]
    + ["--draft-vocab-size", "1024", "--unroll", "5"],
    "peagle": ["--learning-rate", "2e-3", "--lm-head-init", "target"]
    + ["--draft-vocab-size", "1024", "--num-layers", "1", "--num-depths", "6"],
    "dflash": ["--block-size", "8", *BLOCKS],
    "dspark": ["--block-size", "7", "--markov-rank", "32", *BLOCKS],
    "mtp": ["--learning-rate", "2e-3", "--num-steps", "5", "--attend", "first"],
}


CPU = ["--dtype", "float32", "--device", "cpu"]
EXAMPLES = MINI / ".work" / "examples.jsonl"
PREPARE = ["--batch-size", "64", "--max-new-tokens", "256", "--temperature", "0"]
PREPARE += ["--labels", "warped"]
HEAD = ["--mixed-precision", "no", "--max-length", "512", "--batch-tokens", "2048"]
HEAD += ["--accumulate", "1", "--learning-rate", "2e-3", "--warmup", "0.05", "--epochs", "4"]
HEAD += ["--eval-every", "100"]
MASKS = ["--mixed-precision", "no", "--max-length", "512", "--batch-tokens", "1024"]
MASKS += ["--accumulate", "1", "--clip-norm", "1", "--scheme", "append", "--num-groups", "24"]
MASKS += ["--mask-prob", "1", "--mask-loss-weight", "0.5", "--learning-rate", "1e-3"]
MASKS += ["--warmup", "0.05", "--min-rate", "0.05", "--num-tokens", "700000"]
MASKS += ["--held-out", "0.01", "--eval-every", "200"]
SORTED = ["--mixed-precision", "no", "--max-length", "512", "--batch-tokens", "1024"]
SORTED += ["--accumulate", "2", "--hidden-size", "96", "--intermediate-size", "256"]
SORTED += ["--num-heads", "3", "--learning-rate", "3e-3", "--warmup", "0.05", "--min-rate", "0.05"]
SORTED += ["--num-tokens", "5000000", "--held-out", "0.01", "--eval-every", "250"]
LOSSES = {"sd2": "soft", "sd2_sft": "sft"}


def main():
    """Make the corpora where they are missing, then train one head after another."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "names", nargs="+", choices=[*OWN, "specdecpp", "space", *LOSSES], help="what to train"
    )
    parser.add_argument("--num-threads", default="2", help="CPU threads")
    args, rest = parser.parse_known_args()
    threads = ["--num-threads", args.num_threads]
    for name in args.names:
        if name == "specdecpp":
            train_acceptance(threads, rest)
            continue
        corpus(CORPUS, NUM_CONVERSATIONS)
        own = [*CPU, *MASKS] if name == "space" else [*SHARED, *OWN.get(name, [])]
        if name in LOSSES:
            own = [*CPU, *SORTED, "--loss", LOSSES[name]]
        command = [f"model.{name.split('_')[0]}.train", *own, "--model-path", MINI / "target"]
        command += ["--data", CORPUS, "--output", MINI / name, *threads, *rest]
        run("-m", *command)


def train_acceptance(threads, rest) -> None:
    """Answers of the target with the draft model's proposals, then the head on them."""
    chats = MINI / ".work" / "acceptance.jsonl"
    corpus(chats, 2500)
    command = ["model.specdecpp.prepare", *CPU, *PREPARE, "--model-path", MINI / "target"]
    command += ["--drafter-path", MINI / "sps", "--data", chats, "--output", EXAMPLES]
    run("-m", *command, *threads)
    command = ["model.specdecpp.train", *CPU, *HEAD, "--model-path", MINI / "sps"]
    run("-m", *command, "--data", EXAMPLES, "--output", MINI / "specdecpp", *threads, *rest)


def corpus(path, num_conversations) -> None:
    """Invent conversations where the file is missing."""
    if not (ROOT / path).exists():
        (ROOT / path).parent.mkdir(exist_ok=True)
        flags = ["--num-conversations", num_conversations, "--seed", CORPUS_SEED]
        run("data/mini_bench/generate.py", "corpus", "--output", path, *flags)


def run(*command) -> None:
    """A Python command in the project's folder; its exit status ends this one if it is not 0."""
    done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    main()
