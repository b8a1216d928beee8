"""equal.py --model-path: load the target, measure, judge every question of a file."""

from evaluation.answers.differences import file_verdicts
from evaluation.answers.meta import AnswerError, find_field
from evaluation.judging import verdicts
from evaluation.judging.subject import read_subject

MISSING = {
    "missing": "missing in this file",
    "error": "failed in this file only",
    "choices": "other choices than the baseline's",
    "turns": "another number of turns than the baseline's",
}


def shape_faults(verdict):
    """What a file lacks of a question, a line each; an error on the baseline's side is not its."""
    return [
        MISSING[found.kind]
        for found in verdict.differences
        if found.kind in MISSING and not (found.kind == "error" and found.base)
    ]


def temperature_of(answers):
    """The recorded temperature, 0 where none is."""
    value = find_field(answers.meta, "temperature") or 0
    return value if isinstance(value, (int, float)) else 0


class Judge:
    """Judges files against one baseline; targets, subjects and calibrations are kept.

    args: the command line of equal.py; base: the baseline's AnswerFile.
    """

    def __init__(self, args, base):
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self.args, self.base = args, base
        self.targets, self.noises, self.bases = {}, {}, {}

    def target(self, dtype, scale_to=None):
        """The target in a dtype, or its twin; one at a time, since two may not fit a device."""
        import torch

        from model.common.target.loading import load_target

        if (dtype, scale_to) not in self.targets:
            self.targets.clear()
            if self.args.num_threads:
                torch.set_num_threads(self.args.num_threads)
            args = self.args
            more = {"scale_to": scale_to} if scale_to else {}
            found = load_target(args.model_path, dtype, args.device, "eager", **more)
            self.targets[dtype, scale_to] = found
        return self.targets[dtype, scale_to]

    def judge(self, other):
        """The judgement of one AnswerFile as a dict for the report. Raises AnswerError."""
        from model.common.errors import BadInput

        try:
            return self._judge(other)
        except BadInput as error:
            raise AnswerError(f"{other.path}: {' '.join(str(error).split())}") from None

    def _judge(self, other):
        found = file_verdicts(self.base, other)
        compared = [verdict for verdict in found if not verdict.both_failed]
        differing = [verdict for verdict in compared if not verdict.equal]
        warmth = temperature_of(other)
        if warmth > 0 and differing and not other.lossy:
            raise AnswerError(
                f"{other.path}: sampled answers (temperature {warmth:g}): equal ids are not"
                " expected, nor gaps of 0; evaluation/audit_sampling.py tests the distribution"
            )
        subject = read_subject(other, self.args, self.base)
        noise, control, questions, notes = None, None, [], list(subject.notes)
        if differing or (self.args.all and warmth == 0):
            target = self.target(subject.dtype, find_field(other.meta, "scale_to"))
            if warmth == 0:
                noise, width_notes = self.noise(subject, target)
                notes += width_notes
            judged = compared if self.args.all else differing
            questions = [self.question(verdict, subject, target, noise) for verdict in judged]
            control = self.control(subject, target, questions, compared, noise)
        proof, refusal = self.proof(subject, differing) if self.args.proof else (None, None)
        verdict, reasons = verdicts.file_verdict(questions, control, proof)
        return {
            "verdict": verdict,
            "reasons": reasons,
            "notes": notes + self.notes(subject, questions),
            "multiple": verdicts.MULTIPLE,
            "noise": noise and noise.record(),
            "control": control,
            "proof": proof,
            "proof_refused": refusal,
            "questions_exact": len(compared) - len(differing),
            "questions": [question.record() for question in questions],
        }

    def proof(self, subject, differing):
        """(the rerun's findings, why there are none); a lossy method's rerun may differ."""
        from evaluation.judging.proof import run_proof

        self.targets.clear()  # the rerun loads its own
        other = subject.answers
        again = [v.question_id for v in differing if has_answer(v, self.base, other)]
        if other.lossy:
            return None, None
        try:
            return run_proof(subject, self.args, again), None
        except AnswerError as error:
            return None, str(error)

    def noise(self, subject, target):
        """(Noise of this target and width, notes), measured once for each on the baseline's ids."""
        from evaluation.judging.control import typical_width
        from evaluation.judging.noise import calibrate

        width, recorded = typical_width(subject.answers.path)
        notes = [] if recorded else [f"no drafted nodes recorded: steps of 1+{width} rows assumed"]
        key = subject.dtype, find_field(subject.answers.meta, "scale_to"), width
        if key not in self.noises:
            base, texts, args = self.base_subject(subject), [], self.args
            for question in self.base.questions.values():
                for choice in question.choices[:1]:
                    prompt = base.prompt(question.question_id, choice, 0)
                    texts.append((prompt, base.ids(choice, 0)))
            try:
                found = calibrate(target, texts, key[0], width, args.noise_tokens, args.seed)
            except AnswerError as error:
                raise AnswerError(f"{self.base.path}: {error}") from None
            self.noises[key] = found
        return self.noises[key], notes

    def question(self, verdict, subject, target, noise):
        """The QuestionJudgement of one question; noise None: a sampled answer, without gaps."""
        other = subject.answers.questions.get(verdict.question_id)
        found = verdicts.QuestionJudgement(verdict.question_id, verdict.category, verdict.equal)
        faults = shape_faults(verdict)
        if other is None or other.error:
            verdicts.judge_question(found, faults, lossy=False)
            return found
        faults += self.end_faults(subject, target, other)
        if noise is not None:
            self.measure(found, verdict, subject, target, noise)
        verdicts.judge_question(found, faults, subject.answers.lossy)
        return found

    def measure(self, found, verdict, subject, target, noise):
        """Fill in a QuestionJudgement's evidence from the target's logits."""
        other = subject.answers.questions[verdict.question_id]
        base = self.base.questions.get(verdict.question_id)
        partings = {
            (d.choice, d.turn): (d.position, d.base)
            for d in verdict.differences
            if d.kind == "tokens" and None not in (d.base, d.other) and not d.after_difference
        }
        turns = self.turns(subject, target, other, partings)
        found.retokenised = any(choice.output_ids is None for choice in other.choices)
        found.tokens = sum(len(turn.gaps) for turn in turns)
        found.worst = verdicts.worst_token(turns, noise)
        for turn in turns:
            if turn.rival and found.parting is None:
                position, gap = turn.rival
                own = {"turn": turn.turn, "position": position, "gap": turn.gaps[position]}
                found.parting = {**own, "baseline_gap": gap}
        if not verdict.equal and base is not None and not base.error:
            own = self.turns(self.base_subject(subject), target, base, {})
            found.baseline = verdicts.worst_token(own, noise)
        if found.retokenised and found.worst and found.worst.ratio > 1:
            found.unexplained = self.unexplained(subject, target, other, turns, noise)

    def base_subject(self, subject):
        """The baseline's own Subject; where nothing says its settings, those of the file."""
        from argparse import Namespace

        key = subject.dtype, subject.prompter.name
        if key not in self.bases:
            own = {"dtype": None, "template": None, "max_new_tokens": None, "history": None}
            if self.base.meta is None:
                own = {"dtype": subject.dtype, "template": subject.prompter.name}
            known = Namespace(**{**vars(self.args), **own})
            self.bases[key] = read_subject(self.base, known, self.base)
        return self.bases[key]

    def turns(self, subject, target, question, partings):
        """The TurnGaps of every choice and turn of a question."""
        from evaluation.judging.gaps import turn_gaps

        found = []
        for choice in question.choices:
            for turn in range(len(choice.texts)):
                where = f"{subject.answers.path}: question {question.question_id} turn {turn}"
                prompt = subject.prompt(question.question_id, choice, turn)
                ids = subject.ids(choice, turn)
                if not ids:
                    continue
                parting = partings.get((choice.index, turn))
                try:
                    found.append(turn_gaps(target, prompt, ids, choice.index, turn, parting))
                except AnswerError as error:
                    raise AnswerError(f"{where}: {error}") from None
        return found

    def end_faults(self, subject, target, question):
        """Faults of how each turn ends; nothing is said of re-tokenised texts."""
        stop = subject.prompter.stop_rules(target.model.generation_config)
        faults = []
        for choice in question.choices:
            for turn, ids in enumerate(choice.output_ids or []):
                limit = subject.limit
                if limit is not None and target.context is not None:
                    prompt = subject.prompt(question.question_id, choice, turn)
                    limit = min(limit, target.context - len(prompt))
                most = len(ids) + 1 if limit is None else limit
                cut = stop.cut(ids, len(ids), most)
                found = verdicts.end_faults(cut, len(ids), limit)
                faults += [f"turn {turn}: {fault}" for fault in found]
        return faults

    def unexplained(self, subject, target, question, turns, noise):
        """The least gap of any tokenisation where a re-tokenised answer first leaves the bound."""
        from evaluation.judging.retokenised import least_gap

        stop = subject.prompter.stop_rules(target.model.generation_config)
        choices = {choice.index: choice for choice in question.choices}
        for turn in turns:
            bounds = [noise.bound_at(size) for size in turn.ulp_size]
            above = [i for i, gap in enumerate(turn.gaps) if gap > bounds[i]]
            if above:
                choice = choices[turn.choice]
                prompt = subject.prompt(question.question_id, choice, turn.turn)
                gap = least_gap(target, subject, prompt, turn.ids, above[0], stop.eos_ids)
                bound = bounds[above[0]]
                return {"turn": turn.turn, "position": above[0], "gap": gap, "bound": bound}
        return None

    def control(self, subject, target, questions, compared, noise):
        """The control's findings where it can change the verdict: differences, all of them ties."""
        from evaluation.judging.control import run_control

        answered = [v for v in compared if has_answer(v, self.base, subject.answers)]
        num_questions = min(self.args.control, len(answered))
        if not num_questions or verdicts.worst(q.verdict for q in questions) != verdicts.TIES:
            return None
        differing = {v.question_id for v in answered if not v.equal}
        chosen = [v.question_id for v in answered]
        return run_control(
            target, subject, differing, chosen, num_questions, noise.width, self.args.seed
        )

    def notes(self, subject, questions):
        """What a reader of the verdict should know."""
        import torch

        lines = []
        off = [
            question.question_id
            for question in questions
            if question.verdict == verdicts.TIES
            and question.baseline
            and question.baseline.ratio > 1
        ]
        if off:
            listed = ", ".join(map(str, off[:5])) + (", ..." if len(off) > 5 else "")
            lines.append(
                f"the baseline's own answers have gaps above the bound on {len(off)} of these"
                f" questions ({listed}): the difference is the baseline's there"
            )
        if subject.answers.meta is None:
            lines.append("no meta: taken to be greedy and exact")
        made = find_field(subject.answers.meta, "torch")
        if made is not None and made != torch.__version__:
            lines.append(f"made with torch {made}, judged with {torch.__version__}")
        device = find_field(subject.answers.meta, "device")
        here = device_name(self.args)
        if device is not None and device != here:
            lines.append(f"made on {device}, the bound is that of {here}")
        return lines


def device_name(args):
    """This machine's device, as a meta names it."""
    from model.common.records import meta as environment
    from model.common.target.loading import torch_device

    return environment.device_name(torch_device(args.device))


def has_answer(verdict, *files):
    """Whether the question of a verdict has an answer in every file."""
    found = [answers.questions.get(verdict.question_id) for answers in files]
    return all(question is not None and not question.error for question in found)
