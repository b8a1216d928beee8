"""Conversations to token ids: FastChat's templates by name, the tokenizer's own, or plain text.

Several turns keep the conversation: the answer given to a turn is part of the next turn's prompt.
"""

from __future__ import annotations

import bisect
import inspect
import os
import re

from jinja2 import Environment, TemplateError
from jinja2.meta import find_undeclared_variables

from model.common.errors import BadInput, first_line, one_line
from model.common.loop.turns import StopRules
from model.common.remote_code import check_needed, trusted

# a conversation whose rendering shows where a system message goes and what follows an answer
PROBE = (["Name a fish.", "Name a bird."], ["Sturgeon"])
VARIABLES = {"tools", "documents"}  # parameters of apply_chat_template that templates may use


class Prompter:
    """Renders a conversation and knows where its answers stop.

    template   a FastChat name ("vicuna_v1.1"), "plain", or None = the tokenizer's chat template if
               it has one, else plain (turns and answers joined by newlines)
    system     message of the system where a question brings none, None = the template's own
    variables  of the tokenizer's chat template, {name: value}
    stop_ids, stop_strings, ignore_eos: see stop_rules()
    Raises BadInput for a system message or variables that the template has no place for.
    """

    def __init__(
        self,
        tokenizer,
        template: str | None = None,
        system: str | None = None,
        variables: dict | None = None,
        stop_ids: tuple = (),
        stop_strings: tuple = (),
        ignore_eos: bool = False,
    ):
        self.tokenizer = tokenizer
        self.system, self.variables = system, variables or {}
        self.stop_ids, self.stop_strings = frozenset(stop_ids), tuple(stop_strings)
        self.ignore_eos = ignore_eos
        self.conversation = None
        if template not in (None, "plain"):
            self.conversation = _fastchat(template)
        elif template is None and not tokenizer.chat_template:
            template = "plain"
        self.name = template or "tokenizer"
        if variables is not None:
            self._check_variables()
        if system is not None:
            self._check_system()
        if self.stop_ids:
            self._check_stop_ids()

    @classmethod
    def of(cls, tokenizer, template: str | None, arguments: dict) -> Prompter:
        """As the flags of a command line say, or those that a meta records."""
        return cls(
            tokenizer,
            template,
            arguments.get("system_prompt"),
            arguments.get("template_args"),
            arguments.get("stop_token_ids") or (),
            arguments.get("stop") or (),
            bool(arguments.get("ignore_eos")),
        )

    def render(self, turns: list[str], answers: list[str], system: str | None = None) -> list[int]:
        """Ids of the prompt for turn len(answers): earlier turns and answers, then that turn.

        system: the question's first message, of the system; None = the prompter's, if it has one.
        """
        turns = turns[: len(answers) + 1]
        system = self.system if system is None else system
        if self.name == "tokenizer":
            return list(self._chat(turns, answers, system, tokenize=True))
        text = self._text(turns, answers, system)
        bos = self.tokenizer.bos_token
        starts = bool(bos) and text.startswith(bos)
        return self.tokenizer(text, add_special_tokens=not starts).input_ids

    def _text(self, turns, answers, system) -> str:
        """The prompt before it is tokenised."""
        if self.name == "tokenizer":
            return self._chat(turns, answers, system, tokenize=False)
        as_text = self._fastchat_text if self.conversation else _plain
        return as_text(turns, answers, system)

    def _chat(self, turns, answers, system, tokenize: bool):
        """By the tokenizer's chat template: ids, or their text."""
        messages = [] if system is None else [{"role": "system", "content": system}]
        for i, turn in enumerate(turns):
            messages.append({"role": "user", "content": turn})
            if i < len(answers):
                messages.append({"role": "assistant", "content": answers[i]})
        options = {"add_generation_prompt": True, "tokenize": tokenize, "return_dict": False}
        try:
            return self.tokenizer.apply_chat_template(messages, **options, **self.variables)
        except Exception as error:  # a template may raise anything
            said = isinstance(error, TemplateError) and str(error).strip()
            reason = " ".join(str(error).split()) if said else one_line(error)
            raise BadInput(f"the tokenizer's chat template refuses: {reason}") from error

    def _fastchat_text(self, turns, answers, system) -> str:
        conversation = self.conversation.copy()
        if system is not None:
            conversation.set_system_message(system)
        for turn, answer in zip(turns, [*answers, None]):
            conversation.append_message(conversation.roles[0], turn)
            conversation.append_message(conversation.roles[1], answer)
        return conversation.get_prompt()

    def _check_variables(self) -> None:
        """They have to stand in the chat template, else they would change nothing."""
        if self.name != "tokenizer":
            raise BadInput(f"--template-args: of the tokenizer's chat template, not of {self.name}")
        taken = set(inspect.signature(self.tokenizer.apply_chat_template).parameters) - VARIABLES
        known = _inputs(self.tokenizer.get_chat_template()) - taken - {"messages"}
        for name in self.variables:
            if name not in known:
                raise BadInput(f"--template-args: {name} is no variable of the chat template")

    def _check_system(self) -> None:
        """The message has to be seen in a prompt."""
        if not isinstance(self.system, str):
            raise BadInput(f"--system-prompt: {self.system!r} is no text")
        try:
            seen = self.system.strip() in self._text(PROBE[0][:1], [], self.system)
            reason = f"the template {self.name} has no place for it"
        except BadInput as error:
            seen, reason = False, str(error)
        if not seen:
            raise BadInput(f"--system-prompt: {reason}")

    def _check_stop_ids(self) -> None:
        """They have to be ids of the vocabulary."""
        known = set(self.tokenizer.get_vocab().values())
        for token in sorted(self.stop_ids - known):
            raise BadInput(
                f"--stop-token-ids {token}: no id of the vocabulary, which ends at {max(known)}"
            )

    def stop_rules(self, generation_config) -> StopRules:
        """All ends that the model's generation config, the tokenizer and the template know, and
        stop_ids and stop_strings; with ignore_eos these two alone."""
        if self.ignore_eos:
            return StopRules(self.stop_ids, self.stop_strings, self.tokenizer.decode)
        eos = generation_config.eos_token_id if generation_config is not None else None
        ends = eos if isinstance(eos, (list, tuple)) else [eos]
        if not all(end is None or isinstance(end, int) for end in ends):
            raise BadInput(
                f"generation config: eos_token_id {eos!r}, an id or a list of them wanted"
            )
        ids = {*ends, *self.stop_ids}
        ids.add(self.tokenizer.eos_token_id)
        strings = ()
        if self.conversation:
            ids.update(self.conversation.stop_token_ids or [])
            stop = self.conversation.stop_str or []
            strings = tuple([stop] if isinstance(stop, str) else stop)
        strings += tuple(text for text in self.stop_strings if text not in strings)
        decode = self.tokenizer.decode
        return StopRules(frozenset(i for i in ids if i is not None), strings, decode)

    def endless(self, stop: StopRules) -> str | None:
        """Why answers may run on: the template ends them with a token that is no stop token.

        Seen in a rendered conversation: the first special or added token behind an answer. None
        where all is well, or where the template does not tell (one turn only, no such token).
        """
        if self.ignore_eos:
            return None
        (turns, answers), decode = PROBE, self.tokenizer.decode
        try:
            ids = self.render(turns, answers)
        except Exception:  # a template may raise anything; questions will say so themselves
            return None
        begin, end = (
            bisect.bisect_left(range(len(ids)), True, key=lambda n, t=t: t in decode(ids[:n]))
            for t in (answers[0], turns[1])
        )
        special = {*self.tokenizer.added_tokens_decoder, *self.tokenizer.all_special_ids}
        special.discard(self.tokenizer.bos_token_id)
        last = next((token for token in ids[begin:end] if token in special), None)
        if last is None or last in stop.eos_ids:
            return None
        text = decode([last])
        if any(string in text for string in stop.strings):
            return None
        return (
            f"the template {self.name} ends answers with {text!r}, which is no stop token of this"
            f" target: answers may run on; --stop-token-ids {last} ends them there"
        )

    def text(self, ids: list[int], stop: StopRules) -> str:
        """The answer's text: special tokens dropped, cut at the stop string that ended it.

        That one ends in the last token. Letters that only stand side by side because a special
        token between them was dropped are none: stop strings are looked for before.
        """
        decode = self.tokenizer.decode
        text, whole = decode(ids, skip_special_tokens=True), decode(ids) if stop.strings else ""
        for string in stop.strings:
            if string in whole:
                before = decode(ids[:-1], skip_special_tokens=True)
                before = before.rstrip("\ufffd")  # which the last token makes whole
                at = text.find(string, max(0, len(before) - len(string) + 1))
                text = text[:at] if at >= 0 else text
        return text.strip()


def _inputs(template: str) -> set[str]:
    """Names that a chat template reads from outside: not what it sets or loops over itself."""
    environment = Environment(extensions=["jinja2.ext.loopcontrols"])
    plain = re.sub(r"{%[-+]?\s*(end)?generation\s*[-+]?%}", "", template)  # a tag of transformers
    try:
        return find_undeclared_variables(environment.parse(plain))
    except TemplateError as error:
        raise BadInput(f"the tokenizer's chat template is broken: {error}") from error


def _plain(turns, answers, system) -> str:
    parts = [] if system is None else [system]
    for i, turn in enumerate(turns):
        parts.append(turn)
        if i < len(answers):
            parts.append(answers[i])
    return "\n".join(parts) + "\n"


def _fastchat(name: str):
    from fastchat.conversation import conv_templates

    if name not in conv_templates:
        raise BadInput(f"--template {name}: FastChat has no such template; plain is the bare text")
    conversation = conv_templates[name].copy()
    try:
        conversation.get_prompt()
    except ValueError as error:
        raise BadInput(f"--template {name}: FastChat makes no text of it: {error}") from error
    return conversation


def load_tokenizer(path: str):
    """The tokenizer beside a model, or in its GGUF file; failures are one line."""
    from transformers import AutoTokenizer

    from model.common.target.gguf_files import complete_tokenizer, pretrained

    try:
        with pretrained(path) as (source, more):
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trusted(), **more)
    except BadInput:
        raise
    except Exception as error:  # of many kinds, as of models
        check_needed(path, error)
        gone = path.startswith((".", "/", "~")) and not os.path.exists(path)
        reason = "no such directory" if gone else first_line(error)
        raise BadInput(f"{path}: no tokenizer: {reason}") from error
    if more:
        complete_tokenizer(path, tokenizer)
    return tokenizer
