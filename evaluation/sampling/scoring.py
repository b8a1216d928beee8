"""Scores the answer files of audit_sampling.py with their targets; importing it imports torch."""

import hashlib
import json
import math

import torch

from evaluation.answers.meta import AnswerError
from evaluation.judging.control import typical_width
from evaluation.judging.noise import calibrate, sample_windows
from evaluation.judging.readings import Text
from evaluation.judging.verdicts import odd_reading
from evaluation.sampling import forcing
from evaluation.sampling.evidence import MIN_FREE, Evidence, run_tests
from evaluation.sampling.token_law import MARGINS, Sampling, TokenLaw, audit_uniforms, token_law

BLOCK_NUMBERS = 1 << 22  # logits at a time: some ten tensors of float64 of it are in use
COPY_CHANCE = 1e-6  # a turn less likely than this is not drawn twice
ROUGH_SKEWNESS = 0.5
NOISE_TOKENS = 64  # positions at which the target's rounding is measured
ROUNDED_TOKENS = 100_000  # of half precision, from which on the tests may see rounding


class Scorer:
    """Keeps the last target loaded, and the columns of the turns that it has scored.

    Methods that match tokens give the baseline's very answers: each is read once.
    """

    def __init__(self, args):
        self.args, self.name, self.loaded = args, None, None
        self.rounding = None  # of a logit of the target that is loaded, once it is measured
        self.scored, self.scored_as = {}, None  # key of a turn -> TokenLaw
        self.seen = {}  # a file's draws -> the first file that holds them
        if args.num_threads:
            torch.set_num_threads(args.num_threads)

    def audit(self, answers, settings: dict) -> dict:
        """A file's result without verdict: counts, tests, notes and `evidence`."""
        args = self.args
        asked = forcing.find_asked(
            answers,
            args.model_path,
            args.dtype,
            args.template,
            args.bench_name,
            args.question_file,
        )
        self._load(asked)
        sampling = self._sampling(answers, asked, settings)
        laws, keys, first, copies = self._score(answers, asked, sampling)
        law = TokenLaw.join(laws)
        evidence = Evidence.of(law)
        text = json.dumps([asked.model_path, asked.dtype, settings, keys])
        return {
            "label": answers.label,
            "file": str(answers.path),
            "sha256": answers.sha256,
            "meta_sha256": answers.meta_sha256,
            "lossy": answers.lossy,
            "draws_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "settings": settings,
            "dtype": asked.dtype,
            "margin": sampling.margin,
            "turns": len(laws),
            "tokens": len(law.impossible),
            "free_tokens": int(evidence.free.sum()),
            "impossible": {"tokens": int(law.impossible.sum()), "first": first},
            "tolerated_tokens": int(law.tolerated.sum()),
            "tests": run_tests(evidence),
            "notes": self._notes(answers, asked.dtype, text, evidence, law, copies),
            "evidence": evidence,
        }

    def _score(self, answers, asked, sampling):
        """(TokenLaw a turn, key a turn, place of the first impossible token, number of copies).

        A copy repeats another turn's prompt and answer, which chance does not: it is in no law.
        """
        target, prompter = self.loaded
        width = max(1, min(forcing.BLOCK_ROWS, BLOCK_NUMBERS // target.vocab_size))
        laws, keys, first, copies, said = [], [], None, 0, set()
        for turn in forcing.forced_turns(answers, asked, target, prompter, width):
            law, key = self._law(turn, sampling)
            keys.append(key)
            text = (tuple(turn.prompt_ids), tuple(turn.output_ids))
            if text in said and law.surprise.sum() > -math.log(COPY_CHANCE):
                copies += 1
                continue
            said.add(text)
            laws.append(law)
            if first is None and law.impossible.any():
                first = _place(turn, int(law.impossible.nonzero()[0]))
        if not laws:
            raise AnswerError(f"{answers.path}: every question failed, nothing to audit")
        return laws, keys, first, copies

    def _load(self, asked):
        """Load the target and prompter of an Asked, unless they were the last file's."""
        asked_for = json.dumps(asked.flags, sort_keys=True)
        name = (asked.model_path, asked.dtype, asked.template, asked.scale_to, asked_for)
        if self.name != name:
            self.name, self.loaded, self.rounding = None, None, None  # free before loading
            trusted = self.args.trust_remote_code
            self.loaded = forcing.load_asked(asked, self.args.device, trusted)
            self.name = name

    def _sampling(self, answers, asked, settings):
        """The Sampling of a file, whose margin is measured where a token can be impossible."""
        sampling = Sampling.of(settings, MARGINS[asked.dtype])
        if sampling.truncates:
            if self.rounding is None:
                self.rounding = self._measure_rounding(answers, asked)
            sampling = Sampling.of(settings, max(MARGINS[asked.dtype], self.rounding))
        if self.scored_as != (self.name, sampling):
            self.scored.clear()
            self.scored_as = (self.name, sampling)
        return sampling

    def _measure_rounding(self, answers, asked):
        """By how much rounding moves a logit of the loaded target, by noise.py on this file.

        Its bound is of the difference of two logits. A target whose readings of one prefix differ
        by more than rounding can is not audited.
        """
        target, prompter = self.loaded
        turns = forcing.forced_turns(answers, asked, target, prompter)
        texts = [Text(turn.prompt_ids, turn.output_ids, turn.where) for turn in turns]
        windows = sample_windows(texts, NOISE_TOKENS, self.args.seed)
        if not windows:  # every answer is one token long
            return 0.0
        width, _ = typical_width(answers)
        noise = calibrate(target, windows, asked.dtype, width, self.args.seed)
        if noise.odd:
            raise AnswerError(f"{odd_reading(noise.odd)}: nothing can be judged")
        return noise.bound / 2

    def _law(self, turn, sampling):
        """(TokenLaw, key) of a turn; the key is the same for the same answer to the same turn."""
        own = [turn.question_id, turn.choice, turn.turn]
        text = json.dumps([own, turn.prompt_ids, turn.output_ids])
        key = hashlib.sha256(text.encode()).hexdigest()
        if key not in self.scored:
            tokens = torch.tensor(turn.output_ids)
            uniforms = audit_uniforms(self.args.seed, *own, len(tokens))
            parts, begin = [], 0
            for logits in turn.blocks:
                rows = slice(begin, begin + len(logits))
                logits = sampling.penalised(logits, turn.prompt_ids, turn.output_ids, begin)
                parts.append(token_law(logits, tokens[rows], uniforms[:, rows], sampling))
                begin = rows.stop
            self.scored[key] = TokenLaw.join(parts)
        return self.scored[key], key

    def _notes(self, answers, dtype, draws, evidence, law, copies) -> list:
        """What a reader of the verdict should know."""
        notes = []
        same = self.seen.setdefault(draws, answers.path)
        if same is not answers.path:
            notes.append(f"the same answers as {same}: the same draws, no evidence of its own")
        if copies:
            notes.append(
                f"{copies} turns repeat another's prompt and answer, which chance does not:"
                " counted once"
            )
        free = int(evidence.free.sum())
        if free < MIN_FREE:
            notes.append(f"only {free} tokens had a choice: the p-values are rough")
        elif abs(evidence.skewness) > ROUGH_SKEWNESS:
            notes.append(
                f"few tokens carry the surprisal (skewness {evidence.skewness:.2f}): its p is rough"
            )
        if dtype in ("float16", "bfloat16") and len(law.impossible) > ROUNDED_TOKENS:
            notes.append(
                f"more than {ROUNDED_TOKENS:,} tokens in half precision: the tests may see that a"
                " prefill's logits differ from a step's by rounding"
            )
        if law.tolerated.any():
            notes.append(
                f"{int(law.tolerated.sum())} tokens stand outside the support by no more than"
                " rounding"
            )
        return notes


def _place(turn, position: int) -> dict:
    """Where a token stands, for the report."""
    names = {"question_id": turn.question_id, "choice": turn.choice, "turn": turn.turn}
    return {**names, "position": position, "id": turn.output_ids[position]}
