"""Target answers, the draft model's proposals along them, and their acceptance probabilities.

Source: Huang, Guo, Wang, arXiv 2405.19715, section 3.2
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.common.contract.drafter import Needs
from model.common.contract.sequence import EmptyDrafter
from model.common.errors import BadInput
from model.common.loop.decode import generate
from model.common.loop.sampling import Sampler, draw, seed_of, warp
from model.common.loop.source import pad_right
from model.common.target.draft_model import load_draft_model
from model.common.target.model import Target

PROPOSAL = 1  # of the seeds of a record: its answer's is 0


class Scorer:
    """Both models of a prepare.py command line, and its prompts' rendering."""

    def __init__(self, args):
        from model.common.prompts.prompter import Prompter, load_tokenizer
        from model.common.target.loading import load_target

        self.args = args
        self.prompter = Prompter(load_tokenizer(args.model_path), args.template)
        self.target = load_target(args.model_path, args.dtype, args.device, "eager")
        args.runtime = "eager"
        self.draft = load_draft_model(args, self.target)
        self.stop = self.prompter.stop_rules(self.target.model.generation_config)

    def examples(self, prompts, rejected) -> list[dict]:
        """Examples of a batch of Prompts; those that do not fit are rejected."""
        chosen, prefixes = [], []
        for prompt in prompts:
            try:
                prefix = self.prompter.render([prompt.text], [])
                self._check(prefix)
            except BadInput as error:
                rejected.add(prompt.place, str(error))
                continue
            chosen.append(prompt)
            prefixes.append(prefix)
        if not chosen:
            return []
        answers = self._answers(chosen, prefixes)
        wanted = logits_along(self.target, prefixes, answers)
        guessed = logits_along(self.draft, prefixes, answers)
        found = []
        for row, (prompt, prefix, tokens) in enumerate(zip(chosen, prefixes, answers)):
            seed = seed_of(self.args.seed, prompt.number, 0, PROPOSAL)
            uniforms = torch.rand(len(tokens), generator=torch.Generator().manual_seed(seed))
            scores = (guessed[row, : len(tokens)], wanted[row, : len(tokens)])
            draft, p_acc = propose(*scores, uniforms, self.args.temperature, self.args.labels)
            text = {"prompt": prompt.text, "continuation": self.prompter.text(tokens, self.stop)}
            lists = {"prefix": prefix, "tokens": tokens, "draft": draft, "p_acc": p_acc}
            found.append({"id": prompt.number, **text, **lists})
        return found

    def _check(self, prefix: list[int]) -> None:
        for name, model in (("target", self.target), ("draft model", self.draft)):
            if model.context is not None and len(prefix) >= model.context:
                raise BadInput(f"prompt of {len(prefix)} tokens does not fit the {name}'s context")

    def _answers(self, prompts, prefixes) -> list[list[int]]:
        """The target's answers as ids, cut to what the draft model can read."""
        turns = generate(
            self.target,
            EmptyDrafter(),
            prefixes,
            Sampler(self.args.temperature),
            [seed_of(self.args.seed, prompt.number, 0, 0) for prompt in prompts],
            self.stop,
            self.args.max_new_tokens,
        )
        most = self.draft.context
        rooms = [most - len(prefix) if most is not None else None for prefix in prefixes]
        return [turn.output_ids[:room] for turn, room in zip(turns, rooms)]


@torch.inference_mode()
def logits_along(model: Target, prefixes: list[list[int]], answers: list[list[int]]) -> Tensor:
    """Logits [B, T, V] that each token of the answers follows from; rows beyond an answer are void.

    Row i has read the prefix and the answer's tokens before i. An id that the model lacks is read
    as its last one.
    """
    last_id = model.vocab_size - 1
    ids = pad_right(prefixes, model.device).clamp(max=last_id)
    tokens = pad_right(answers, model.device).clamp(max=last_id)  # [B, T]
    lengths = [len(prefix) for prefix in prefixes]
    model.reserve(len(lengths), max(lengths) + tokens.shape[1])
    first = model.prefill(list(range(len(lengths))), ids, lengths, Needs()).logits
    later, _ = model.read(tokens, None, None, max(lengths))
    return torch.cat([first.unsqueeze(1), later[:, :-1]], 1)


def propose(guessed: Tensor, wanted: Tensor, uniforms: Tensor, temperature: float, labels: str):
    """(draft tokens [T], probability that each is accepted [T]) as lists.

    guessed, wanted   logits [T, V] of draft model and target, at the same positions
    uniforms          [T], for draws at `temperature`; 0 takes the best token
    labels            plain: min(1, p / q) of both laws at temperature 1; warped: at `temperature`
    """
    width = min(guessed.shape[-1], wanted.shape[-1])
    guessed = guessed[..., :width].float()
    wanted = wanted.float().to(guessed.device)
    if temperature == 0:
        tokens = guessed.argmax(-1)
    else:
        tokens = draw(warp(guessed, temperature), uniforms.double().to(guessed.device))
    if labels == "warped" and temperature == 0:
        accepted = (tokens == wanted.argmax(-1)).float()
    else:
        heat = temperature if labels == "warped" else 1.0
        laws = [(scores / heat).log_softmax(-1) for scores in (wanted, guessed)]
        ratio = [law.gather(1, tokens.unsqueeze(1)).squeeze(1) for law in laws]
        accepted = (ratio[0] - ratio[1]).clamp(max=0).exp()
    return tokens.tolist(), [round(value, 6) for value in accepted.tolist()]
