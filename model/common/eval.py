"""The harness: questions in, answer file out. Every method's script calls main()."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from model.common import args as arguments
from model.common.errors import BadInput, ends_in_one_line
from model.common.prompts.conversation import Conversation, read_history


def main(method: str, doc: str, add_args, build, engine=None, argv=None) -> None:
    """Run a method over a bench and exit: 0, 1 if questions failed, 2 on bad input.

    add_args(group)      declares the method's own flags
    build(args, target)  returns its Drafter; called once, outside every timed region
    engine(args)         optional: a replacement for decode.generate, or None
    """
    parser = arguments.make_parser(method, doc, add_args)
    args = parser.parse_args(argv)
    args.model_id = args.model_id or arguments.default_model_id(method, args)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with ends_in_one_line(parser.prog, "resumes"):
        arguments.check(args)
        failed = _run(method, args, build, engine)
    if failed:
        plural = "s" if failed > 1 else ""
        print(
            f"{parser.prog}: {failed} question{plural} failed, see `error` in the answers",
            file=sys.stderr,
        )
    sys.exit(1 if failed else 0)


def _run(method, args, build, engine) -> int:
    """All runs of one command; returns how many questions failed."""
    if args.num_gpus_total > args.num_gpus_per_model:
        from model.common.shards import run_sharded

        return run_sharded(method, args, build, engine)
    runs = range(1, args.num_runs + 1) if args.num_runs else [None]
    bench = Bench(method, args, build, engine, [arguments.answer_path(args, run) for run in runs])
    return bench.run()


def choose_questions(args) -> list[dict]:
    """The questions of the command line."""
    from model.common.prompts.questions import read_questions, select

    return select(read_questions(arguments.question_path(args)), args)


class Bench:
    """A loaded target and drafter, the questions to answer, and the files for the answers.

    What can be refused is refused before the target is loaded.
    """

    def __init__(self, method: str, args, build, engine, paths: list[Path]):
        import torch
        import transformers

        from model.common.records.files import open_answers

        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        if args.num_threads:
            torch.set_num_threads(args.num_threads)
        self.args = args
        self.questions = choose_questions(args)
        self.history = read_history(args.history, self.questions) if args.history else {}
        self.runs = [open_answers(method, args, self.questions, path) for path in paths]
        self._load(build, engine)

    def _load(self, build, engine) -> None:
        from model.common.contract.drafter import EmptyDrafter
        from model.common.loop.decode import generate
        from model.common.loop.sampling import Sampler
        from model.common.prompts.prompter import Prompter, load_tokenizer
        from model.common.records.meta import is_lossy
        from model.common.target.loading import load_target
        from model.common.target.offload import wanted_offload

        args = self.args
        self.prompter = Prompter(load_tokenizer(args.model_path), args.template)
        self.generate = (engine(args) if engine else None) or generate
        self.target = load_target(
            args.model_path,
            args.dtype,
            args.device,
            args.runtime,
            args.num_gpus_per_model,
            wanted_offload(args),
            args.scale_to,
        )
        self.target.static_batch = args.batch_size
        self.stop = self.prompter.stop_rules(self.target.model.generation_config)
        self.sampler = Sampler(args.temperature, args.top_k, args.top_p)
        self.drafter = build(args, self.target)
        self.baseline = EmptyDrafter() if args.paired else None
        self.decode_s = 0.0  # seconds inside timed regions
        self.typical = None
        if is_lossy(args):
            self.typical = (args.posterior_threshold, args.posterior_alpha)

    def capacity(self) -> int:
        """Columns that no question of this run exceeds, so that the cache is allocated once."""
        tokenizer, limit = self.prompter.tokenizer, self.args.max_new_tokens
        longest = 0
        for question in self.questions:
            later = sum(
                len(tokenizer(turn).input_ids) + limit + 64 for turn in question["turns"][1:]
            )
            longest = max(longest, len(self.prompter.render(question["turns"], [])) + limit + later)
        context = self.target.context
        return min(longest, context) if context else longest

    def run(self) -> int:
        """Answer every question not yet in the files; returns how many failed."""
        from model.common.records.bandwidth import measure, note
        from model.common.target.offload import wanted_offload

        failed = 0
        measured = None
        for opened in self.runs:
            files = list(zip((self.drafter, self.baseline), opened))
            groups = self._groups(files)
            if groups:
                if measured is None:  # before the warm-up, which allocates the run's cache
                    measured = measure(self.target, wanted_offload(self.args) is not None)
                    self._warm_up()
                note(opened, measured)
                self.drafter.forget()
            begin, self.decode_s = time.perf_counter(), 0.0
            failed += self._answer(groups, files)
            harness_s = time.perf_counter() - begin - self.decode_s
            order = [question["question_id"] for question in self.questions]
            for drafter, file in files:
                facts = drafter.facts() | self.target.facts() if groups else None
                if groups:
                    seconds = {"decode": round(self.decode_s, 3), "harness": round(harness_s, 3)}
                    file.note({"run_s": seconds, "runtime_ran": self.target.runtime.name})
                file.finish(order, facts)
        return failed

    def _groups(self, files) -> list[tuple[int, list[dict]]]:
        """Numbered batches of questions with at least one answer missing."""
        size = self.args.batch_size
        groups = []
        for number, begin in enumerate(range(0, len(self.questions), size)):
            group = [
                question
                for question in self.questions[begin : begin + size]
                if not all(file.is_done(question["question_id"]) for _, file in files)
            ]
            if group:
                groups.append((number, group))
        return groups

    def _warm_up(self) -> None:
        """Untimed decodings of the first questions, then every compiled shape in every bucket."""
        capacity = self.capacity()
        group = self.questions[: self.args.batch_size]
        try:
            self.target.reserve(len(group), capacity + 128)
            prompts = [self.prompter.render(question["turns"], []) for question in group]
            for _ in range(self.args.warmup):
                for drafter in filter(None, (self.drafter, self.baseline)):
                    self._decode(drafter, prompts, [0] * len(group))
            if self.args.warmup and self.target.static_shapes:
                for drafter in filter(None, (self.drafter, self.baseline)):
                    self.target.warm(capacity + 1, drafter.shapes(), drafter.needs.hidden)
                    drafter.warm(capacity + 1)
        except Exception as error:  # the question fails again when its turn comes, and is recorded
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            print(f"warm-up: {reason}; shapes met later are timed as they come", file=sys.stderr)

    def _decode(self, drafter, prompts: list[list[int]], seeds: list[int]) -> list:
        done = self.generate(
            self.target,
            drafter,
            prompts,
            self.sampler,
            seeds,
            self.stop,
            self.args.max_new_tokens,
            self.typical if drafter is self.drafter else None,
        )
        self.decode_s += max(turn.wall_s for turn in done)
        return done

    def _answer(self, groups, files) -> int:
        from model.common.progress import Progress

        failed = set()
        with Progress(sum(len(group) for _, group in groups)) as progress:
            for number, group in groups:
                order = files if number % 2 == 0 else files[::-1]
                for drafter, file in order:
                    left = [q for q in group if not file.is_done(q["question_id"])]
                    for record in self._answer_group(drafter, left, file.meta["model_id"]):
                        file.add(record)
                        if drafter is self.drafter:
                            progress.add(record)
                        if "error" in record:
                            failed.add(record["question_id"])
                            progress.say(f"question {record['question_id']}: {record['error']}")
        return len(failed)

    def _answer_group(self, drafter, group: list[dict], model_id: str) -> list[dict]:
        """Records of a batch of questions; what fails is recorded with its reason."""
        from model.common.records.writer import answer_record

        choices = {question["question_id"]: [] for question in group}
        errors: dict[int, str] = {}
        for index in range(self.args.num_choices):
            for question, answer in zip(group, self._conversations(drafter, group, index)):
                if isinstance(answer, str):
                    errors[question["question_id"]] = answer
                else:
                    choices[question["question_id"]].append(answer)
        return [
            answer_record(
                question,
                model_id,
                [] if question["question_id"] in errors else choices[question["question_id"]],
                errors.get(question["question_id"]),
            )
            for question in group
        ]

    def _conversations(self, drafter, group: list[dict], index: int) -> list:
        """All turns of a batch: a choice record per question, or its error."""
        from model.common.records.writer import choice_record

        batch = group[0]["question_id"] if group else None
        state = [Conversation(q, self.history.get(q["question_id"])) for q in group]
        for turn in range(max((len(question["turns"]) for question in group), default=0)):
            active = [c for c in state if c.error is None and turn < len(c.turns)]
            self._render(active)
            active = [c for c in active if c.error is None]
            if not active:
                continue
            seeds = [c.seed(self.args.seed, index, turn) for c in active]
            try:
                done = self._decode(drafter, [c.prompt for c in active], seeds)
            except Exception as error:  # one question's failure must not lose the run
                for conversation in active:
                    conversation.error = " ".join(f"{type(error).__name__}: {error}".split())[:500]
                continue
            for conversation, result in zip(active, done):
                conversation.add(result, self.prompter.text(result.output_ids, self.stop))
        return [
            c.error
            or choice_record(index, c.texts, c.results, c.prompt_tokens, [batch] * len(c.results))
            for c in state
        ]

    def _render(self, conversations) -> None:
        """Each conversation's next prompt; one that cannot be read becomes its error, alone."""
        from model.common.loop.decode import check_lengths

        for conversation in conversations:
            ids = self.prompter.render(conversation.turns, conversation.past)
            try:
                check_lengths(self.target, [ids], [self.args.max_new_tokens])
                conversation.prompt = ids
                conversation.prompt_tokens.append(len(ids))
            except BadInput as error:
                conversation.error = str(error)
