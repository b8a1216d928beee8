"""A server and the questions that it is to answer: who it is, what it can be asked, its answers."""

from __future__ import annotations

import os
import re
import sys
import time
import uuid

from model.common import args as arguments
from model.common.errors import BadInput, one_line
from model.common.eval import args_of, choose_questions
from model.common.load.flags import is_load
from model.common.load.schedule import schedules
from model.common.loop.clock import HostTime
from model.common.progress import Progress
from model.common.prompts.conversation import first_prompt, read_history
from model.common.prompts.prompter import Prompter, load_tokenizer
from model.common.records.lock import written_alone
from model.common.remote_code import trust, trusted
from model.common.target.gguf_files import gguf_file
from model.common.target.loading import check_model_path
from model.engine.answer import doubted, served_turn
from model.engine.arrivals import Lateness, answer_all
from model.engine.client import Client, ServerError
from model.engine.dialects import Asked, Interface
from model.engine.evidence import run_contradiction
from model.engine.files import open_served
from model.engine.identity import check_model, counted, counted_after, difference, identify
from model.engine.queue import ServedQueue

PROBED = 8  # tokens that a server is asked for to see what its answers look like
DYING_S = 5.0  # for which a server that was started here may take to end
REUSE = "nothing tells this server not to reuse prompts of earlier requests"
NOT_THIS_WAY = (400, 404, 405, 415, 422, 501)  # HTTP: the request is of a kind that it has not


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
        trust(args.trust_remote_code)
        check_model_path(args.model_path)
        self.args = args
        self.prompter = Prompter.of(load_tokenizer(args.model_path), args.template, vars(args))
        self.stop = self.prompter.stop_rules(generation_config(args.model_path))
        self.schedules = self._schedules()
        self.questions, self.history = self._questions()
        self.failed, self.retried, self.before, self.host = set(), 0, None, HostTime()

    def _schedules(self) -> list:
        return schedules(self.args) if is_load(self.args) else [None]

    def _questions(self):
        numbers = [schedule.num_requests for schedule in self.schedules if schedule]
        questions = choose_questions(self.args, max(numbers, default=None))
        history = read_history(self.args.history, questions) if self.args.history else {}
        return questions, history

    async def run(self) -> int:
        """Answer everything; returns how many questions failed."""
        args = self.args
        key = os.environ.get(args.api_key_env) if args.api_key_env else None
        retries = 0 if is_load(args) else args.retries
        async with Client(args.url, args.stall, retries, self.host, key) as self.client:
            self.identity = await identify(self.client, args.engine_cmd)
            if args.speculation is not None:
                self.identity.speculation = args.speculation
            self.model = check_model(self.identity, args.url, args.model)
            self.interface = await self._probe()
            if not (args.prompt_cache or self.isolated):
                print(f"{args.url}: {REUSE}", file=sys.stderr)
            args.model_id = args.model_id or self._model_id()
            for files, schedule, asked in self._files():
                await self._fill(files, schedule, asked)
        return len(self.failed)

    @property
    def isolated(self) -> bool:
        """Whether the server reads every prompt anew where it is asked to."""
        return self.interface.isolates(self.identity.name)

    def _model_id(self) -> str:
        name = f"{self.identity.name}-{short_name(self.identity.speculation)}"
        return arguments.default_model_id(name, self.args)

    def _files(self):
        """Yield (answer files, schedule, questions) of each run; the second file is of --aa."""
        numbers = range(1, self.args.num_runs + 1) if self.args.num_runs else [None]
        for number, schedule in [(n, load) for n in numbers for load in self.schedules]:
            asked = self.questions[: schedule.num_requests if schedule else None]
            own = args_of(self.args, schedule)
            path = arguments.answer_path(own, number)
            with written_alone(path):
                yield open_served(self, own, asked, path, schedule), schedule, asked

    async def _probe(self):
        """The first interface by which the server answers. Raises BadInput where none does."""
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
        salt = None if self.args.prompt_cache else uuid.uuid4().hex
        return Asked(ids, messages, limit, seed, self.stop, salt)

    async def _fill(self, files, schedule, asked: list[dict]) -> None:
        """Answer what a run's files lack of its questions."""
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
            seconds = queue.seconds()
            seconds["harness"] = max(time.perf_counter() - begin - seconds["decode"], 0.0)
            facts = {"retried": self.retried, "client_late_s": lateness.facts()}
            facts |= self._reused(queue) | await self._run_counted(first, queue, file, left)
            run_s = {name: round(value, 3) for name, value in seconds.items()}
            file.note({"run_s": run_s} | queue.notes())
            file.finish(order, facts)

    def _reused(self, queue) -> dict:
        """{"cached_tokens"}: of prompts, taken from earlier requests, where the server says it."""
        count = queue.cached_tokens
        if count and not self.args.prompt_cache:
            print(f"{count} tokens of prompts were taken from earlier requests", file=sys.stderr)
        return {} if count is None else {"cached_tokens": count}

    async def _run_counted(self, first, queue, file, questions: list[dict]) -> dict:
        """{"server_counted"}: what the metrics page, None or `first` before the run, counted in it.

        Answers that it speaks against lose their accept lengths.
        """
        if first is None:
            return {}
        given = self.client, self.identity.name, first, queue.num_counted
        try:
            last, totals = await counted_after(*given)
        except ServerError as error:
            await self._check_alive(error)
            return {}
        if last is None:
            return {}
        if sentence := run_contradiction(queue.accepted, totals):
            print(f"no accept lengths: {sentence}", file=sys.stderr)
            file.replace(
                [doubted(file.lines.record(q["question_id"]), sentence) for q in questions]
            )
        found = {"tokens": round(last.tokens - first.tokens)} | vars(difference(first, last))
        return {"server_counted": found}

    async def _page(self):
        """What the metrics page counts now; None where there is none."""
        try:
            return await counted(self.client, self.identity.name)
        except ServerError as error:
            await self._check_alive(error)
            return None

    async def _warm_up(self) -> None:
        """Untimed requests for the first question, one after the other."""
        ids, messages = self._first_prompt()
        for _ in range(self.args.warmup):
            asked = self._asked(ids, messages, self._limit(ids), 0)
            body = self.interface.body(self.model, asked, self.args)
            try:
                await self.client.ask(self.interface.path, body)
            except ServerError as error:
                await self._check_alive(error)
                print(f"warm-up: {error}", file=sys.stderr)
                return

    def _limit(self, ids: list[int]) -> int:
        """Most new tokens that the server's context has room for; one at least."""
        limit, context = self.args.max_new_tokens, self.identity.context
        return limit if context is None else max(min(limit, context - len(ids)), 1)

    async def _check_alive(self, error) -> None:
        """Raise BadInput where nothing more can be asked: the server is gone.

        A busy one may refuse a connection, or let it wait too long; this machine may have none left
        to give. A server is gone where its process has ended, or it refuses another one at once.
        """
        gone = error.refused and await self._refuses()
        if self.server is not None:
            self.server.check(DYING_S if gone else 0.0)
        if gone:
            raise BadInput(f"{error}; answers so far are kept") from error

    async def _refuses(self) -> bool:
        """Whether nobody listens."""
        try:
            await self.client.get("/v1/models")
        except ServerError as error:
            return error.refused
        return False

    async def _answer(self, questions: list[dict], file, schedule):
        """The ServedQueue of questions, all of them answered or failed.

        Raises BadInput where no more can be asked; then some of them are neither.
        """
        with Progress(len(questions)) as progress:

            def record(made):
                file.add(made)
                progress.add(made)
                if "error" in made:
                    self.failed.add((file.path, made["question_id"]))
                    progress.say(f"question {made['question_id']}: {made['error']}")

            queue = ServedQueue(self, questions, file.meta["model_id"], record, schedule)
            try:
                await answer_all(self._serve, queue, self.args.batch_size)
            except BadInput as error:  # the server is gone, say: what was in flight has failed
                if queue.open:
                    queue.fail(str(error))
                raise
        return queue

    async def _serve(self, request, slot: int, queue) -> None:
        """Answer one request; what goes wrong with it is its question's error."""
        conversation = request.owner
        try:
            messages = self._messages(conversation.question, conversation.past)
            asked = self._asked(request.ids, messages, self._limit(request.ids), request.seed)
            body = self.interface.body(self.model, asked, self.args)
            queue.sent(request, queue.now())
            reply = await self.client.ask(self.interface.path, body)
            queue.sent(request, reply.begin_s)
            turn = served_turn(reply, self.stop, asked.limit, slot)
            self._check_prompt(request, turn)
            turn.weigh(await self._counters(turn, queue), self.identity.speculation == "none")
        except (ServerError, BadInput) as error:
            queue.failed(request, slot, str(error))
            if isinstance(error, ServerError):
                await self._check_alive(error)
        except Exception as error:  # it must not lose the other questions
            queue.failed(request, slot, one_line(error))
        else:
            self.retried += turn.tries - 1
            queue.done(request, turn)

    def _check_prompt(self, request, turn) -> None:
        """Refuse an answer to another prompt than the ids that were sent."""
        count = turn.prompt_tokens
        if self.interface.name != "chat" and count not in (None, len(request.ids)):
            raise ServerError(f"a prompt of {len(request.ids)} ids has {count} at the server")

    async def _counters(self, turn, queue):
        """What the metrics page counted for this answer; None where it cannot be told apart."""
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

    if gguf_file(model_path):
        return None
    try:
        return GenerationConfig.from_pretrained(model_path)
    except OSError:
        config = AutoConfig.from_pretrained(model_path, trust_remote_code=trusted())
        return GenerationConfig.from_model_config(config)
