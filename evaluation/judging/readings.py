"""How the target reads answers: several side by side, each in a slot, behind one prefill.

What rounding does depends on how many rows a forward has, so noise.py reads one text at a time, in
the shapes of a run; gaps and the control read as many as memory allows.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from evaluation.answers.meta import AnswerError
from model.common.contract.drafter import Needs
from model.common.errors import BadInput
from model.common.loop.penalties import NO_PENALTIES, Penalties, forced
from model.common.target.attention import NAME, own_attention

MAX_SLOTS = 16
SLOT_TOKENS = 4096  # of all slots together, padding included; a longer text is read alone
BLOCK_ROWS = 2048
BLOCK_ELEMENTS = 1 << 24  # logits at a time: 64 MiB in float32


@dataclass
class Text:
    """A turn of an answer: ids [n >= 1] after a prompt.

    where      what messages call it
    rival      (position, token) of the other file where the two part
    penalties  that its tokens were chosen under
    """

    prompt: list
    ids: list
    where: str = "answer"
    choice: int = 0
    turn: int = 0
    rival: tuple | None = None
    penalties: Penalties = NO_PENALTIES

    def scores(self, logits, begin):
        """Logits [r, V] of ids[begin : begin + r], as its tokens were chosen by."""
        return forced(self.penalties, logits, self.prompt, self.ids, begin)

    @property
    def size(self):
        """Tokens of prompt and answer."""
        return len(self.prompt) + len(self.ids)


def check_text(target, text):
    """Raise AnswerError for ids that this target cannot have committed."""
    unread = len(text.ids) - 1  # the last one need not have been read
    try:
        fits = target.fitting(len(text.prompt), unread) == unread
    except BadInput as error:
        raise AnswerError(f"{text.where}: {error}") from None
    if not fits:
        raise AnswerError(
            f"{text.where}: a prompt of {len(text.prompt)} tokens and {len(text.ids)} of an answer"
            f" are longer than the target's context of {target.context}"
        )
    if min(text.ids) < 0 or max(*text.prompt, *text.ids) >= target.vocab_size:
        raise AnswerError(
            f"{text.where}: an id outside the target's vocabulary of {target.vocab_size}"
        )


def batches(target, texts, rows=1):
    """Yield lists of indices of texts that are read side by side; like lengths stand together.

    rows: least rows a forward of each of them, whose logits have to find room.
    """
    room = BLOCK_ELEMENTS // (rows * target.vocab_size)
    most = max(1, min(MAX_SLOTS, room)) if target.reads_trees else 1
    batch = []
    for index in sorted(range(len(texts)), key=lambda i: texts[i].size):
        full = len(batch) == most or (len(batch) + 1) * texts[index].size > SLOT_TOKENS
        if batch and full:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def padded(target, rows):
    """Lists of ids as [S, n] on the target's device, padded on the right with 0."""
    return pad_sequence([torch.tensor(ids) for ids in rows], batch_first=True).to(target.device)


def start(target, texts):
    """Read each text's prompt into a slot of its own; logits [S, V] after them."""
    lengths = [len(text.prompt) for text in texts]
    target.reserve(len(texts), max(lengths) + max(len(text.ids) for text in texts))
    prompts = padded(target, [text.prompt for text in texts])
    return target.prefill(list(range(len(texts))), prompts, lengths, Needs()).logits


@torch.inference_mode()
def chains(target, rows, longest, block):
    """Yield logits [S, r, V] of rows [S, n], read `block` at a time and committed.

    longest: host int, the longest slot's committed tokens.
    """
    for begin in range(0, rows.shape[1], block):
        part = rows[:, begin : begin + block]
        logits, _ = target.read(part, None, None, longest + begin)
        target.cache.advance(part.shape[1])
        yield logits


def answer_logits(target, texts, block=None):
    """Yield logits [S, r, V] of the tokens of all texts, position by position; S texts, S slots.

    block: rows of every forward, None = as memory allows. Rows behind a text's end say nothing.
    """
    yield penalised(texts, start(target, texts).unsqueeze(1), 0)
    rows = padded(target, [text.ids for text in texts])[:, :-1]
    if block:
        rows = pad(rows, (0, -rows.shape[1] % block))
    room = BLOCK_ELEMENTS // (len(texts) * target.vocab_size)
    block = block or max(1, min(BLOCK_ROWS, room))
    done = 1
    for logits in chains(target, rows, max(len(text.prompt) for text in texts), block):
        yield penalised(texts, logits, done)
        done += logits.shape[1]


def penalised(texts, logits, done):
    """Logits [S, r, V] of the texts' ids from `done` on, as their tokens were chosen by."""
    if not any(text.penalties for text in texts):
        return logits
    scores = logits.float() if logits.dtype != torch.float64 else logits.clone()
    for slot, text in enumerate(texts):
        own = logits[slot, : max(0, len(text.ids) - done)]
        if len(own):
            scores[slot, : len(own)] = text.scores(own, done)
    return scores


@torch.inference_mode()
def next_logits(target, ids):
    """Logits [V] after ids."""
    return start(target, [Text(ids, [0])])[0]


@torch.inference_mode()
def own_logits(target, text, end, count):
    """The last `count` rows [count, V] of transformers' own forward of a text's ids[:end].

    Its own attention, mask and positions, no cache, and no row behind the last: nothing of ours.
    """
    ids = text.prompt + text.ids[:end]
    if not target.reads_trees:  # its attention is transformers' anyway
        start(target, [text])  # an encoder's part of it
        return target.whole(ids)[-count:]
    own_attention(target.model)
    try:
        return target.whole(ids)[-count:]
    finally:
        target.model.set_attn_implementation(NAME)
