"""The harness: questions in, answer file out. Every method's script calls main()."""

from __future__ import annotations

import copy
import os
import sys
import time
from collections import Counter
from pathlib import Path

from model.common import args as arguments
from model.common import pairs
from model.common.errors import BadInput, Unwritable, ends_in_one_line, exit_answered, one_line
from model.common.load.flags import is_load
from model.common.prompts.conversation import first_prompt, read_history
from model.common.records.energy import INTERVAL_S
from model.common.records.lock import written_alone


def main(method: str, doc: str, add_args, build, engine=None, argv=None) -> None:
    """Run a method over a bench and exit: 0, 1 if questions failed, 2 on bad input, 70 on a crash.

    add_args(group)      declares the method's own flags
    build(args, target)  returns its Drafter; called once, outside every timed region
    engine(args)         optional: a run(target, source, sampler, stop) to be used in place of the
                         loop, or None
    """
    parser = arguments.make_parser(method, doc, add_args)
    args = parser.parse_args(argv)
    args.model_id = args.model_id or arguments.default_model_id(method, args)
    load = is_load(args)
    if args.paired is None:
        args.paired = 0 if load else pairs.usual(method)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with ends_in_one_line(parser.prog, "needs --overwrite" if load else "resumes"):
        arguments.check(args)
        failed = _run(method, args, build, engine)
    exit_answered(parser.prog, failed)


def _run(method, args, build, engine) -> int:
    """All runs of one command; returns how many questions failed."""
    if args.num_gpus_total > args.num_gpus_per_model:
        from model.common.shards import run_sharded

        return run_sharded(method, args, build, engine)
    loads = [None]
    if is_load(args):
        from model.common.load.schedule import schedules

        loads = schedules(args)
    numbers = range(1, args.num_runs + 1) if args.num_runs else [None]
    runs = [(number, load) for number in numbers for load in loads]
    paths = [arguments.answer_path(args_of(args, load), number) for number, load in runs]
    with written_alone(*paths):
        return Bench(method, args, build, engine, paths, [load for _, load in runs]).run()


def args_of(args, schedule):
    """The arguments of one run: with a load's name, and the one rate that it has of a sweep."""
    own = copy.copy(args)
    if schedule is not None:
        own.model_id = f"{args.model_id}-{schedule.name}"
        own.rate = args.rate and [schedule.figures["rate"]]
    return own


def choose_questions(args, num_requests: int | None = None) -> list[dict]:
    """The questions of the command line, or the requests of a load run, as many as are given."""
    from model.common.prompts.questions import read_questions, select

    if num_requests is not None:
        from model.common.load.requests import requests_of

        return requests_of(args, num_requests)
    return select(read_questions(arguments.question_path(args)), args)


class Bench:
    """A loaded target and drafter, the questions to answer, and the files for the answers.

    What can be refused is refused before the target is loaded; old answers are overwritten after.

    schedules  of load runs, one a path; the requests of each are the first of the same questions
    """

    def __init__(self, method: str, args, build, engine, paths: list[Path], schedules=(None,)):
        import torch
        import transformers

        from model.common.records.files import open_answers
        from model.common.remote_code import trust
        from model.common.target.placement import wanted_placement

        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        if args.num_threads:
            torch.set_num_threads(args.num_threads)
        trust(args.trust_remote_code)
        self.args, self.placement = args, wanted_placement(args)
        loads = [schedule.num_requests for schedule in schedules if schedule]
        if is_load(args) and not loads:
            raise BadInput("--num-prompts, --rate, --concurrency, --trace: no load runs here")
        self.questions = choose_questions(args, max(loads, default=None))
        self.schedules = schedules if loads else [None] * len(paths)
        self.history = read_history(args.history, self.questions) if args.history else {}
        if args.overwrite:  # old answers are there until the run can begin
            self._load(build, engine)
        self.runs = [
            open_answers(method, args_of(args, load), self._asked(load), path, load)
            for path, load in zip(paths, self.schedules)
        ]
        if not args.overwrite:
            self._keep_products()
            self._load(build, engine)

    def _asked(self, schedule) -> list[dict]:
        """The questions of one run."""
        return self.questions[: schedule.num_requests if schedule else None]

    def _keep_products(self) -> None:
        """A resumed run goes on with the form of products that its answers are of."""
        from model.common.records.writer import meta_path
        from model.common.target.products import read_rows, rows_text

        for file in (file for opened in self.runs for file in opened if file.lines):
            recorded, asked = file.meta["environment"].get("turned_rows"), self.args.turned_rows
            if recorded is None:
                continue
            if asked is not None and rows_text(asked) != recorded:
                raise BadInput(
                    f"{file.path}: answers with --turned-rows {recorded}, not {rows_text(asked)}; "
                    "--overwrite replaces them"
                )
            try:
                self.args.turned_rows = read_rows(recorded)
            except (ValueError, AttributeError) as error:
                raise BadInput(f"{meta_path(file.path)}: turned_rows {recorded!r}") from error

    def _load(self, build, engine) -> None:
        from model.common.contract.sequence import EmptyDrafter
        from model.common.loop.passed_over import passed_over
        from model.common.prompts.prompter import Prompter, load_tokenizer
        from model.common.records.energy.log import start_sampler
        from model.common.records.meta import is_lossy
        from model.common.target.loading import load_plain, load_target
        from model.common.target.offload import wanted_offload
        from model.common.target.products import Chosen

        args = self.args
        if args.turned_rows is not None:
            Chosen.turned_rows = args.turned_rows
        self.prompter = Prompter.of(load_tokenizer(args.model_path), args.template, vars(args))
        self.engine = engine(args) if engine else None
        if self.engine is not None and args.scale_to is None:
            self.target = load_plain(args.model_path, args.dtype, self.placement.target)
        else:
            self.target = load_target(
                args.model_path,
                args.dtype,
                self.placement.target,
                args.runtime,
                wanted_offload(args),
                args.scale_to,
            )
        self.stop = self.prompter.stop_rules(self.target.model.generation_config)
        endless = self.prompter.endless(self.stop)
        if endless:
            print(f"warning: {endless}", file=sys.stderr)
        self.sampler = self._sampler()
        left_out = passed_over(self.target.model.generation_config, self.sampler.penalties)
        if left_out:
            print(f"warning: {left_out}", file=sys.stderr)
        self.drafter = build(args, self.target)
        refusal = self.target.refuses(self.drafter, args.batch_size)
        if refusal is not None:
            raise BadInput(refusal)
        self.baseline = EmptyDrafter() if args.paired else None
        self.energy = None  # the sampler of joules
        if args.energy:  # before old answers are overwritten
            self.energy = start_sampler(
                self.target, args.energy_interval or INTERVAL_S, args.energy == "needed"
            )
        self.typical = None
        self.capacity: int | None = None  # worked out when it is first needed
        if is_lossy(args):
            self.typical = (args.posterior_threshold, args.posterior_alpha)

    def _sampler(self):
        """As the flags say. Raises BadInput for what this target leaves undefined."""
        from model.common.loop.penalties import Penalties
        from model.common.loop.sampling import Sampler

        args, penalties = self.args, Penalties.of(vars(self.args))
        if penalties.repetition != 1 and self.target.model.config.is_encoder_decoder:
            raise BadInput(
                "--repetition-penalty: an encoder's prompt is nothing that its decoder repeats;"
                " --presence-penalty and --frequency-penalty are of the answer alone"
            )
        return Sampler(args.temperature, args.top_k, args.top_p, args.min_p, penalties)

    def _capacity(self) -> int:
        """Columns that no question of this run exceeds, so that the cache is allocated once."""
        tokenizer, limit = self.prompter.tokenizer, self.args.max_new_tokens
        longest = 1
        for question in self.questions:
            later = sum(
                len(tokenizer(turn).input_ids) + limit + 64 for turn in question["turns"][1:]
            )
            prompt = first_prompt(self.prompter, question) or []  # a refused one is never decoded
            longest = max(longest, len(prompt) + limit + later)
        context = self.target.context
        return min(longest, context) if context else longest

    def run(self) -> int:
        """Answer every question not yet in the files; returns how many failed."""
        try:
            return self._run()
        finally:
            if self.energy:
                self.energy.stop()

    def _run(self) -> int:
        from model.common.records.bandwidth import measure, note
        from model.common.records.devices import peak_bytes
        from model.common.records.energy.log import EnergyLog
        from model.common.target.offload import wanted_offload

        failed = 0
        measured = tree = placed = None
        for opened, schedule in zip(self.runs, self.schedules):
            asked = self._asked(schedule)
            files = list(zip((self.drafter, self.baseline), opened))
            left = pairs.remaining(asked, opened, self.args.paired)
            if self.args.paired == 1:  # half a pair is no pair: both sides are decoded anew
                for file in opened:
                    file.drop(question["question_id"] for question in left)
            if left:
                if measured is None:  # before the warm-up, which allocates the run's cache
                    measured = measure(self.target, wanted_offload(self.args) is not None)
                    tree = self._fit_tree()
                    self._warm_up()
                    placed = self._placed()
                note(opened, measured, placed)
                if tree:
                    opened[0].note({"fitted_tree": tree})
                self.drafter.forget()
                self.target.forget()
            begin = time.perf_counter()
            logs = [EnergyLog(self.energy, self._num_slots) for _ in files]
            wrong, seconds = self._answer(left, files, schedule, logs)
            failed += wrong
            spent = time.perf_counter() - begin - seconds["decode"] - seconds.get("idle", 0.0)
            seconds = {name: round(s, 3) for name, s in (seconds | {"harness": spent}).items()}
            order = [question["question_id"] for question in asked]
            for (drafter, file), log in zip(files, logs):
                facts = drafter.facts() | self.target.facts() if left else None
                if left and tree and drafter is self.drafter:
                    facts |= {"auto_nodes": tree["num_nodes"], "auto_depth": tree["depth"]}
                if left:
                    file.add_energy(log.summary(is_load(self.args)))
                    placed["peak_bytes"] = peak_bytes(self.placement.devices)
                    ran = {"runtime_ran": self.target.runtime.ran, "placement": placed}
                    file.note({"run_s": seconds, **ran})
                file.finish(order, facts)
        return failed

    def _fit_tree(self) -> dict | None:
        """Of a method that leaves its tree open: that of its files, or what pays here."""
        from model.common.fitting.fit import fit_tree, recorded_tree, said, use

        if not self.drafter.fits_tree:
            return None
        tree = recorded_tree([opened[0] for opened in self.runs])
        if tree:
            use(self.drafter, tree)
        else:
            rendered = {q["question_id"]: first_prompt(self.prompter, q) for q in self.questions}
            prompts = {name: ids for name, ids in rendered.items() if ids}
            tree = fit_tree(self.drafter, self.target, prompts, self._num_slots, self._decode)
        print(said(tree), file=sys.stderr)
        return tree

    def _placed(self) -> dict:
        """A meta's `placement`, which a line says where there are several devices."""
        from model.common.records.devices import crossings, placement_facts, said

        facts = placement_facts(self.placement, self.target, self.drafter)
        if len(self.placement.devices) > 1:
            if self.engine is None:
                loop = self._loop(self.drafter)
                facts["crossings"] = crossings(loop, self._first_prompts())
            print(said(facts), file=sys.stderr)
        return facts

    def _first_prompts(self) -> list[list[int]]:
        """Of as many questions as are answered at a time."""
        from itertools import islice

        rendered = (first_prompt(self.prompter, question) for question in self.questions)
        return list(islice(filter(None, rendered), self.args.batch_size))

    def _warm_up(self) -> None:
        """Untimed decodings of the first questions, in every shape that a static runtime needs.

        A question whose prompt its template refuses is passed over.
        """
        from model.common.loop.source import Prompts, Request

        prompts = self._first_prompts()
        limit = self.args.max_new_tokens
        try:
            for number in range(self.args.warmup):
                seldom = number and self.args.paired != 1  # a share of pairs, a share of warm-up
                for drafter in filter(None, (self.drafter, None if seldom else self.baseline)):
                    self._decode(drafter, Prompts([Request(ids, limit) for ids in prompts]))
            if self.args.warmup and prompts:
                for ids in self.target.rehearse(self.drafter, prompts[0]):
                    self._decode(self.drafter, Prompts([Request(ids, REHEARSED)]))
        except Exception as error:  # the question fails again when its turn comes, and is recorded
            print(f"warm-up: {one_line(error)}; shapes met later are timed", file=sys.stderr)

    def _decode(self, drafter, source) -> None:
        """Run the loop until the source has nothing more."""
        if self.engine is not None:
            self.engine(self.target, source, self.sampler, self.stop)
            return
        self._loop(drafter).run(source)

    def _loop(self, drafter):
        from model.common.loop.decode import Loop

        typical = None if drafter is self.baseline else self.typical
        if self.capacity is None:
            self.capacity = self._capacity()
        shape, others = (self._num_slots, self.capacity), self.placement.drafter.devices
        return Loop(self.target, drafter, self.sampler, self.stop, *shape, typical, others)

    @property
    def _num_slots(self) -> int:
        return min(self.args.batch_size, len(self.questions) * self.args.num_choices)

    def _answer(self, questions, files, schedule, logs) -> tuple[int, dict[str, float]]:
        """(questions that failed, a meta's run_s but for harness), of the method and of its pairs.

        Questions are taken as slots become free; pairs.plan() says where the baseline comes in.
        """
        from model.common.progress import Progress

        failed, seconds = set(), Counter(decode=0.0)
        work = pairs.plan(questions, self.args.paired, self.args.batch_size)
        with Progress(len(questions)) as progress:
            for side, group in work:
                drafter, file = files[side]

                def record(made, drafter=drafter, file=file):
                    file.add(made)
                    if drafter is self.drafter:
                        progress.add(made)
                    if "error" in made:
                        failed.add(made["question_id"])
                        progress.say(f"question {made['question_id']}: {made['error']}")

                left = [q for q in group if not file.is_done(q["question_id"])]
                queue = self._queue(left, file.meta["model_id"], record, schedule)
                queue.energy = logs[side]
                self._empty(queue, drafter)
                seconds.update(queue.seconds())
                if notes := queue.notes():
                    file.note(notes)
        return len(failed), dict(seconds)

    def _empty(self, queue, drafter) -> None:
        """Decode until every question has an answer, or an error."""
        try:
            while queue.unfinished:
                try:
                    self._decode(drafter, queue)
                except Unwritable:
                    raise
                except Exception as error:  # it must not lose the other questions
                    queue.fail(one_line(error))
        finally:
            queue.energy.settle()  # also of an interrupted run: what has ended is written

    def _queue(self, questions, model_id, record, schedule):
        """The loop's source for questions of one file."""
        from model.common.load.queue import LoadQueue
        from model.common.question_queue import QuestionQueue

        if schedule is None:
            return QuestionQueue(self, questions, model_id, record)
        return LoadQueue(self, questions, model_id, record, schedule)


REHEARSED = 8  # tokens of each answer that shows a static runtime its shapes
