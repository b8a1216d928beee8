"""The run of a server: who it is, what it can be asked, and all questions answered by it."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
import uuid
from urllib.parse import urlsplit

from model.common import args as arguments
from model.common.errors import BadInput, ends_in_one_line, exit_answered, one_line
from model.common.load.flags import is_load
from model.common.records.lock import written_alone

AA_SUFFIX = "-aa"
PROBED = 8  # tokens that a server is asked for to see what its answers look like
DYING_S = 5.0  # for which a server that was started here may take to end
NOT_THIS_WAY = (400, 404, 405, 415, 422, 501)  # HTTP: the request is of a kind that it has not


def main(doc: str, add_args, argv=None) -> None:
    """Answer a bench by a server and exit: 0, 1 if questions failed, 2 on bad input, 70 on a crash.

    add_args(group)  declares the flags that only servers have
    """
    parser = arguments.make_parser("engine", doc, add_args, here=False)
    args = parser.parse_args(argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with ends_in_one_line(parser.prog, "needs --overwrite" if is_load(args) else "resumes"):
        check(args)
        failed = run(args)
    exit_answered(parser.prog, failed)


def check(args) -> None:
    """Refuse what a server cannot be asked."""
    if args.paired:
        raise BadInput("--paired: a server's baseline is a run of its own; --aa repeats this one")
    args.paired = 0
    arguments.check(args)
    parts = urlsplit(args.url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadInput(f"--url {args.url}: http://HOST:PORT is needed")
    if args.api_key_env and not os.environ.get(args.api_key_env):
        raise BadInput(f"--api-key-env {args.api_key_env}: the environment has no such variable")
    if args.aa and is_load(args):
        raise BadInput("--aa repeats answers; of a load run, repeat the run")


def run(args) -> int:
    """Start the server where that is asked for, and answer; returns how many questions failed."""
    from model.engine.process import running

    bench = EngineBench(args)  # what can be refused is refused before a server is started
    log = arguments.answer_path(args).with_name(f"{log_name(args)}-server.log")
    with running(args.engine_cmd, args.url, log, args.engine_start) as bench.server:
        return asyncio.run(bench.run())


def log_name(args) -> str:
    """Of the file beside the answers that takes a started server's output."""
    if args.answer_file:
        return arguments.answer_path(args).name.removesuffix(".jsonl")
    return args.model_id or "engine"


def short_name(speculation: str | None) -> str:
    """How a server drafts, as a part of a file's name.

    >>> short_name('--speculative-config {"method": "ngram"}'), short_name("none")
    ('ngram', 'plain')
    """
    if speculation in (None, "none"):
        return "plain" if speculation else "engine"
    named = re.search(r'(?:method|algorithm)"?[:=\s]+"?([\w-]+)', speculation)
    plain = re.fullmatch(r"[\w.-]+", speculation)
    return named[1].lower() if named else plain[0] if plain else "speculative"


class EngineBench:
    """A server and the questions that it is to answer; what queue.ServedQueue needs of a bench.

    server  process.ServerProcess that this run has started, or None
    """

    server = None

    def __init__(self, args):
        from model.common.prompts.prompter import Prompter, load_tokenizer
        from model.common.remote_code import trust
        from model.common.target.loading import check_model_path

        trust(args.trust_remote_code)
        check_model_path(args.model_path)
        self.args = args
        self.prompter = Prompter.of(load_tokenizer(args.model_path), args.template, vars(args))
        self.stop = self.prompter.stop_rules(generation_config(args.model_path))
        self.schedules = self._schedules()
        self.questions, self.history = self._questions()
        self.failed, self.retried, self.before = set(), 0, None

    def _schedules(self) -> list:
        if not is_load(self.args):
            return [None]
        from model.common.load.schedule import schedules

        return schedules(self.args)

    def _questions(self):
        from model.common.eval import choose_questions
        from model.common.prompts.conversation import read_history

        numbers = [schedule.num_requests for schedule in self.schedules if schedule]
        questions = choose_questions(self.args, max(numbers, default=None))
        history = read_history(self.args.history, questions) if self.args.history else {}
        return questions, history

    async def run(self) -> int:
        """Answer everything; returns how many questions failed."""
        from model.engine.client import Client
        from model.engine.identity import check_model, identify

        args = self.args
        key = os.environ.get(args.api_key_env) if args.api_key_env else None
        retries = 0 if is_load(args) else args.retries
        async with Client(args.url, args.stall, retries, key) as self.client:
            self.identity = await identify(self.client, args.engine_cmd)
            if args.speculation is not None:
                self.identity.speculation = args.speculation
            self.model = check_model(self.identity, args.url, args.model)
            self.interface = await self._probe()
            args.model_id = args.model_id or self._model_id()
            for files, schedule, asked in self._files():
                await self._fill(files, schedule, asked)
        return len(self.failed)

    def _model_id(self) -> str:
        name = f"{self.identity.name}-{short_name(self.identity.speculation)}"
        return arguments.default_model_id(name, self.args)

    def _files(self):
        """Yield (answer files, schedule, questions) of each run; the second file is of --aa."""
        from model.common.eval import args_of
        from model.engine.files import open_served

        numbers = range(1, self.args.num_runs + 1) if self.args.num_runs else [None]
        for number, schedule in [(n, load) for n in numbers for load in self.schedules]:
            asked = self.questions[: schedule.num_requests if schedule else None]
            own = args_of(self.args, schedule)
            path = arguments.answer_path(own, number)
            with written_alone(path):
                yield open_served(self, own, asked, path, schedule), schedule, asked

    async def _probe(self):
        """The first interface by which the server answers. Raises BadInput where none does."""
        from model.engine.client import ServerError
        from model.engine.dialects import Interface

        order = {"auto": ("completions", "chat")}.get(self.args.api, (self.args.api,))
        if self.args.api == "auto" and self.identity.name == "llama.cpp":
            order = ("llamacpp", "chat")
        reasons = []
        for name in order:
            for extended in (True,) if name == "llamacpp" else (True, False):
                interface = Interface(name, extended)
                try:
                    turn = await self._try(interface)
                    if interface.extended and turn.output_ids is None and turn.grown is None:
                        continue  # passed over what it was asked for: it takes OpenAI's fields
                except ServerError as error:
                    if error.status not in NOT_THIS_WAY and error.status != 200:
                        raise BadInput(f"{self.args.url}: {error}") from error
                    reasons.append(str(error))
                else:
                    if name == "chat" and self.args.template:
                        raise BadInput("--template: this server renders its messages itself")
                    return interface
        raise BadInput(f"{self.args.url}: {reasons[0]}")

    async def _try(self, interface):
        """The turn of a few tokens. Raises ServerError where they do not come as they should."""
        from model.engine.answer import served_turn
        from model.engine.client import ServerError

        ids, messages = self._first_prompt()
        asked = self._asked(ids, messages, min(PROBED, self.args.max_new_tokens), 0)
        reply = await self.client.ask(interface.path, interface.body(self.model, asked, self.args))
        turn = served_turn(reply, self.stop, asked.limit, 0)
        if interface.name != "chat" and turn.prompt_tokens not in (None, len(ids)):
            raise ServerError(
                f"a prompt of {len(ids)} token ids has {turn.prompt_tokens} at the server", 200
            )
        return turn

    def _first_prompt(self) -> tuple[list[int], list[dict]]:
        """Of the first question whose template does not refuse it."""
        from model.common.prompts.conversation import first_prompt

        for question in self.questions:
            if ids := first_prompt(self.prompter, question):
                return ids, self._messages(question, [])
        raise BadInput("the template refuses every question's prompt")

    def _messages(self, question: dict, past: list[str]) -> list[dict]:
        """What an interface that renders prompts itself is sent."""
        system = question.get("system") or self.args.system_prompt
        messages = [{"role": "system", "content": system}] if system else []
        for place, turn in enumerate(question["turns"][: len(past) + 1]):
            messages.append({"role": "user", "content": turn})
            if place < len(past):
                messages.append({"role": "assistant", "content": past[place]})
        return messages

    def _asked(self, ids, messages, limit: int, seed: int):
        from model.engine.dialects import Asked

        salt = None if self.args.prompt_cache else uuid.uuid4().hex
        return Asked(ids, messages, limit, seed, self.stop, salt)

    async def _fill(self, files, schedule, asked: list[dict]) -> None:
        """Answer what a run's files lack of its questions."""
        from model.engine.arrivals import Lateness
        from model.engine.identity import difference

        for place, file in enumerate(files):
            order = [question["question_id"] for question in asked]
            left = [question for question in asked if not file.is_done(question["question_id"])]
            if not left:
                file.finish(order)
                continue
            if not place:
                await self._warm_up()
            begin, self.retried = time.perf_counter(), 0
            self.before = first = await self._page()
            async with Lateness() as lateness:
                queue = await self._answer(left, file, schedule)
            last = await self._page()
            seconds = queue.seconds()
            seconds["harness"] = max(time.perf_counter() - begin - seconds["decode"], 0.0)
            facts = {"retried": self.retried, "client_late_s": lateness.facts()}
            if first and last:
                facts["server_counted"] = {"tokens": round(last.tokens - first.tokens)}
                facts["server_counted"] |= vars(difference(first, last))
            run_s = {name: round(value, 3) for name, value in seconds.items()}
            file.note({"run_s": run_s} | queue.notes())
            file.finish(order, facts)

    async def _page(self):
        """What the metrics page counts now; None where there is none."""
        from model.engine.client import ServerError
        from model.engine.identity import counted

        try:
            return await counted(self.client, self.identity.name)
        except ServerError as error:
            self._check_alive(error)
            return None

    async def _warm_up(self) -> None:
        """Untimed requests for the first question, one after the other."""
        from model.engine.client import ServerError

        ids, messages = self._first_prompt()
        for _ in range(self.args.warmup):
            asked = self._asked(ids, messages, self._limit(ids), 0)
            body = self.interface.body(self.model, asked, self.args)
            try:
                await self.client.ask(self.interface.path, body)
            except ServerError as error:
                self._check_alive(error)
                print(f"warm-up: {error}", file=sys.stderr)
                return

    def _limit(self, ids: list[int]) -> int:
        """Most new tokens that the server's context has room for; one at least."""
        limit, context = self.args.max_new_tokens, self.identity.context
        return limit if context is None else max(min(limit, context - len(ids)), 1)

    def _check_alive(self, error) -> None:
        """Raise BadInput where nothing more can be asked: the server is gone."""
        if self.server is not None:
            self.server.check(DYING_S if error.gone else 0.0)
        if error.gone:
            raise BadInput(f"{error}; answers so far are kept") from error

    async def _answer(self, questions: list[dict], file, schedule):
        """The ServedQueue of questions, all of them answered or failed."""
        from model.common.progress import Progress
        from model.engine.arrivals import answer_all
        from model.engine.queue import ServedQueue

        with Progress(len(questions)) as progress:

            def record(made):
                file.add(made)
                progress.add(made)
                if "error" in made:
                    self.failed.add((file.path, made["question_id"]))
                    progress.say(f"question {made['question_id']}: {made['error']}")

            queue = ServedQueue(self, questions, file.meta["model_id"], record, schedule)
            await answer_all(self._serve, queue, self.args.batch_size)
        return queue

    async def _serve(self, request, slot: int, queue) -> None:
        """Answer one request; what goes wrong with it is its question's error."""
        from model.engine.answer import served_turn
        from model.engine.client import ServerError

        conversation = request.owner
        try:
            messages = self._messages(conversation.question, conversation.past)
            asked = self._asked(request.ids, messages, self._limit(request.ids), request.seed)
            body = self.interface.body(self.model, asked, self.args)
            queue.sent(request, time.time())
            reply = await self.client.ask(self.interface.path, body)
            queue.sent(request, reply.begin_s)
            turn = served_turn(reply, self.stop, asked.limit, slot)
            self._check_prompt(request, turn)
            turn.weigh(await self._counters(turn, queue))
        except (ServerError, BadInput) as error:
            queue.failed(request, slot, str(error))
            if isinstance(error, ServerError):
                self._check_alive(error)
        except Exception as error:  # it must not lose the other questions
            queue.failed(request, slot, one_line(error))
        else:
            self.retried += turn.tries - 1
            queue.done(request, turn)

    def _check_prompt(self, request, turn) -> None:
        """Refuse an answer to another prompt than the ids that were sent."""
        from model.engine.client import ServerError

        count = turn.prompt_tokens
        if self.interface.name != "chat" and count not in (None, len(request.ids)):
            raise ServerError(f"a prompt of {len(request.ids)} ids has {count} at the server")

    async def _counters(self, turn, queue):
        """What the metrics page counted for this answer; None where it cannot be told apart."""
        from model.engine.client import ServerError
        from model.engine.identity import counted_after

        alone = self.args.batch_size == 1 and queue.schedule is None
        if not alone or self.before is None:
            return None
        given = self.client, self.identity.name, self.before, turn.num_counted
        try:
            self.before, totals = await counted_after(*given)
        except ServerError:  # the answer is there; the next request tells whether the server is
            self.before = totals = None
        return totals


def generation_config(model_path: str):
    """The model's, for its end tokens; None of a GGUF file, whose tokenizer has them."""
    from transformers import AutoConfig, GenerationConfig

    from model.common.remote_code import trusted
    from model.common.target.gguf_files import gguf_file

    if gguf_file(model_path):
        return None
    try:
        return GenerationConfig.from_pretrained(model_path)
    except OSError:
        config = AutoConfig.from_pretrained(model_path, trust_remote_code=trusted())
        return GenerationConfig.from_model_config(config)
