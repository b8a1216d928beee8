"""decode.py's stop rules: where an answer is cut, alone and in the loop with every drafter."""

import pytest
from conftest import make_prompts
from oracle import DRAFTERS, Chain, StaticTree, answers, decode, new_drafter, new_target, outputs

from model.common.contract.sequence import EmptyDrafter
from model.common.loop.turns import StopRules

PROMPTS = make_prompts(4)


@pytest.fixture(scope="module")
def target():
    return new_target()


@pytest.fixture
def known():
    return answers("llama")


@pytest.mark.parametrize(
    "ids, new, limit, kept",
    [
        ([5, 7, 2, 9], 3, 100, (2, "stop")),  # inside a step
        ([5, 7, 9, 2], 1, 100, (1, "stop")),  # at its end
        ([2], 1, 100, (1, "stop")),  # the prefill's token
        ([3, 2, 2], 2, 100, (1, "stop")),  # the first of two
        ([5, 3, 2], 2, 100, (1, "stop")),  # 3 ends as well
        ([5, 7, 9], 2, 100, (2, "")),
        ([5, 7, 9], 2, 3, (2, "length")),
        ([5, 7, 9, 8, 8], 4, 3, (2, "length")),  # inside a step
        ([5, 7, 2, 8], 3, 3, (2, "stop")),  # EOS as the last token allowed
        ([5, 7, 8, 2], 3, 3, (2, "length")),  # EOS behind it
        ([5], 1, 1, (1, "length")),
        ([0, 0, 0], 2, 100, (2, "")),
    ],
)
def test_cut(ids, new, limit, kept):
    assert StopRules(frozenset({2, 3})).cut(ids, new, limit) == kept


TEXTS = ["", "a", "b", "ab", "\n", "###", "#", " User", ":", "é"]


def as_text(ids):
    return "".join(TEXTS[i] for i in ids)


@pytest.mark.parametrize(
    "ids, new, kept",
    [
        ([1, 3, 2], 2, (2, "stop")),  # a, ab, b: "bb" ends with the third
        ([1, 2, 2, 1], 4, (3, "stop")),
        ([6, 6, 6, 1], 2, (1, "stop")),  # ### across three tokens, two of them in earlier steps
        ([5, 1], 2, (1, "stop")),
        ([4, 7, 8], 1, (1, "stop")),  # "\n User:" across three
        ([4, 7, 0, 0, 0, 8], 1, (1, "stop")),  # tokens without text between
        ([4, 0, 7, 1, 8], 5, (5, "")),
        ([1, 1, 1], 3, (3, "")),
        ([9, 9], 2, (2, "stop")),
    ],
)
def test_stop_strings(ids, new, kept):
    rules = StopRules(frozenset(), ("bb", "###", "\n User:", "éé"), as_text)
    assert rules.cut(ids, new, 100) == kept


def as_bytes(ids):
    return bytes(ids).decode(errors="replace")


@pytest.mark.parametrize("text", ["おしまい。", "終", "é" * 20])
def test_stop_strings_of_tokens_that_are_bytes(text):
    """A letter is up to four of them: the tail that is searched holds the whole string."""
    rules, ids = StopRules(strings=(text,), decode=as_bytes), list(f"あ {text}".encode())
    assert rules.cut(ids, 1, 100) == (1, "stop")
    assert rules.cut([*ids, 32, 32], 3, 100) == (1, "stop")
    assert rules.cut(ids[:-1], 1, 100) == (1, "")


def test_stop_string_and_limit():
    rules = StopRules(frozenset({4}), ("bb",), as_text)
    assert rules.cut([2, 2, 1], 3, 2) == (2, "stop")
    assert rules.cut([1, 2, 2], 3, 2) == (2, "length")
    assert rules.cut([1, 4, 2, 2], 4, 9) == (2, "stop")


@pytest.mark.parametrize("rows", [[1], [0, 1, 2, 3]], ids=str)
@pytest.mark.parametrize("kind", DRAFTERS)
def test_eos_ends_an_answer(target, known, kind, rows):
    """Every drafter stops where the baseline's ids first hold one of two ends; nothing follows."""
    ends = frozenset({known[1][10], known[0][7]})
    own = [known[row] for row in rows]
    turns = decode(
        target, new_drafter(kind, own, 99), [PROMPTS[r] for r in rows], 30, stop=StopRules(ends)
    )
    for turn, ids in zip(turns, own):
        at = next((place for place, token in enumerate(ids[:30]) if token in ends), 29)
        assert turn.output_ids == ids[: at + 1]
        assert turn.finish_reason == ("stop" if ids[at] in ends else "length")
    assert turns[rows.index(1)].finish_reason == "stop"


@pytest.mark.parametrize("kind", DRAFTERS)
def test_eos_as_first_token(target, known, kind):
    """No step is made, the drafter is not started, and only the prefill's time is there."""
    drafter = new_drafter(kind, known[:1])
    drafter.propose = None
    (turn,) = decode(target, drafter, PROMPTS[:1], stop=StopRules(frozenset({known[0][0]})))
    assert turn.output_ids == known[0][:1] and turn.finish_reason == "stop"
    assert turn.accept_lengths == turn.drafted == turn.depth == []
    assert turn.wall_s == turn.prefill_s > 0
    assert turn.phase_s == {"draft": [], "verify": [], "commit": []}


@pytest.mark.parametrize("limit", [1, 2, 7])
@pytest.mark.parametrize("kind", DRAFTERS)
def test_the_limit_is_never_exceeded(target, known, kind, limit):
    turns = decode(target, new_drafter(kind, known, 99), PROMPTS, limit)
    assert outputs(turns) == [ids[:limit] for ids in known]
    assert {turn.finish_reason for turn in turns} == {"length"}


def test_stop_string_in_a_batch(target, known):
    """Found in the text of two tokens that one step brought together."""

    def as_words(ids):
        return "".join(f"<{i}>" for i in ids)

    text = StopRules(strings=(as_words(known[2][4:6]),), decode=as_words)
    for kind in (EmptyDrafter, Chain, StaticTree):
        turns = decode(target, new_drafter(kind, known, 99), PROMPTS, 20, stop=text)
        assert turns[2].output_ids == known[2][:6] and turns[2].finish_reason == "stop"
        for row in (0, 1, 3):
            assert turns[row].output_ids == known[row][:20]
