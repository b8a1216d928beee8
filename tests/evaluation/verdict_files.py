"""Answer files with planted differences, for the tests of equal.py --model-path."""

import copy
import json

import pytest
import torch
from harness_runs import read, read_meta, write

from evaluation import equal
from evaluation.judging.gaps import ulp_sizes
from evaluation.judging.noise import calibrate, sample_windows
from evaluation.judging.readings import Text, answer_logits
from model.common.contract.sequence import EmptyDrafter
from model.common.loop.decode import generate
from model.common.loop.sampling import Sampler
from model.common.prompts.prompter import Prompter, load_tokenizer
from model.common.target.loading import load_target

LIMIT = 24  # tokens a turn in harness_runs.answer


class Planter:
    """Makes files beside a baseline whose answers part from it at a gap of a given size."""

    def __init__(self, model_dir, question_file, base, dtype):
        self.model_dir, self.question_file, self.base = model_dir, question_file, base
        self.dtype = dtype
        self.target = load_target(model_dir, dtype, "cpu", "eager")
        self.prompter = Prompter(load_tokenizer(model_dir))
        self.stop = self.prompter.stop_rules(self.target.model.generation_config)
        self.questions = {q["question_id"]: q["turns"] for q in read(question_file)}
        texts = [
            Text(
                self.prompter.render(self.questions[record["question_id"]], []),
                record["choices"][0]["output_ids"][0],
            )
            for record in read(base)
        ]
        self.noise = calibrate(self.target, sample_windows(texts, 64, 0), dtype, 5, 0)

    def records(self):
        """A copy of the baseline's lines."""
        return copy.deepcopy(read(self.base))

    def write(self, path, records, **meta):
        """Write records with the baseline's meta, changed in places; returns the path."""
        write(path, records)
        content = {**read_meta(self.base), **meta}
        path.with_suffix(".meta.json").write_text(json.dumps(content), encoding="utf-8")
        return path

    def runner_up(self, record, low, high, turn=0):
        """(position, token) of the first other token whose gap is low to high times the bound."""
        prompt = self.prompter.render(self.questions[record["question_id"]], [])
        ids = record["choices"][0]["output_ids"][turn]
        position = 0
        for logits in answer_logits(self.target, [Text(prompt, ids)]):
            for row in logits[0].double():
                gaps = row.max() - row
                ulp = float(ulp_sizes(row.max(), getattr(torch, self.dtype)))
                bound = self.noise.bound_at(ulp)
                fitting = (gaps >= low * bound) & (gaps <= high * bound)
                fitting[list(self.stop.eos_ids)] = False
                fitting[ids[position]] = False
                if fitting.any():
                    return position, int(gaps.masked_fill(~fitting, 1e9).argmin())
                position += 1
        return None

    def part(self, record, position, token):
        """Give a one-turn answer another token and let the target go on greedily from there."""
        prompt = self.prompter.render(self.questions[record["question_id"]], [])
        ids = [*record["choices"][0]["output_ids"][0][:position], token]
        left = LIMIT - len(ids)
        if left:
            (turn,) = generate(
                self.target, EmptyDrafter(), [prompt + ids], Sampler(), [0], self.stop, left
            )
            ids += turn.output_ids
        return self.set_ids(record, ids)

    def set_ids(self, record, ids):
        """Make `ids` the answer of a one-turn record, with counts and text that fit."""
        choice = record["choices"][0]
        for name in ("draft_s", "verify_s", "commit_s", "depth", "step_end_s"):
            choice.pop(name, None)
        steps = len(ids) - 1
        choice |= {
            "output_ids": [ids],
            "turns": [self.prompter.text(ids, self.stop)],
            "new_tokens": [len(ids)],
            "decoding_steps": [steps],
            "accept_lengths": [1] * steps,
            "drafted": [[5] * steps],
        }
        return record

    def planted(self, path, low, high, **meta):
        """A file in which one one-turn question parts by a gap of low to high times the bound."""
        records = self.records()
        for record in records[1:]:
            place = self.runner_up(record, low, high)
            if place is not None:
                self.part(record, *place)
                return self.write(path, records, **meta)
        pytest.fail(f"no gap of {low} to {high} times the bound in these answers")

    def judge(self, capsys, *paths, base=None, flags=("--control", "0")):
        """(exit status, the judgements, stdout, stderr) of equal.py on these files."""
        report = self.base.with_name("report.json")
        report.unlink(missing_ok=True)
        argv = [base or self.base, *paths, "--model-path", self.model_dir, "--device", "cpu"]
        argv += ["--json", report]
        status = equal.main([str(part) for part in (*argv, "--noise-tokens", "64", *flags)])
        out, err = capsys.readouterr()
        document = json.loads(report.read_text(encoding="utf-8"))
        assert document["schema"] == 2
        return status, [r.get("judgement") for r in document["results"]], out, err
