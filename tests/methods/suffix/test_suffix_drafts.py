"""SuffixDecoding's sequences: local and global tree, slots, flags (ids: conformance/)."""

import pytest
from counting import counting_target
from oracle import decode
from steps import chain_step, prompt_step
from tiny_methods import build

from model.common.errors import BadInput
from model.suffix.drafter import AnswerTree, SuffixDrafter, SuffixSequence
from model.suffix.tree import Limits

LOCAL = [9, 9, 1, 2, 3, 4, 1, 2]  # 3 behind a match of two, then 4
COUNTING = [*range(61), 0, 1]


def begun(rows, slots=None, max_cached=0, num_slots=None, **limits):
    """A drafter whose slots have started on the rows' ids."""
    drafter = SuffixDrafter(Limits(**limits), max_cached)
    drafter.reserve(num_slots or len(rows), 64, None)
    drafter.start(prompt_step(rows, slots=slots))
    return drafter


def answers(drafter) -> list[list[int]]:
    return list(drafter.answers.sequences.values())


# --- one sequence ---


def test_prompt_and_answer_are_the_local_text():
    sequence = SuffixSequence(Limits())
    sequence.start(LOCAL)
    assert sequence.propose() == [3, 4] == sequence.propose()
    sequence.observe([3, 4])
    assert sequence.propose() == [1, 2, 3, 4]  # a match of four
    assert sequence.local.sequences["text"] == [*LOCAL, 3, 4]


def test_a_further_turn_begins_anew():
    sequence = SuffixSequence(Limits())
    sequence.start(LOCAL)
    sequence.start([8, 1, 2])
    assert sequence.propose() == []


def test_the_better_score_drafts():
    """Ties go to the local tree; an answer seen twice is surer than a text seen once."""
    tree = AnswerTree(Limits(), 10)
    tree.extend(tree.begin(), [1, 2, 7, 7])
    sequence = SuffixSequence(Limits(), tree)
    sequence.start([0, 1, 2, 5, 6, 1, 2])
    found = tree.draft(sequence.end_of_text, sequence.name)
    assert (found.tokens, found.score) == ([7, 7], 2.0)
    assert sequence.propose() == [7, 7]  # in the text 5 is a half
    sequence.start([*[1, 2, 5, 6] * 4, 1, 2])
    assert tree.draft(sequence.end_of_text, sequence.name).tokens == [7, 7]
    assert sequence.propose()[:2] == [5, 6]


def test_equal_scores_are_the_local_tree_s():
    tree = AnswerTree(Limits(), 10)
    tree.extend(tree.begin(), [2, 8, 2])
    sequence = SuffixSequence(Limits(), tree)
    sequence.start([2, 5, 2])  # one of two here; there one of three, with the 2 just read
    sequence.answers.extend("more", [2, 8])
    assert tree.draft([5, 2], sequence.name).score == 0.5
    assert sequence.propose() == [5]


# --- slots ---


def test_slots_begin_and_end_while_others_go_on():
    drafter = begun([LOCAL, [1, 5, 1]], slots=[0, 2], num_slots=3)
    draft = drafter.propose()
    assert draft.is_chain and draft.tokens.tolist() == [[3, 4], [-1, -1], [5, -1]]
    drafter.observe(chain_step([[3, 4], [], [5]]))
    drafter.start(prompt_step([[6, 7, 6]], slots=[1]))
    assert drafter.propose().tokens.tolist() == [[1, 2, 3, 4], [7, -1, -1, -1], [1, 5, -1, -1]]
    drafter.end([0])
    assert drafter.propose().tokens.tolist() == [[-1, -1], [7, -1], [1, 5]]
    assert drafter.sequences[0].local is None
    drafter.observe(chain_step([[], [7], [1]]))
    drafter.start(prompt_step([[4, 4]], slots=[0]))
    assert drafter.propose().tokens[0].tolist()[:2] == [4, -1]


def test_trees_have_their_parents():
    drafter = begun([[1, 2, 8, 1, 3, 8, 5, 1], LOCAL], as_tree=True, offset=3.0)
    assert drafter.max_nodes == drafter.max_depth == 32
    draft = drafter.propose()
    assert draft.tokens.tolist() == [[2, 3, 8, 8], [3, 4, 1, 2]]
    assert draft.tree.parents.tolist() == [[-1, -1, 0, 1], [-1, 0, 1, 2]]
    assert draft.depth == 4


def test_whole_copies_are_accepted():
    """The match doubles with every step until a draft is as long as it may be."""
    target = counting_target()
    (turn,) = decode(target, SuffixDrafter(Limits()), [COUNTING], 100)
    assert turn.output_ids == [(2 + place) % 61 for place in range(100)]
    assert turn.accept_lengths[:5] == [4, 8, 16, 32, 33]
    (turn,) = decode(target, SuffixDrafter(Limits(max_tokens=5)), [COUNTING], 100)
    assert set(turn.accept_lengths[2:-1]) == {6}


# --- what is kept ---


def test_answers_alone_enter_the_global_tree():
    """Each from its first token on, while it grows, as others see it at once."""
    drafter = begun([[1, 2, 3], [4, 5, 6]], max_cached=5)
    assert answers(drafter) == [[3], [6]]
    drafter.observe(chain_step([[7, 8], [3]]))
    assert answers(drafter) == [[3, 7, 8], [6, 3]]
    assert drafter.propose().tokens.tolist() == [[-1], [7]]  # what the other one went on with
    drafter.end([0, 1])
    assert drafter.facts()["global_answers"] == 2 and drafter.facts()["global_tokens"] == 5
    drafter.start(prompt_step([[1, 9, 3]], slots=[1]))
    assert drafter.propose().tokens[1].tolist() == [7]


def test_first_in_first_out():
    drafter = begun([[1, 2], [3, 4]], max_cached=2)
    drafter.observe(chain_step([[5], [6]]))
    drafter.end([1])
    drafter.start(prompt_step([[7, 8]], slots=[1]))
    assert answers(drafter) == [[4, 6], [8]]  # slot 0's answer began first, and still grows
    drafter.observe(chain_step([[9], [9]]))
    assert answers(drafter) == [[4, 6], [8, 9]]
    drafter.start(prompt_step([[1, 1]], slots=[0]))
    assert answers(drafter) == [[8, 9], [1]]
    assert drafter.facts()["global_tokens"] == 3


def test_a_cold_drafter_shares_nothing():
    drafter = begun([[1, 2, 3], [4, 3]])
    drafter.observe(chain_step([[7, 8], [3]]))
    assert drafter.answers is None and drafter.facts() == {}
    assert drafter.propose().tokens.tolist() == [[-1], [3]]


def test_a_warm_one_forgets_when_it_is_told_to():
    drafter = begun([[1, 2, 3]], max_cached=5)
    drafter.observe(chain_step([[7, 8]]))
    drafter.reserve(1, 64, None)
    drafter.start(prompt_step([[4, 3]]))
    assert drafter.propose().tokens.tolist() == [[7]]
    drafter.forget()
    assert drafter.propose().tokens.tolist() == [[]]
    drafter.observe(chain_step([[5]]))  # of an answer that is not kept any more
    drafter.start(prompt_step([[4, 3]]))
    assert answers(drafter) == [[3]] and drafter.facts()["global_bytes"] > 0


# --- flags ---


def test_defaults_are_the_published_ones():
    drafter = build("suffix", "x", None, ["--state", "warm"])
    assert drafter.answers.limits == Limits(64, 1.0, 0.0, 0.1, 32, False)
    assert drafter.answers.max_cached == 10000
    assert (drafter.max_nodes, drafter.max_depth) == (32, None)
    drafter = build("suffix", "x", None, ["--draft", "tree", "--max-spec-tokens", "50"])
    assert (drafter.max_nodes, drafter.max_depth) == (50, 32)


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--n-match", "3"], "--n-match says nothing to --kind suffix"),
        (["--kind", "ngram-mod", "--draft", "tree"], "--draft says nothing to --kind ngram-mod"),
        (["--max-cached-requests", "3"], "--max-cached-requests needs --state warm"),
        (["--max-spec-factor", "0"], "--max-spec-factor and --max-spec-offset leave"),
        (["--kind", "ngram-mod", "--n-max", "9"], "--n-min 48 is above --n-max 9"),
    ],
)
def test_flags_that_exclude_each_other(flags, words):
    with pytest.raises(BadInput, match=words):
        build("suffix", "x", None, flags)


@pytest.mark.parametrize(
    "flags",
    [["--max-depth", "1"], ["--min-token-prob", "1.1"], ["--max-spec-tokens", "0"]]
    + [["--max-cached-requests", "0"], ["--n-match", "0"], ["--kind", "ngram"]],
)
def test_flags_out_of_range(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        build("suffix", "x", None, flags)
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
