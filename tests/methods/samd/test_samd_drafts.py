"""SAM-Decoding's drafts: who drafts, by hand; slots; copies of whole drafts (ids: conformance/)."""

import pytest
import torch
from conftest import make_model, make_prompts, save_model
from counting import counting_target
from eagle_dirs import eagle_dir
from head_caches import FreshCaches
from oracle import decode
from recording import Recording
from samd_checks import CORPUS, PERIODIC, make, static
from steps import chain_step, prompt_step
from tiny_methods import build

from model.common.contract.drafter import Draft, Drafter, Needs
from model.common.contract.sequence import PerSequence
from model.common.contract.trees import Tree, chain_tree
from model.common.errors import BadInput
from model.common.target.loading import load_target
from model.common.target.model import Target
from model.eagle.head import load_eagle
from model.samd.drafter import CombinedDrafter, SamSequence, Settings

COMBINED = Settings(combined=True)
COPIES, COPY = [1, 2, 3, 4, 5, 1, 2], [3, 4, 5, 1]
FRESH = [1, 2, 3, 4]
RECYCLING = ["--auxiliary", "recycling"]


@pytest.fixture(scope="module")
def target():
    return Target(make_model())


# --- one sequence ---


@pytest.mark.parametrize(
    "dynamic, in_corpus, source",
    [
        (5, 0, "dynamic"),
        (4, 9, "auxiliary"),
        (4, 10, "static"),
        (6, 11, "dynamic"),
        (6, 12, "static"),
        (0, 0, "auxiliary"),
    ],
)
def test_selector(dynamic, in_corpus, source):
    assert COMBINED.select(dynamic, in_corpus) == source


def test_selector_without_auxiliary_has_no_bias():
    settings = Settings()
    assert settings.select(3, 3) == settings.select(0, 0) == "dynamic"
    assert settings.select(3, 4) == "static"
    assert [settings.num_draft(match) for match in (0, 1, 9, 10)] == [0, 4, 36, 39]
    assert COMBINED.num_draft(0) == 39


@pytest.mark.parametrize(
    "text, root, draft",
    [
        (PERIODIC, 8, [9, 5, 6, 7]),  # match 9: 36 tokens are allowed, four tokens follow
        ([1, 2, 3], 9, []),
        ([4, 4, 4], 4, []),  # the match ends at the text's end
        ([1, 2, 3, 4, 5, 6, 7, 8, 9], 2, [3, 4, 5, 6]),  # match 1: 4 tokens
    ],
)
def test_copies_without_auxiliary(text, root, draft):
    sequence = SamSequence(Settings())
    sequence.start([*text, root])
    assert sequence.propose() == draft == sequence.propose()


def test_a_sequence_uses_the_corpus():
    corpus = static([[*range(1, 13)]])
    sequence = SamSequence(Settings(n_predicts=4), corpus)
    sequence.start([30, 1, 2])
    guess = sequence.propose()
    assert (guess.tokens, guess.parents, guess.depth) == ([3, 4, 5], [-1, 0, 1], 3)
    sequence.observe([3, 31])
    assert sequence.propose() == []  # neither knows 31
    sequence = SamSequence(Settings(n_predicts=4, combined=True), corpus)
    sequence.start([30, *range(1, 10)])
    assert sequence.propose() is None  # 9 less the bias
    sequence.observe([10])
    assert sequence.propose() == [11, 12, 2]


def test_text_and_cursor_are_forgotten_at_start():
    sequence = SamSequence(Settings(n_predicts=4), static(CORPUS))
    sequence.start([1, 2, 3, 1, 11, 12])
    assert sequence.propose().tokens == [13, 14, 2]
    sequence.start([13])  # behind 11 and 12 a match of three, alone one of one
    assert sequence.cursor[1] == 1
    sequence.start([9, 1])
    assert sequence.propose() == [] and sequence.dynamic.text == [9, 1]


# --- slots ---


def test_slots_begin_and_end_while_others_go_on():
    """Trees from the corpus beside copies of the text, -1 where nobody is."""
    corpus = static(CORPUS)
    drafter = PerSequence(lambda: SamSequence(Settings(n_predicts=4), corpus), 3, 3)
    drafter.reserve(3, 64, None)
    drafter.start(prompt_step([[11, 12], [1, 2, 3, 1]], slots=[0, 2]))
    draft = drafter.propose()
    assert draft.tokens.tolist() == [[13, 14, 2], [-1, -1, -1], [2, 3, -1]]
    assert draft.tree.parents[[0, 2]].tolist() == [[-1, 0, 1], [-1, 0, -1]]
    assert draft.depth == 3
    drafter.observe(chain_step([[13], [], [2]]))
    drafter.start(prompt_step([[5, 6, 5]], slots=[1]))
    draft = drafter.propose()
    assert draft.tokens.tolist() == [[14, 2, 15], [6, -1, -1], [3, 1, -1]]
    assert draft.tree.parents[0].tolist() == [-1, 0, -1]
    drafter.end([0])
    draft = drafter.propose()
    assert draft.is_chain and draft.tokens.tolist() == [[-1, -1], [6, -1], [3, 1]]


def test_trees_come_from_a_corpus_alone(target):
    """Whoever has no corpus says that all its drafts are chains."""
    assert (make(target).max_nodes, make(target).max_depth) == (39, None)
    drafter = make(target, "--n-predicts", "7", corpus=static(CORPUS))
    assert (drafter.max_nodes, drafter.max_depth) == (6, 6)


def test_a_further_turn_begins_anew():
    """The first turn stands in the second prompt; what does not is forgotten."""
    drafter = PerSequence(lambda: SamSequence(Settings(n_predicts=4)), 3)
    drafter.reserve(2, 64, None)
    drafter.start(prompt_step([COPIES, [7, 8, 7]]))
    assert drafter.propose().tokens.tolist() == [[3, 4, 5], [8, -1, -1]]
    drafter.end([0])
    further = prompt_step([[9, 1, 2]], slots=[0])
    further.continues = [True]
    drafter.start(further)
    assert drafter.propose().tokens.tolist() == [[-1], [8]]


# --- beside an auxiliary drafter ---


class Fixed(Drafter):
    """An auxiliary drafter that drafts 0, 1, 2 for every slot; notes what it is told."""

    needs, max_nodes, max_depth, reads_per_step = Needs(hidden=("last",)), 3, 2, 1

    def __init__(self, parents):
        self.tree, self.num_proposed, self.told = Tree(torch.tensor(parents), 2), 0, []

    def facts(self):
        return {"fixed": 1}

    def reserve(self, num_slots, capacity, sampler):
        self.told.append((num_slots, capacity, sampler))
        self.draft = Draft(torch.arange(3).expand(num_slots, -1), self.tree)

    def propose(self):
        self.num_proposed += 1
        return self.draft

    def note(self, given):
        self.told.append(given)

    start = observe = end = note

    def forget(self):
        self.told.append("forget")


def combined(rows, parents=(-1, -1, 0), n_predicts=6):
    """A combined drafter after its start on the rows' ids."""
    settings = Settings(n_predicts=n_predicts, len_threshold=2, combined=True)
    copies = PerSequence(lambda: SamSequence(settings), n_predicts - 1, facts=lambda: {"copies": 2})
    drafter = CombinedDrafter(copies, Fixed(parents))
    drafter.reserve(len(rows), 64, None)
    drafter.start(prompt_step(rows))
    return drafter


def test_one_sequence_gets_the_auxiliary_draft_itself():
    drafter = combined([FRESH])
    assert drafter.propose() is drafter.auxiliary.draft


def test_copies_do_not_ask_the_auxiliary():
    drafter = combined([COPIES])
    draft = drafter.propose()
    assert draft.is_chain and draft.tokens.tolist() == [COPY] and draft.depth == 4
    assert drafter.auxiliary.num_proposed == 0
    draft = combined([COPIES, [7, 8, 9, 7, 8]]).propose()
    assert draft.is_chain and draft.tokens.tolist() == [COPY, [9, 7, -1, -1]]


@pytest.mark.parametrize("n_predicts, width", [(6, 4), (3, 3)])
def test_slots_of_a_batch_choose_by_themselves(n_predicts, width):
    """Copies are longer than the auxiliary's draft, or shorter."""
    drafter = combined([FRESH, COPIES, [9]], n_predicts=n_predicts)
    draft = drafter.propose()
    guessed = [0, 1, 2, -1][:width]
    copied = COPY if width == 4 else [3, 4, -1]
    assert draft.tokens.tolist() == [guessed, copied, guessed]
    assert draft.tree.parents[0].tolist() == [-1, -1, 0, -1][:width]
    assert torch.equal(draft.tree.parents[1:2], chain_tree(width, draft.tokens.device).parents)
    assert draft.depth == max(2, n_predicts - 2)
    assert width <= drafter.max_nodes and draft.depth <= drafter.max_depth


def test_auxiliary_parents_may_differ_by_slot():
    drafter = combined([FRESH, COPIES], [[-1, 0, 1], [-1, -1, -1]])
    assert drafter.propose().tree.parents[0].tolist() == [-1, 0, 1, -1]


def test_scores_that_are_not_finite_fail_who_asked_for_them():
    drafter = combined([FRESH, COPIES, [9]])
    assert drafter.propose().sound is None
    drafter.auxiliary.draft.sound = torch.tensor([False, False, True])
    assert drafter.propose().sound.tolist() == [False, True, True]


def test_slots_that_are_idle_have_no_say():
    drafter = combined([FRESH, COPIES])
    drafter.end([1])
    assert drafter.propose() is drafter.auxiliary.draft  # as if it were alone
    drafter.end([0])
    drafter.start(prompt_step([COPIES], slots=[1]))
    asked = drafter.auxiliary.num_proposed
    assert drafter.propose().tokens.tolist() == [[-1] * 4, COPY]
    assert drafter.auxiliary.num_proposed == asked
    drafter.start(prompt_step([FRESH], slots=[0]))
    assert drafter.propose().tokens.tolist() == [[0, 1, 2, -1], COPY]


def test_the_auxiliary_is_told_everything():
    """Steps that it did not draft for too, and that a question goes on."""
    drafter = combined([FRESH, COPIES])
    told = drafter.auxiliary.told
    assert told[0] == (2, 64, None) and told[1].host_ids == [FRESH, COPIES]
    step, further = chain_step([[3], [4]]), prompt_step([FRESH], slots=[1])
    further.continues = [True]
    drafter.observe(step)
    drafter.end([1])
    drafter.start(further)
    drafter.forget()
    assert told[2] is step and told[3] == [1] and told[4] is further and told[5] == "forget"
    assert drafter.needs is Fixed.needs and drafter.reads_per_step == 1
    assert drafter.facts() == {"fixed": 1, "copies": 2}
    assert (drafter.max_nodes, drafter.max_depth) == (5, 5)


# --- answers ---


@pytest.mark.parametrize(
    "flags, prompt, corpus, lengths",
    [
        ([], [*range(61), 0, 1], None, [13, 40, 7]),
        (["--auxiliary", "recycling"], [*range(61), *range(5)], None, [40, 20]),
        ([], [30, 31], [[*range(61)] * 2], [13, 39, 8]),  # a node is the document's end
        (["--auxiliary", "recycling"], [*range(10)], [[*range(61)] * 2], [40, 20]),
    ],
)
def test_whole_copies_are_accepted(flags, prompt, corpus, lengths):
    """Of the text, and of a corpus; 4 tokens a matched one without an auxiliary drafter."""
    target = counting_target()
    drafter = make(target, *flags, corpus=corpus and static(corpus, separator=99))
    assert not corpus or drafter.facts()["automaton_tokens"] == 123
    (turn,) = decode(target, drafter, [prompt], 61)
    assert turn.output_ids == [(prompt[-1] + 1 + i) % 61 for i in range(61)]
    assert turn.accept_lengths == lengths


# --- beside EAGLE-2's head, which has to keep up while the automaton drafts ---


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samd-eagle2")
    target = save_model(folder / "target")
    return target, eagle_dir(folder / "head", target)


@pytest.mark.parametrize("num_slots", [1, 3])
def test_the_heads_cache_is_what_it_would_be_alone(paths, num_slots):
    """Before every draft, whoever drafts: it holds each committed token but the root, once."""
    target, plain = (load_target(paths[0], "float32", "cpu", "eager") for _ in range(2))
    own = ["--auxiliary", "eagle2", "--eagle-path", paths[1], "--len-threshold", "2"]
    drafter = build("samd", paths[0], target, own)
    tree = drafter.auxiliary
    assert (tree.max_nodes, tree.depth, tree.top_k) == (62, 5, 8)
    check = FreshCaches(plain.model, load_eagle(paths[1], plain))
    recording = Recording(drafter, lambda combined, one: check(combined.auxiliary, one))
    prompts = [ids * 4 for ids in make_prompts(4)]  # so that there is something to copy
    turns = decode(target, recording, prompts, 40, num_slots=num_slots)
    lengths = [length for turn in turns for length in turn.accept_lengths]
    assert check.checked == len(lengths)
    copied = [one for one in recording.drafts if one.parents == [*range(-1, len(one.parents) - 1)]]
    assert 4 < len(copied) < len(recording.drafts) and max(lengths) > 8
    assert drafter.auxiliary.head.cache.length.tolist() == [0] * num_slots


def test_published_sizes_of_eagle2(paths):
    """62 nodes behind the root, five passes beyond the first, eight candidates, by default."""
    target = load_target(paths[0], "float32", "cpu", "eager")
    own = ["--auxiliary", "eagle2", "--eagle-path", paths[1]]
    head = build("samd", paths[0], target, own).auxiliary
    assert (head.max_nodes, head.depth, head.top_k, head.max_depth) == (62, 5, 8, 6)


# --- beside recycling ---


def test_prompt_seeds_fill_recyclings_matrix(target):
    """The lines of a prompt's tokens are known before the first draft where asked for; ids stay."""
    prompts, ids = make_prompts(3), []
    for flags in ((), ("--prompt-seeds",)):
        drafter, known = make(target, "--auxiliary", "recycling", *flags), {}
        assert drafter.needs.prompt_topk == (7 if flags else 0)  # the tree's ranks

        def watch(combined, one, known=known):
            lines = combined.auxiliary.matrix[1:].any(1).nonzero().flatten()
            known.setdefault(len(known), set(lines.tolist()))

        turns = decode(target, Recording(drafter, watch), prompts, 12, num_slots=1)
        ids.append([turn.output_ids for turn in turns])
        assert known[0] == (set(prompts[0]) if flags else set())
    assert ids[0] == ids[1]


# --- bad input ---


@pytest.mark.parametrize(
    "flags",
    [["--n-predicts", "1"], ["--len-threshold", "0"], ["--len-bias", "-1"], ["--alpha", "0"]]
    + [["--auxiliary", "pld"]],
)
def test_flags_out_of_range(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        make(None, *flags)
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--state", "warm"], "--state warm needs an --auxiliary"),
        (["--auxiliary", "eagle2"], "needs --eagle-path"),
        (["--eagle-path", "x"], "--eagle-path says nothing to --auxiliary none"),
        (["--len-threshold", "9"], "--len-threshold says nothing to --auxiliary none"),
        (["--len-bias", "9"], "--len-bias says nothing to --auxiliary none"),
        ([*RECYCLING, "--alpha", "2"], "--alpha says nothing to --auxiliary recycling"),
        ([*RECYCLING, "--total-token", "9"], "--total-token says nothing to --auxiliary recycl"),
        ([*RECYCLING, "--depth", "2"], "--depth says nothing to --auxiliary recycling"),
        ([*RECYCLING, "--draft-top-k", "2"], "--draft-top-k says nothing to --auxiliary recycl"),
        ([*RECYCLING, "--len-bias", "0"], "--len-bias needs --static-path"),
        (["--auxiliary", "eagle2", "--eagle-path", "x", "--state", "warm"], "keeps no state"),
        (["--prompt-seeds"], "--prompt-seeds says nothing to --auxiliary none"),
        (
            ["--auxiliary", "eagle2", "--eagle-path", "x", "--prompt-seeds"],
            "--prompt-seeds says nothing to --auxiliary eagle2",
        ),
    ],
)
def test_flags_that_exclude_each_other(target, flags, words):
    with pytest.raises(BadInput, match=words):
        make(target, *flags)
