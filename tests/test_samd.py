"""SAM-Decoding: the text's automaton against brute force, drafts by hand, ids equal vanilla's."""

import random
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import make_model, make_prompts
from tiny_methods import decode
from test_pld import cycle_target

from model.common import args as arguments
from model.common.contract.drafter import Draft, Drafter, DraftShape, EmptyDrafter, chain_parents
from model.common.errors import BadInput
from model.common.loop import verify
from model.common.loop.sampling import Sampler
from model.common.loop.turns import StopRules
from model.common.target.model import Target
from model.samd import inference_samd
from model.samd.automaton import SuffixAutomaton
from model.samd.build_sam import build
from model.samd.drafter import CombinedDrafter, SamRow, SamRows, Settings, auxiliary
from model.samd.static import StaticAutomaton

PERIODIC = [5, 6, 7, 8, 9, 5, 6, 7, 8, 9, 5, 6, 7]
CORPUS = [[11, 12, 13, 14], [11, 12, 13, 15], [11, 12, 13, 14], [11, 12, 16]]
COMBINED = Settings(combined=True)


def automaton(text) -> SuffixAutomaton:
    built = SuffixAutomaton()
    built.extend(text)
    return built


def static(documents, separator=2, drafts_end_at=None) -> StaticAutomaton:
    """A static automaton in memory; drafts_end_at: another separator for drafts than documents'."""
    ends = separator if drafts_end_at is None else drafts_end_at
    return StaticAutomaton(build(documents, separator), ends)


def random_texts(num, seed, longest=40):
    dice = random.Random(seed)
    for trial in range(num):
        letters = 1 + trial % 5
        yield [dice.randrange(letters) for _ in range(dice.randint(1, longest))]


def ends(text, part):
    """End positions of a substring, counted from 1."""
    size = len(part)
    return [i + size for i in range(len(text) - size + 1) if text[i : i + size] == part]


def longest_known_suffix(text, known):
    """The longest suffix of `text` that occurs in `known`."""
    for size in range(len(text), 0, -1):
        if ends(known, text[len(text) - size :]):
            return text[len(text) - size :]
    return []


def test_longest_repeated_suffix_and_its_earliest_end():
    for text in random_texts(60, seed=1):
        grown = SuffixAutomaton()
        for end in range(1, len(text) + 1):
            grown.extend([text[end - 1]])
            suffix = longest_known_suffix(text[:end], text[: end - 1])
            # one that overlaps its earlier occurrence counts too
            assert grown.match() == len(suffix)
            state = grown.link[grown.last]
            assert grown.first[state] == (ends(text[:end], suffix)[0] if suffix else 0)
            assert len(grown.link) <= 2 * end


def test_states_are_the_classes_of_substrings():
    for text in random_texts(40, seed=2, longest=20):
        grown = automaton(text)
        classes = {}
        for begin in range(len(text)):
            for end in range(begin + 1, len(text) + 1):
                part = text[begin:end]
                state = 0
                for token in part:
                    state = grown.next[state][token]
                classes.setdefault(tuple(ends(text, part)), {})[tuple(part)] = state
        for found, parts in classes.items():
            (state,) = set(parts.values())
            assert grown.length[state] == max(map(len, parts))
            assert grown.length[grown.link[state]] == min(map(len, parts)) - 1
            assert grown.first[state] == found[0]
        assert len(classes) == len(grown.link) - 1
        edges = {(found, text[end]) for found in classes for end in found if end < len(text)}
        assert len(edges) + len(set(text)) == sum(map(len, grown.next))


def test_in_pieces_as_at_once():
    dice = random.Random(3)
    for text in random_texts(20, seed=4, longest=200):
        grown = SuffixAutomaton()
        rest = list(text)
        while rest:
            num = dice.randint(1, 7)
            grown.extend(rest[:num])
            del rest[:num]
        assert vars(grown) == vars(automaton(text))


@pytest.mark.parametrize(
    "text, root, n_predicts, match, draft",
    [
        ([1, 5, 6, 7, 8, 9, 2, 5, 6, 7], 8, 6, 4, [9, 2, 5, 6, 7]),
        (PERIODIC, 8, 4, 9, [9, 5, 6]),
        (PERIODIC, 8, 8, 9, [9, 5, 6, 7, 8, 9, 5]),
        (PERIODIC, 3, 4, 0, []),
        ([7, 1, 2, 3, 4, 5, 6, 8, 1, 2, 3, 4], 5, 12, 5, [6, 8, 1, 2, 3, 4]),
        ([1, 2, 3, 4, 5, 6, 1, 2, 3, 9, 9, 9, 1, 2], 3, 4, 3, [4, 5, 6]),
        ([4, 4, 4], 4, 4, 3, [4, 4]),
        ([], 4, 4, 0, []),
    ],
)
def test_copies_that_climb(text, root, n_predicts, match, draft):
    grown = automaton([*text, root])
    assert grown.match() == match
    assert grown.copy(n_predicts - 1, climb=True) == draft


@pytest.mark.parametrize(
    "text, root, draft",
    [
        (PERIODIC, 8, [9, 5, 6, 7]),  # match 9: 37 rows are allowed, four tokens follow
        ([1, 2, 3], 9, []),
        ([4, 4, 4], 4, []),  # the match ends at the text's end
        ([1, 2, 3, 4, 5, 6, 7, 8, 9], 2, [3, 4, 5, 6]),  # match 1: 1 + 4 rows
    ],
)
def test_copies_without_auxiliary(text, root, draft):
    row = SamRow(Settings())
    row.start([*text, root])
    assert row.propose() == draft == row.propose()


def test_climbing_equals_a_search():
    for text in random_texts(60, seed=5):
        end = len(text) - 1
        for num in (1, 3, 8):
            known = {}  # earliest end -> nothing: the ends of ever shorter suffixes, no repeats
            for size in range(len(longest_known_suffix(text, text[:-1])), 0, -1):
                known.setdefault(ends(text, text[len(text) - size :])[0])
            places = list(known)
            roomy = [place for place in places if place + num < end] or places[-1:]
            expected = text[roomy[0] : min(roomy[0] + num, end)] if roomy else []
            assert automaton(text).copy(num, climb=True) == expected
            plain = text[places[0] : min(places[0] + num, end)] if places else []
            assert automaton(text).copy(num) == plain


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


def test_rows_use_the_corpus():
    corpus = static([[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]])
    row = SamRow(Settings(n_predicts=4), corpus)
    row.start([30, 1, 2])
    guess = row.propose()
    assert (guess.tokens, guess.parents, guess.depth) == ([3, 4, 5], [-1, 0, 1], 3)
    row.observe([3, 31])
    assert row.propose() == []  # neither knows 31
    row = SamRow(Settings(n_predicts=4, combined=True), corpus)
    row.start([30, *range(1, 10)])
    assert row.propose() is None  # 9 less the bias
    row.observe([10])
    assert row.propose() == [11, 12, 2]


class Fixed(Drafter):
    """An auxiliary drafter with the same static tree for all; counts its proposals."""

    def __init__(self, parents):
        self.parents, self.num_proposed, self.steps = torch.tensor(parents), 0, []

    def start(self, prefill, max_lengths, sampler):
        tokens = torch.arange(len(self.parents)).expand(len(prefill.host_ids), -1)
        self.draft = Draft(tokens, self.parents, 2)

    def shapes(self):
        return [DraftShape(len(self.parents), self.parents, 2)]

    def propose(self):
        self.num_proposed += 1
        return self.draft

    def observe(self, step):
        self.steps.append(step)


def combined(rows, parents=(-1, -1, 0), pad_to=None, n_predicts=6):
    """A combined drafter after its start on the rows' ids."""
    settings = Settings(n_predicts=n_predicts, len_threshold=2, combined=True)
    drafter = CombinedDrafter(SamRows(lambda: SamRow(settings), pad_to), Fixed(parents))
    drafter.start(SimpleNamespace(tokens=torch.zeros(1), host_ids=rows), [], None)
    return drafter


COPIES, COPY = [1, 2, 3, 4, 5, 1, 2], [3, 4, 5, 1]
FRESH = [1, 2, 3, 4]


def test_one_sequence_gets_the_auxiliary_draft_itself():
    drafter = combined([FRESH])
    assert drafter.propose() is drafter.auxiliary.draft
    assert drafter.propose().parents is drafter.auxiliary.parents


def test_copies_do_not_ask_the_auxiliary():
    drafter = combined([COPIES])
    draft = drafter.propose()
    assert draft.is_chain and draft.tokens.tolist() == [COPY] and draft.depth == 4
    assert drafter.auxiliary.num_proposed == 0
    step = SimpleNamespace(host_ids=[[3]])
    drafter.observe(step)
    assert drafter.auxiliary.steps == [step]
    draft = combined([COPIES, [7, 8, 9, 7, 8]], pad_to=5).propose()
    assert draft.is_chain
    assert draft.tokens.tolist() == [[*COPY, -1], [9, 7, -1, -1, -1]]


@pytest.mark.parametrize("pad_to, width", [(None, 4), (5, 5)])
def test_rows_of_a_batch_choose_by_themselves(pad_to, width):
    drafter = combined([FRESH, COPIES, [9]], pad_to=pad_to)
    draft = drafter.propose()
    pad = [-1] * (width - 4)
    assert draft.tokens.tolist() == [[0, 1, 2, -1, *pad], [*COPY, *pad], [0, 1, 2, -1, *pad]]
    assert draft.parents[0].tolist() == [-1, -1, 0, -1, *pad]
    assert torch.equal(draft.parents[1], chain_parents(width, draft.parents.device))
    assert draft.depth == (pad_to or 4)
    if pad_to:
        nodes, parents, depth = drafter.shapes()[-1]
        assert (nodes, depth) == (width, draft.depth) and parents.shape == draft.parents.shape


def test_auxiliary_parents_may_differ_by_row():
    drafter = combined([FRESH, COPIES])
    drafter.auxiliary.draft.parents = torch.tensor([[-1, 0, 1], [-1, -1, -1]])
    assert drafter.propose().parents[0].tolist() == [-1, 0, 1, -1]


@pytest.fixture(scope="module")
def target():
    return Target(make_model())


@pytest.fixture(scope="module")
def repetitive(target):
    """Ragged prompts with repetitions, and vanilla's long answers."""
    prompts = [*make_prompts(3), [7, 8, 9, 10, 11, 12, 13] * 6]
    return prompts, decode(target, EmptyDrafter(), prompts, StopRules(), 200)[0]


def make(target, *flags, corpus=None):
    """The drafter of a command line, with a corpus in memory."""
    parser = arguments.make_parser("samd", inference_samd.__doc__, inference_samd.add_args)
    args = parser.parse_args(["--model-path", "x", *flags])
    drafter = inference_samd.build(args, target)
    rows = drafter.rows if isinstance(drafter, CombinedDrafter) else drafter
    settings = Settings(args.n_predicts, args.alpha, args.len_threshold, args.len_bias)
    if drafter is not rows:
        settings = Settings(**{**vars(settings), "combined": True})
    rows.make = lambda: SamRow(settings, corpus)
    return drafter


MODES = [[], ["--auxiliary", "recycling"], ["--auxiliary", "recycling", "--len-threshold", "1"]]


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("with_corpus", [False, True])
@pytest.mark.parametrize("flags", MODES)
def test_ids_equal_vanilla(target, repetitive, flags, with_corpus, batch):
    dice = random.Random(1)
    corpus = static([[dice.randrange(97) for _ in range(30)] for _ in range(30)], separator=1)
    prompts, expected = repetitive
    drafter = make(target, *flags, "--len-bias", "0", corpus=corpus if with_corpus else None)
    ids, accepted = decode(target, drafter, prompts, StopRules(), 200, batch)
    assert ids == expected
    assert [1 + sum(lengths) for lengths in accepted] == [200] * 4


def test_a_corpus_of_the_answers_is_copied(target, repetitive):
    prompts, expected = repetitive
    corpus = static([prompt + ids for prompt, ids in zip(prompts, expected)], separator=96)
    for flags in MODES[:2]:
        drafter = make(target, *flags, corpus=corpus)
        ids, accepted = decode(target, drafter, prompts, StopRules(), 200, 4)
        assert ids == expected
        assert all(max(lengths) == 40 for lengths in accepted)  # whole drafts


@pytest.mark.parametrize("flags", MODES[:2])
def test_sampled_ids_equal_vanilla(target, flags):
    prompts, sampler = [*make_prompts(3), [4, 5, 6] * 8], Sampler(1.0, top_p=0.8)
    expected, _ = decode(target, EmptyDrafter(), prompts, StopRules(), 20, 1, sampler)
    corpus = static([ids[:10] for ids in expected], separator=96)
    for batch in (1, 4):
        drafter = make(target, *flags, "--len-bias", "0", corpus=corpus)
        assert decode(target, drafter, prompts, StopRules(), 20, batch, sampler)[0] == expected


def test_sampling_behind_a_forced_draft_keeps_the_distribution():
    probs = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    num = 20_000
    row = SamRow(Settings(n_predicts=2))
    row.start([0, 1, 2, 0])
    draft = Draft.chain(torch.tensor(row.propose()).expand(num, 1))
    uniforms = torch.rand(num, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    logits = probs.log().expand(num, 2, 3)
    tempered = probs ** (1 / 0.7) / (probs ** (1 / 0.7)).sum()
    accepted = verify.token_matching(logits, draft, Sampler(0.7).warp, uniforms)
    counts = accepted.tokens[:, 0].bincount(minlength=3)
    assert ((counts - num * tempered) ** 2 / (num * tempered)).sum() < 13.82  # p = 0.001


@pytest.mark.parametrize("flags, lengths", [(MODES[0], [13, 40, 7]), (MODES[1], [40, 20])])
def test_whole_copies_are_accepted(flags, lengths):
    target = cycle_target()
    prompt = [*range(61), *range(2)] if not flags else [*range(61), *range(5)]
    ids, accepted = decode(target, make(target, *flags), [prompt], StopRules(), 61)
    assert ids[0] == [(prompt[-1] + 1 + i) % 61 for i in range(61)]
    assert accepted[0] == lengths


def test_answers_do_not_depend_on_the_order_of_questions(target, repetitive):
    prompts = repetitive[0]

    def lengths(drafter, order):
        return {i: decode(target, drafter, [prompts[i]], StopRules(), 40)[1][0] for i in order}

    for flags in MODES[:2]:
        drafter = make(target, *flags)
        assert lengths(drafter, range(4)) == lengths(drafter, [3, 1, 2, 0])
    warm = make(target, *MODES[1], "--state", "warm")
    first, second = lengths(warm, range(4)), lengths(warm, range(4))
    assert sum(map(len, second.values())) < sum(map(len, first.values()))


def test_a_long_prompt_leaves_little_room(target):
    prompt = [1 + i % 90 for i in range(508)]  # of a context of 512
    expected, _ = decode(target, EmptyDrafter(), [prompt], StopRules(), 100)
    for flags in MODES[:2]:
        ids, _ = decode(target, make(target, *flags), [prompt], StopRules(), 100)
        assert ids == expected and len(ids[0]) == 4


@pytest.mark.parametrize("kind", ["random", "constant"])
def test_building_is_linear(kind):
    """In lines of code executed, which no other work on the machine changes."""
    dice = random.Random(9)
    text = [dice.randrange(1000) if kind == "random" else 7 for _ in range(12_000)]

    def lines(num):
        executed = 0

        def trace(frame, event, arg):
            nonlocal executed
            executed += event == "line"
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            automaton(text[:num])
        finally:
            sys.settrace(before)
        return executed

    assert 12_000 < lines(12_000) < 5 * lines(3_000)  # quadratic: 16


@pytest.mark.parametrize(
    "flags",
    [["--n-predicts", "1"], ["--len-threshold", "0"], ["--len-bias", "-1"], ["--alpha", "0"]]
    + [["--auxiliary", "pld"]],
)
def test_flags_out_of_range(flags, capsys):
    parser = arguments.make_parser("samd", inference_samd.__doc__, inference_samd.add_args)
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(["--model-path", "x", *flags])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_state_needs_an_auxiliary(target):
    with pytest.raises(BadInput, match="--state warm needs an --auxiliary"):
        make(target, "--state", "warm")
    with pytest.raises(BadInput, match="--auxiliary pld"):
        auxiliary("pld", None, target)


def test_static_shapes_are_padded():
    rows = SamRows(lambda: SamRow(Settings(n_predicts=4), static(CORPUS)), 3, deepest=3)
    rows.start(SimpleNamespace(tokens=torch.zeros(1), host_ids=[[11, 12], [1, 2, 3, 1]]), [], None)
    draft = rows.propose()
    assert draft.tokens.tolist() == [[13, 14, 2], [2, 3, -1]]
    assert draft.parents.tolist() == [[-1, 0, 1], [-1, 0, -1]]
    _, (nodes, parents, depth), chain = rows.shapes()
    assert (nodes, depth) == (3, draft.depth) == (3, 3) and parents.shape == draft.parents.shape
    assert chain == (3, None, 0)
