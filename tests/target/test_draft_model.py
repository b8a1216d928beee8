"""DraftModel: what it has read of every slot, whatever was accepted, begun or ended beside it.

And whose vocabularies fit: special and added tokens may differ.
"""

import pytest
import torch
from conftest import make_model, make_prompts, make_tokenizer, save_model
from draft_models import next_logits, plain
from replays import with_graphs
from specdecpp_dirs import specdecpp_dir
from steps import chain_step, prompt_step
from tiny_methods import build, decode

from model.common.contract.sequence import EmptyDrafter
from model.common.errors import BadInput
from model.common.loop.decode import generate
from model.common.loop.sampling import Sampler
from model.common.loop.turns import StopRules
from model.common.target.draft_model import DraftModel, check_vocabularies
from model.common.target.loading import load_target
from model.common.target.model import Target

ONE, TWO, THREE = [5, 6, 7, 8, 9], [11, 12], [21, 22, 23, 24, 25, 26, 27, 28]


class Followed:
    """A DraftModel of three slots and the texts that it has to know."""

    def __init__(self, recorded):
        model = make_model(num_hidden_layers=2)
        self.plain = plain(model)
        self.draft = DraftModel(with_graphs(model)[0] if recorded else Target(model))
        self.draft.reserve(3, 64)
        self.texts = [[], [], []]

    def start(self, slots, texts):
        for slot, text in zip(slots, texts):
            self.texts[slot] = list(text)
        self.draft.start(prompt_step(texts, [20] * len(texts), slots))

    def check(self, logits, more=None):
        """Logits [3, V] of the running slots follow from their texts and one more token each."""
        for slot, text in enumerate(self.texts):
            if text:
                ids = text if more is None else [*text, *more[slot].tolist()]
                assert torch.allclose(logits[slot], next_logits(self.plain, ids), atol=1e-4)

    def draft_tokens(self, num):
        """Read a chain of num tokens [3, num] behind the texts; its logits are checked."""
        logits = self.draft.catch_up()
        self.check(logits)
        chain = logits.argmax(-1, keepdim=True)
        for _ in range(num - 1):
            logits, _ = self.draft.read(chain[:, -1:])
            self.check(logits, chain)
            chain = torch.cat([chain, logits.argmax(-1, keepdim=True)], 1)
        return chain.tolist()

    def observe(self, host_ids):
        for text, ids in zip(self.texts, host_ids):
            text += ids
        self.draft.observe(chain_step(host_ids))
        assert self.draft.committed == [len(text) for text in self.texts]

    def end(self, slots):
        for slot in slots:
            self.texts[slot] = []
        self.draft.end(slots)


@pytest.mark.parametrize("recorded", [False, True], ids=["eager", "recorded"])
@torch.inference_mode()
def test_slots_begin_end_and_accept_for_themselves(recorded):
    followed = Followed(recorded)
    followed.start([0, 2], [ONE, TWO])
    assert followed.draft.committed == [5, 0, 2]
    assert followed.draft.room == [20 - 5 - 1, 0, 20 - 2 - 1]
    chain = followed.draft_tokens(3)
    assert followed.draft.longest == 5 + 2  # all tokens but the last are read
    followed.observe([[*chain[0], 90], [], [chain[2][0], 91]])  # all of them, none, one of them
    assert followed.draft.room == [20 - 9 - 1, 0, 20 - 4 - 1]
    followed.start([1], [THREE])
    followed.draft_tokens(4)
    followed.observe([[92], [93], [94]])
    followed.end([0, 2])
    assert followed.draft.committed == [0, 9, 0] and followed.draft.room == [0, 10, 0]
    followed.start([2], [ONE])
    chain = followed.draft_tokens(2)
    followed.observe([[], [*chain[1], 95], [chain[2][0], 96]])
    followed.draft_tokens(2)


@torch.inference_mode()
def test_nan_of_the_sequence_before_does_not_leak():
    """A slot is emptied where the next prompt begins in it, the one beside it is not."""
    followed = Followed(False)
    followed.start([0, 1], [THREE, ONE])
    followed.draft_tokens(3)
    followed.end([0])
    for part in followed.draft.model.cache.storage[0]:
        part[:, 0] = float("nan")
    followed.start([0], [TWO])
    followed.draft_tokens(3)


@torch.inference_mode()
def test_a_full_answer_leaves_no_room():
    followed = Followed(False)
    followed.start([0, 1, 2], [ONE, TWO, THREE])
    followed.observe([[1] * 14, [1] * 17, [1] * 12])
    assert followed.draft.room == [0, 0, 0]


@torch.inference_mode()
def test_the_models_own_context_leaves_no_room():
    """A prompt beyond it is not read, beside one that is; a method's window counts likewise."""
    for context, window in ((16, None), (512, 16)):
        model = make_model(num_hidden_layers=2, max_position_embeddings=context)
        draft, read = DraftModel(Target(model), window), []
        draft.reserve(2, 64)
        inside = draft.model.prefill

        def prefill(slots, ids, lengths, needs, inside=inside, read=read):
            read.append((slots, tuple(ids.shape), lengths))
            return inside(slots, ids, lengths, needs)

        draft.model.prefill = prefill
        draft.start(prompt_step([[*range(1, 31)], ONE], [60, 60]))
        assert read == [([1], (1, 4), [3])]
        assert draft.room == draft.context_room == [0, 16 - 5 - 1]
        logits = draft.catch_up()
        assert torch.allclose(logits[1], next_logits(plain(model), ONE), atol=1e-4)
        draft.observe(chain_step([[3], [1] * 9]))
        assert draft.room == [0, 1]
        draft.observe(chain_step([[3], [1]]))
        assert draft.room == [0, 0]
        draft.end([0])
        draft.start(prompt_step([ONE], [60], [0]))
        assert read[1:] == [([0], (1, 4), [3])] and draft.room == [10, 0]


@torch.inference_mode()
def test_ids_that_the_model_lacks_are_read_as_its_last_one():
    draft = DraftModel(Target(make_model(vocab_size=50, num_hidden_layers=1)))
    draft.reserve(1, 64)
    draft.start(prompt_step([[1, 60, 3, 70, 4, 80]]))
    reference = plain(draft.model.model)
    logits = draft.catch_up()
    assert torch.allclose(logits[0], next_logits(reference, [1, 49, 3, 49, 4, 49]), atol=1e-4)
    logits, _ = draft.read(torch.tensor([[96]]))
    assert torch.allclose(logits[0], next_logits(reference, [1, 49, 3, 49, 4, 49, 49]), atol=1e-4)


# --- vocabularies ---

METHODS = {
    "sps": lambda draft: [],
    "specdecpp": lambda draft: ["--head-path", specdecpp_dir(draft)],
    "specexec": lambda draft: ["--max-budget", "24"],
    "specinfer": lambda draft: ["--gen-type", "specinfer", "--max-beam-len", "4"],
    "sd2": lambda draft: ["--exits", "1,2,3", "--depth", "2"],
    "sd2-chain": lambda draft: ["--exits", "1,2,3", "--draft", "chain"],
}
TEXT, END, ADDED = 258, {"eos_token": "<end>"}, ["<|a|>", "<|b|>", "<|c|>"]


def tokenizer_dir(folder, added=(), special=None, words=()):
    """A tokenizer of 258 tokens of text and more; the folder, and its number of tokens."""
    tokenizer = make_tokenizer(words)
    tokenizer.add_special_tokens(special or {})
    tokenizer.add_tokens(list(added))
    tokenizer.save_pretrained(folder)
    return str(folder), len(tokenizer)


def model_dir(folder, **tokens):
    """The same model for every such tokenizer, as far as it has ids; those of added tokens are
    likely."""
    path, vocab_size = tokenizer_dir(folder, **tokens)
    model = make_model(vocab_size=TEXT + 4, tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight[TEXT:] *= 4
    model.resize_token_embeddings(vocab_size)
    model.set_attn_implementation("eager")
    model.save_pretrained(path)
    return path, vocab_size


@pytest.mark.parametrize("of_draft, of_target", [(ADDED[:1], ADDED), (ADDED, []), ([], ADDED[1:])])
@pytest.mark.parametrize("temperature", [0, 0.3])
def test_added_tokens_that_differ_change_no_answer(tmp_path, of_draft, of_target, temperature):
    """Ids of the target that the draft model lacks in prompts and answers, and the reverse."""
    target_path, target_size = model_dir(tmp_path / "target", added=of_target)
    draft_path, draft_size = model_dir(tmp_path / "draft", added=of_draft, special=END)
    target = load_target(target_path, "float32", "cpu", "eager")
    prompts = [[3, target_size - 1, 70], [*range(TEXT - 9, target_size)], [5] * 4]
    given = prompts, StopRules(), 24, 3, Sampler(temperature)
    wanted, _ = decode(target, EmptyDrafter(), *given)
    if of_target:  # they stand in the answers too
        assert sum(token >= TEXT for ids in wanted for token in ids) > 1
    for name, more in METHODS.items():
        flags = ["--drafter-path", draft_path, *more(draft_path)]
        method = {"specinfer": "specexec", "sd2-chain": "sd2"}.get(name, name)
        found, lengths = decode(target, build(method, target_path, target, flags), *given)
        exact = temperature == 0 or name in ("specexec", "sd2")  # point guesses
        assert (found == wanted) if exact else len(found) == 3, name
        assert temperature or max(map(max, lengths)) > 1, name


@pytest.mark.parametrize("name", METHODS)
def test_drafts_end_where_the_draft_models_context_ends(tmp_path, name, capsys):
    """Of a question as far as it goes, of another never; both answers are the target's."""
    target_path = save_model(tmp_path / "target")
    draft_path = save_model(tmp_path / "draft", max_position_embeddings=24)
    target, prompts = load_target(target_path, "float32", "cpu", "eager"), make_prompts(3)[::2]
    method = {"specinfer": "specexec", "sd2-chain": "sd2"}.get(name, name)
    flags = ["--drafter-path", draft_path, *METHODS[name](draft_path)]
    capsys.readouterr()
    drafter = build(method, target_path, target, flags)
    said = [line for line in capsys.readouterr().err.splitlines() if "--drafter-path" in line]
    assert said == ["--drafter-path: its context is 24 tokens; nothing is drafted beyond them"]
    given = prompts, Sampler(), [0, 1], StopRules(), 24
    turns, wanted = (generate(target, one, *given) for one in (drafter, EmptyDrafter()))
    assert [turn.output_ids for turn in turns] == [turn.output_ids for turn in wanted]
    for turn, prompt in zip(turns, prompts):
        length = len(prompt) + 1
        for committed, drafted in zip(turn.accept_lengths, turn.drafted):
            assert (drafted > 0) == (24 - length - 1 > 0), name
            length += committed
    assert max(turns[0].accept_lengths) > 1 and not any(turns[1].drafted)


ALLOWED = [  # (draft's tokenizer, the target's, what the line names)
    ({}, {}, None),
    ({"added": ADDED}, {"added": ADDED}, None),
    ({"added": ADDED[:1]}, {"added": ADDED}, "'<|b|>' (None, 259), '<|c|>' (None, 260); drafts"),
    ({"added": ADDED[::-1]}, {"added": ADDED}, "'<|a|>' (260, 258), '<|c|>' (258, 260); drafts"),
    ({"special": END}, {}, "'<end>' (258, None); drafts"),
    ({}, {"added": [f"<{n}>" for n in range(9)]}, "'<7>' (None, 265) and 1 more; drafts"),
]


@pytest.mark.parametrize("draft, target, line", ALLOWED)
def test_special_and_added_tokens_may_differ(tmp_path, draft, target, line, capsys):
    paths = [tokenizer_dir(tmp_path / n, **one)[0] for n, one in zip("ab", (draft, target))]
    check_vocabularies(*paths)
    said = capsys.readouterr().err
    if line is None:
        assert said == ""
        return
    assert said.startswith("--drafter-path: ") and said.count("\n") == 1 and line in said
    assert all(path in said for path in paths)


@pytest.mark.parametrize(
    "draft, target, line",
    [
        ({"words": ["ab"]}, {}, "'ab' is 258 in the first and None in the second"),
        ({"words": ["ab", "cd"]}, {"words": ["cd", "ab"]}, "'cd' is 259 in the first and 258"),
        ({"words": ["ab"], "added": ADDED}, {"added": ADDED}, "'ab' is 258 in the first and None"),
    ],
)
def test_other_tokens_of_text_are_refused(tmp_path, draft, target, line):
    paths = [tokenizer_dir(tmp_path / n, **one)[0] for n, one in zip("ab", (draft, target))]
    with pytest.raises(BadInput, match="--drafter-path: the vocabulary of") as error:
        check_vocabularies(*paths)
    assert line in str(error.value) and "\n" not in str(error.value)
