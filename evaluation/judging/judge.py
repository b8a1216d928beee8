"""equal.py --model-path: load the target, measure, judge every question of a file."""

import random

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


def turned_rows_of(answers):
    """What the run recorded of its products' form (model/common/target/products.py)."""
    from model.common.target.products import NEVER, read_rows

    environment = (answers.meta or {}).get("environment")
    value = environment.get("turned_rows") if isinstance(environment, dict) else None
    try:
        return NEVER if value is None else read_rows(value)
    except (AttributeError, ValueError):
        raise AnswerError(f"{answers.path}: its meta's turned_rows are {value!r}") from None


class Judge:
    """Judges files against one baseline; targets, subjects and calibrations are kept.

    args: the command line of equal.py; base: the baseline's AnswerFile.
    """

    def __init__(self, args, base):
        import transformers

        from model.common.remote_code import trust

        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self.args, self.base = args, base
        self.targets, self.noises, self.bases = {}, {}, {}
        trust(args.trust_remote_code)

    def target(self, dtype, answers):
        """The target in a dtype, or its twin, computed as the answers were; one at a time, since
        two may not fit a device."""
        import torch

        from model.common.target.loading import load_target
        from model.common.target.products import Chosen

        scale_to, turned_rows = find_field(answers.meta, "scale_to"), turned_rows_of(answers)
        key = dtype, scale_to, turned_rows
        if key not in self.targets:
            self.targets.clear()
            if self.args.num_threads:
                torch.set_num_threads(self.args.num_threads)
            args = self.args
            more = {"scale_to": scale_to} if scale_to else {}
            Chosen.turned_rows = turned_rows
            self.targets[key] = load_target(args.model_path, dtype, args.device, "eager", **more)
        return self.targets[key]

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
            target = self.target(subject.dtype, other)
            judged = compared if self.args.all else differing
            turns = {}
            if warmth == 0:
                turns = self.turns(subject, target, judged)
                noise, width_notes = self.noise(subject, target, turns, differing)
                notes += width_notes
            questions = [
                self.question(verdict, subject, target, noise, turns.get(verdict.question_id))
                for verdict in judged
            ]
            control = self.control(subject, target, questions, compared, noise)
        proof, refusal = self.proof(subject, differing) if self.args.proof else (None, None)
        verdict, reasons = verdicts.file_verdict(questions, noise, control, proof)
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
            return run_proof(
                subject, self.args, again, lambda: self.target(self.args.proof_dtype, other)
            ), None
        except AnswerError as error:
            return None, str(error)

    def noise(self, subject, target, turns, differing):
        """(Noise of this target and width, notes): half of it where differing answers are worst.

        turns {question id: TurnGaps}. The other half is sampled from the baseline's answers.
        """
        from evaluation.judging.control import typical_width
        from evaluation.judging.noise import WINDOW, calibrate, sample_windows, window_at

        width, recorded = typical_width(subject.answers)
        notes = [] if recorded else [f"no drafted nodes recorded: steps of 1+{width} rows assumed"]
        num = self.args.noise_tokens
        found = [t for v in differing for t in turns.get(v.question_id, []) if len(t.text.ids) > 1]
        found.sort(key=lambda turn: turn.widest()[0], reverse=True)
        own = [window_at(turn.text, turn.widest()[1]) for turn in found[: num // (2 * WINDOW)]]
        scale = find_field(subject.answers.meta, "scale_to")
        key = subject.dtype, scale, width, subject.penalties
        if own or key not in self.noises:
            left = max(1, num - sum(window.end - window.begin for window in own))
            sampled = sample_windows(self.base_texts(subject), left, self.args.seed)
            given = target, own + sampled, subject.dtype, width, self.args.seed
            noise = calibrate(*given)
            if own:
                return noise, notes
            self.noises[key] = noise
        return self.noises[key], notes

    def base_texts(self, subject):
        """The first turns of the baseline's answers, as Texts."""
        base = self.base_subject(subject)
        questions = [q for q in self.base.questions.values() if not q.error]
        texts = [text for q in questions for text in question_texts(base, q, subject.penalties)]
        return [text for text in texts if (text.choice, text.turn) == (0, 0)]

    def question(self, verdict, subject, target, noise, turns):
        """The QuestionJudgement of one question; noise None: a sampled answer, without gaps."""
        other = subject.answers.questions.get(verdict.question_id)
        found = verdicts.QuestionJudgement(verdict.question_id, verdict.category, verdict.equal)
        faults = shape_faults(verdict)
        if other is None or other.error:
            verdicts.judge_question(found, faults, lossy=False)
            return found
        faults += self.end_faults(subject, target, other)
        if noise is not None:
            self.measure(found, subject, target, noise, turns)
        verdicts.judge_question(found, faults, subject.answers.lossy, noise)
        return found

    def measure(self, found, subject, target, noise, turns):
        """Fill in a QuestionJudgement's evidence from the gaps of its turns."""
        other = subject.answers.questions[found.question_id]
        found.retokenised = any(choice.output_ids is None for choice in other.choices)
        found.tokens = sum(len(turn.gaps) for turn in turns)
        found.worst = verdicts.worst_token(turns, noise)
        for turn in turns:
            if turn.text.rival and found.parting is None:
                position = turn.text.rival[0]
                found.parting = {
                    "turn": turn.text.turn,
                    "position": position,
                    "gap": turn.gaps[position],
                    "baseline_gap": turn.rival_gap,
                    "bound": noise.bound_at(turn.ulp_size[position]),
                }
        if found.retokenised and found.worst and found.worst.ratio > 1 and not noise.odd:
            found.unexplained = self.unexplained(subject, target, turns, noise)

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

    def turns(self, subject, target, judged):
        """{question id: TurnGaps of every choice and turn} of the judged questions' answers."""
        from evaluation.judging.gaps import turn_gaps

        asked = {}
        for verdict in judged:
            other = subject.answers.questions.get(verdict.question_id)
            if other is not None and not other.error:
                partings = {
                    (d.choice, d.turn): (d.position, d.base)
                    for d in verdict.differences
                    if d.kind == "tokens" and None not in (d.base, d.other)
                    if not d.after_difference
                }
                asked[verdict.question_id] = question_texts(
                    subject, other, subject.penalties, partings
                )
        found = iter(turn_gaps(target, [text for texts in asked.values() for text in texts]))
        return {name: [next(found) for _ in texts] for name, texts in asked.items()}

    def end_faults(self, subject, target, question):
        """Faults of how each turn ends; nothing is said of re-tokenised texts."""
        stop = subject.prompter.stop_rules(target.model.generation_config)
        faults = []
        for choice in question.choices:
            for turn, ids in enumerate(choice.output_ids or []):
                limit = subject.limit
                if limit is not None:
                    prompt = subject.prompt(question.question_id, choice, turn)
                    limit = target.fitting(len(prompt), limit)
                most = len(ids) + 1 if limit is None else limit
                cut = stop.cut(ids, len(ids), most)
                found = verdicts.end_faults(cut, len(ids), limit)
                faults += [f"turn {turn}: {fault}" for fault in found]
        return faults

    def unexplained(self, subject, target, turns, noise):
        """The least gap of any tokenisation where a re-tokenised answer first leaves the bound."""
        from evaluation.judging.retokenised import least_gap

        stop = subject.prompter.stop_rules(target.model.generation_config)
        for turn in turns:
            bounds = [noise.bound_at(size) for size in turn.ulp_size]
            above = [i for i, gap in enumerate(turn.gaps) if gap > bounds[i]]
            if above:
                prompt, ids = turn.text.prompt, turn.text.ids
                gap = least_gap(target, subject, prompt, ids, above[0], stop.eos_ids)
                bound = bounds[above[0]]
                return {"turn": turn.text.turn, "position": above[0], "gap": gap, "bound": bound}
        return None

    def control(self, subject, target, questions, compared, noise):
        """The control's findings where it can change the verdict: differences, all of them ties.

        Not of questions on which the baseline is the one that is off, or has no ids.
        """
        from evaluation.judging.control import run_control

        off = baseline_off(questions)
        answered = [
            v.question_id
            for v in compared
            if has_answer(v, self.base, subject.answers) and v.question_id not in off
            if all(c.output_ids is not None for c in self.base.questions[v.question_id].choices)
        ]
        num_questions = min(self.args.control, len(answered))
        if not num_questions or verdicts.worst(q.verdict for q in questions) != verdicts.TIES:
            return None
        base, penalties = self.base_subject(subject), subject.penalties
        chosen = random.Random(self.args.seed).sample(range(len(answered)), num_questions)
        asked = {
            name: question_texts(base, self.base.questions[name], penalties)
            for name in (answered[i] for i in sorted(chosen))
        }
        differing = {question.question_id for question in questions if not question.equal}
        return run_control(target, asked, differing, noise, self.args.seed)

    def notes(self, subject, questions):
        """What a reader of the verdict should know."""
        import torch

        lines = []
        off = baseline_off(questions)
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


def question_texts(subject, question, penalties, partings=None):
    """Every choice and turn of a question that has ids, as Texts. partings {(choice, turn): rival}.

    Raises AnswerError where a prompt cannot be rebuilt as it was recorded.
    """
    from evaluation.judging.readings import Text

    found, partings = [], partings or {}
    for choice in question.choices:
        for turn in range(len(choice.texts)):
            where = f"{subject.answers.path}: question {question.question_id} turn {turn}"
            prompt = subject.prompt(question.question_id, choice, turn)
            ids, rival = subject.ids(choice, turn), partings.get((choice.index, turn))
            if ids:
                found.append(Text(prompt, ids, where, choice.index, turn, rival, penalties))
    return found


def baseline_off(questions):
    """Ids of questions where all of the file's tokens are ties, but the baseline's is none."""
    return [
        question.question_id
        for question in questions
        if question.verdict == verdicts.TIES
        and question.parting
        and question.parting["baseline_gap"] > question.parting["bound"]
    ]


def device_name(args):
    """This machine's device, as a meta names it."""
    from model.common.records import meta as environment
    from model.common.target.loading import torch_device

    return environment.device_name(torch_device(args.device))


def has_answer(verdict, *files):
    """Whether the question of a verdict has an answer in every file."""
    found = [answers.questions.get(verdict.question_id) for answers in files]
    return all(question is not None and not question.error for question in found)
