"""Train the mini target's draft heads: the methods' own trainers on one corpus with one budget.

Run:    python data/mini_models/train_heads.py medusa hydra eagle eagle3
        python data/mini_models/train_heads.py --num-threads 1 eagle --fresh
Every head sees the same 15,000 invented conversations once. Further flags go to the trainers. An
interrupted run goes on from its last checkpoint.
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
# small models want larger steps than the published recipes of 7B heads
OWN = {
    "medusa": ["--learning-rate", "2e-3"],
    "hydra": ["--learning-rate", "2e-3", "--dropout", "0"],
    "eagle": ["--learning-rate", "2e-3", "--bias", "off"],
    "eagle3": ["--learning-rate", "2e-3", "--lm-head-init", "target"]
    + ["--draft-vocab-size", "1024", "--unroll", "5"],
}


def main():
    """Make the corpus where it is missing, then train one head after another."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="+", choices=sorted(OWN), help="what to train")
    parser.add_argument("--num-threads", default="2", help="CPU threads")
    args, rest = parser.parse_known_args()
    if not (ROOT / CORPUS).exists():
        make = [sys.executable, "data/mini_bench/generate.py", "corpus", "--output", str(CORPUS)]
        make += ["--num-conversations", str(NUM_CONVERSATIONS), "--seed", str(CORPUS_SEED)]
        subprocess.run(make, cwd=ROOT, check=True)
    for name in args.names:
        command = [sys.executable, "-m", f"model.{name}.train", *SHARED, *OWN[name]]
        command += ["--model-path", str(MINI / "target"), "--data", str(CORPUS)]
        command += ["--output", str(MINI / name), "--num-threads", args.num_threads, *rest]
        done = subprocess.run(command, cwd=ROOT)
        if done.returncode:
            sys.exit(done.returncode)


if __name__ == "__main__":
    main()
