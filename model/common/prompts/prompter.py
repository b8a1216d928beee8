"""Conversations to token ids: FastChat's templates by name, the tokenizer's own, or plain text.

Several turns keep the conversation: the answer given to a turn is part of the next turn's prompt.
"""

from __future__ import annotations

from jinja2 import TemplateError

from model.common.errors import BadInput
from model.common.loop.turns import StopRules


class Prompter:
    """Renders a conversation and knows where its answers stop.

    template: a FastChat name ("vicuna_v1.1"), "plain", or None = the tokenizer's chat template if
    it has one, else plain (turns and answers joined by newlines).
    """

    def __init__(self, tokenizer, template: str | None = None):
        self.tokenizer = tokenizer
        self.conversation = None
        if template not in (None, "plain"):
            self.conversation = _fastchat(template)
        elif template is None and not tokenizer.chat_template:
            template = "plain"
        self.name = template or "tokenizer"

    def render(self, turns: list[str], answers: list[str]) -> list[int]:
        """Ids of the prompt for turn len(answers): earlier turns and answers, then that turn."""
        turns = turns[: len(answers) + 1]
        if self.name == "tokenizer":
            messages = []
            for i, turn in enumerate(turns):
                messages.append({"role": "user", "content": turn})
                if i < len(answers):
                    messages.append({"role": "assistant", "content": answers[i]})
            try:
                ids = self.tokenizer.apply_chat_template(
                    messages, add_generation_prompt=True, tokenize=True, return_dict=False
                )
            except (TemplateError, TypeError, ValueError) as error:
                raise BadInput(f"the tokenizer's chat template refuses: {error}") from error
            return list(ids)
        text = self._fastchat_text(turns, answers) if self.conversation else _plain(turns, answers)
        bos = self.tokenizer.bos_token
        starts = bool(bos) and text.startswith(bos)
        return self.tokenizer(text, add_special_tokens=not starts).input_ids

    def _fastchat_text(self, turns, answers) -> str:
        conversation = self.conversation.copy()
        for turn, answer in zip(turns, [*answers, None]):
            conversation.append_message(conversation.roles[0], turn)
            conversation.append_message(conversation.roles[1], answer)
        return conversation.get_prompt()

    def stop_rules(self, generation_config) -> StopRules:
        """All ends that the model's generation config, the tokenizer and the template know."""
        eos = generation_config.eos_token_id if generation_config is not None else None
        ids = set(eos if isinstance(eos, (list, tuple)) else [eos])
        ids.add(self.tokenizer.eos_token_id)
        strings = ()
        if self.conversation:
            ids.update(self.conversation.stop_token_ids or [])
            stop = self.conversation.stop_str or []
            strings = tuple([stop] if isinstance(stop, str) else stop)
        decode = self.tokenizer.decode
        return StopRules(frozenset(i for i in ids if i is not None), strings, decode)

    def text(self, ids: list[int], stop: StopRules) -> str:
        """The answer's text: special tokens dropped, cut at a stop string."""
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        for string in stop.strings:
            text = text.split(string)[0]
        return text.strip()


def _plain(turns, answers) -> str:
    parts = []
    for i, turn in enumerate(turns):
        parts.append(turn)
        if i < len(answers):
            parts.append(answers[i])
    return "\n".join(parts) + "\n"


def _fastchat(name: str):
    from fastchat.conversation import conv_templates

    if name not in conv_templates:
        raise BadInput(f"--template {name}: FastChat has no such template; plain is the bare text")
    return conv_templates[name].copy()


def load_tokenizer(path: str):
    """The tokenizer beside a model; failures are one line."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        lines = str(error).splitlines()
        raise BadInput(f"{path}: no tokenizer: {lines[0] if lines else error!r}") from error
