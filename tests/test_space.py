"""SPACE: the published layout, drafts against plain forwards, answers equal to vanilla's."""

import subprocess
import sys

import pytest
import torch
from conftest import make_model, make_prompts
from replays import Replays
from transformers import GPT2Config, GPT2LMHeadModel

from model.common import args as arguments
from model.common.contract import trees as tree
from model.common.contract.drafter import Draft, Drafter, EmptyDrafter, Needs
from model.common.errors import BadInput
from model.common.eval import main
from model.common.loop.decode import generate
from model.common.loop.sampling import Sampler
from model.common.loop.turns import StopRules
from model.common.target.loading import attention_name
from model.common.target.model import Target
from model.common.target.runtime import Graphs
from model.space import inference_space as script
from model.space.drafter import SpaceDrafter, read_masks, tree_parents

LOOPY = {"vocab_size": 11, "num_hidden_layers": 2}  # a random model that soon repeats itself
MASK = 9  # of the loopy model: one of its ordinary ids
SIZES = [1, 3, 5]


@pytest.fixture(scope="module")
def target():
    return Target(make_model(**LOOPY))


@pytest.fixture(scope="module")
def plain():
    """The same model without our masks and cache."""
    model = make_model(**LOOPY)
    model.set_attn_implementation("sdpa")
    return model


def loopy_prompts(num=4):
    return make_prompts(num, vocab_size=11)


def space(k, mask_id=MASK):
    return SpaceDrafter([mask_id] * k, "cpu")


def decode(target, drafter, prompts, limit=40, batch=1, stop=None, sampler=None):
    turns = []
    for begin in range(0, len(prompts), batch):
        part = prompts[begin : begin + batch]
        seeds = list(range(begin, begin + len(part)))
        stop = stop or StopRules()
        turns += generate(target, drafter, part, sampler or Sampler(), seeds, stop, limit)
    return [turn.output_ids for turn in turns], [turn.accept_lengths for turn in turns]


class Recording(Drafter):
    """Keeps every draft with what was committed before it."""

    def __init__(self, inner, before=None):
        self.inner, self.before, self.drafts = inner, before, []

    def shapes(self):
        return self.inner.shapes()

    def start(self, prefill, max_lengths, sampler):
        self.inner.start(prefill, max_lengths, sampler)
        self.committed = [list(ids) for ids in prefill.host_ids]

    def propose(self):
        draft = self.inner.propose()
        self.drafts.append((draft, [list(ids) for ids in self.committed]))
        if self.before:
            self.before(draft, self.committed)
        return draft

    def observe(self, step):
        self.inner.observe(step)
        for ids, new in zip(self.committed, step.host_ids):
            ids.extend(new)


# ---- the layout


def roles(k):
    """Names of the rows, root included, in the published order."""
    names = ["root"]
    for group in range(k + 1):
        names += [("c", group)] if group else []
        names += [("m", group, j) for j in range(1, k + 1)]
    return names


def sees(one, other):
    """Whether a row reads another, by the published table."""
    group, own = (0, 0) if one == "root" else (one[1], one[2] if one[0] == "m" else 0)
    if other == "root":
        return True
    if other[0] == "c":
        return other[1] <= group
    return one != "root" and one[0] == "m" and other[1] == group and other[2] <= own


@pytest.mark.parametrize("k", [1, 2, 3, 5, 8])
def test_every_row_reads_what_the_table_says(k):
    drafter, names = space(k), roles(k)
    assert len(names) == 1 + k * (k + 2) == 1 + drafter.shapes()[0][0]
    known = tree.ancestors(drafter.parents)
    expected = torch.tensor([[sees(one, other) for other in names] for one in names])
    assert torch.equal(known, expected)
    assert drafter.probe.tolist() == [name[0] == "m" for name in names[1:]]
    drafter.nodes = drafter.nodes_of(torch.arange(k).unsqueeze(0) + 20)
    nodes = drafter.propose().tokens[0].tolist()
    assert nodes == [MASK if name[0] == "m" else 19 + name[1] for name in names[1:]]


def test_published_example_of_three_tokens_and_two_masks():
    """Flat rows 3 to 10 behind x0 x1 x2: m01 m02 c1 m11 m12 c2 m21 m22."""
    known = tree.ancestors(space(2).parents)
    positions = (2 + known.sum(-1) - 1).tolist()
    assert positions == [2, 3, 4, 3, 4, 5, 4, 5, 6]
    row = 9 - 2  # the root is x2, flat index 2
    flat = [2 + i for i, seen in enumerate(known[row].tolist()) if seen]
    assert [0, 1, *flat] == [0, 1, 2, 5, 8, 9]
    assert roles(2)[row] == ("m", 2, 1)


def test_published_example_of_ten_tokens_and_five_masks():
    drafter = space(5)
    assert 9 + 1 + len(drafter.parents) == 45
    assert (10 + drafter.candidates).tolist() == [15, 21, 27, 33, 39]
    positions = (9 + tree.ancestors(drafter.parents).sum(-1) - 1).tolist()[1:]
    groups = [[*range(10 + i, 15 + i)] for i in range(6)]
    expected = groups[0] + [p for i in range(1, 6) for p in [9 + i, *groups[i]]]
    assert positions == expected


def test_parents_of_one_mask():
    assert tree_parents(1) == [-1, -1, 1]


# ---- what a row hears


@torch.inference_mode()
def step_logits(target, prompt, root, candidates, drafter):
    """Logits [1+n, V] of one step after a prompt."""
    target.prefill(torch.tensor([prompt]), [len(prompt)], 128, Needs())
    drafter.nodes = drafter.nodes_of(torch.tensor([candidates]))
    draft = drafter.propose()
    return target.forward(torch.tensor([root]), draft, len(prompt) + 1)[0][0]


@pytest.mark.parametrize("k", SIZES)
@torch.inference_mode()
def test_rows_equal_plain_forwards(target, plain, k):
    """Root and candidates are an ordinary forward's, and so is every group behind its prefix."""
    prompt, root, drafter = [3, 1, 4, 1, 5], 2, space(k)
    candidates = [(7 * i + 1) % 9 for i in range(k)]
    logits = step_logits(target, prompt, root, candidates, drafter)
    text = plain(torch.tensor([prompt + [root] + candidates])).logits[0, len(prompt) :]
    rows = [0, *(1 + drafter.candidates).tolist()]
    torch.testing.assert_close(logits[rows], text, atol=1e-5, rtol=1e-5)
    for group in range(k + 1):
        ids = prompt + [root] + candidates[:group] + [MASK] * k
        wanted = plain(torch.tensor([ids])).logits[0, -k:]
        begin = 1 + group * (k + 1)
        torch.testing.assert_close(logits[begin : begin + k], wanted, atol=1e-5, rtol=1e-5)


def test_masks_change_no_text_row(target):
    rows = [0, *(1 + space(3).candidates).tolist()]
    one, other = (
        step_logits(target, [3, 1, 4], 5, [1, 2, 3], space(3, mask))[rows] for mask in (MASK, 0)
    )
    assert torch.equal(one, other)


@torch.inference_mode()
def slow_draft(model, committed, masks):
    """Candidates after `committed`: what a plain forward says at masks in the root's place on."""
    logits = model(torch.tensor([committed[:-1] + masks])).logits[0, -len(masks) :]
    logits[:, masks] = float("-inf")
    return logits.argmax(-1).tolist()


@pytest.mark.parametrize("masks", [[9], [9] * 3, [9, 4, 7], [9] * 5], ids=str)
def test_drafts_equal_a_slow_reference(target, plain, masks):
    k, prompts = len(masks), loopy_prompts(3)
    drafter = Recording(SpaceDrafter(masks, "cpu"))
    ids, accepted = decode(target, drafter, prompts, 24, batch=3)
    for row, prompt in enumerate(prompts):
        for number in range(len(accepted[row])):
            draft, committed = drafter.drafts[number]
            nodes = draft.tokens[row]
            assert nodes[draft.probe].tolist() == masks * (k + 1)
            wanted = slow_draft(plain, committed[row], masks) if number else [-1] * k
            assert nodes[~draft.probe].tolist() == wanted
        assert (prompt + ids[row])[: len(committed[row])] == committed[row][: len(prompt) + 24]
    lengths = [length for own in accepted for length in own]
    assert max(lengths) > 1 and len(drafter.drafts) >= 8


# ---- answers


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("k", [*SIZES, 2])
def test_answers_are_vanillas(target, k, batch):
    prompts = loopy_prompts()
    expected, _ = decode(target, EmptyDrafter(), prompts, 60)
    ids, accepted = decode(target, space(k), prompts, 60, batch)
    assert ids == expected
    assert [1 + sum(lengths) for lengths in accepted] == [60] * 4
    assert all(lengths[0] == 1 for lengths in accepted)  # masks only
    assert 1 < max(max(lengths) for lengths in accepted) <= k + 1


def test_long_answers_are_vanillas():
    """More than 200 tokens of an unquiet model whose last id is the mask."""
    target = Target(make_model(scale=0.3, vocab_size=98))
    prompts = make_prompts(2)
    expected, _ = decode(target, EmptyDrafter(), prompts, 220, batch=2)
    assert decode(target, space(5, 97), prompts, 220, batch=2)[0] == expected


@pytest.mark.parametrize("family", ["qwen3", "mistral", "gemma3_text"])
def test_other_families(family):
    target = Target(make_model(family, **{**LOOPY, "num_hidden_layers": 3}))
    expected, _ = decode(target, EmptyDrafter(), loopy_prompts())
    assert decode(target, space(3), loopy_prompts(), batch=4)[0] == expected


@pytest.mark.parametrize("k", SIZES)
def test_sampled_answers_are_vanillas(target, k):
    prompts, sampler = loopy_prompts(), Sampler(1.0, top_p=0.8)
    expected, _ = decode(target, EmptyDrafter(), prompts, sampler=sampler)
    for batch in (1, 4):
        assert decode(target, space(k), prompts, batch=batch, sampler=sampler)[0] == expected


def test_neither_batch_nor_order_matters(target):
    drafter, prompts = space(3), loopy_prompts()
    ids, accepted = decode(target, drafter, prompts)
    assert decode(target, drafter, prompts, batch=4) == (ids, accepted)
    assert decode(target, drafter, prompts[::-1]) == (ids[::-1], accepted[::-1])


def test_rows_that_end_early_leave_the_others_alone(target):
    prompts = loopy_prompts()
    ids, _ = decode(target, space(3), prompts)
    stop = StopRules(frozenset({ids[0][1]}))
    expected, _ = decode(target, EmptyDrafter(), prompts, stop=stop)
    assert len(expected[0]) < 4 < max(map(len, expected))
    single = decode(target, space(3), prompts, stop=stop)
    assert single[0] == expected
    assert decode(target, space(3), prompts, batch=4, stop=stop) == single


@pytest.mark.parametrize("batch", [1, 4])
def test_cache_equals_a_fresh_prefill(target, batch):
    fresh, checked = Target(make_model(**LOOPY)), []

    def columns(held, row, num):
        return torch.cat([storage[:, :, row, :, :num] for storage in held.cache.storage])

    def check(draft, committed):
        for row, ids in enumerate(committed):
            if num := int(target.cache.length[row]):
                assert num == len(ids) - 1
                fresh.prefill(torch.tensor([ids[:-1]]), [num], 256, Needs())
                held, expected = columns(target, row, num), columns(fresh, 0, num)
                assert torch.allclose(held, expected, atol=1e-4)
                checked.append(row)

    _, accepted = decode(target, Recording(space(3), check), loopy_prompts(batch), 24, batch)
    assert len(checked) == sum(map(len, accepted))
    assert max(max(lengths) for lengths in accepted) > 1


# ---- an oracle: a model that answers positions, at masks as everywhere


def oracle(period=7, vocab_size=12, right=99):
    """At position p it says p + 1 modulo the period, at masks too.

    GPT-2 with nothing but learned positions. The ids from period + right on say 11 instead: as the
    masks of a group's places they make those after the first `right` wrong.
    """
    config = GPT2Config(
        vocab_size=vocab_size, n_positions=128, n_embd=32, n_layer=1, n_head=2,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.transformer.ln_f.weight.fill_(1)
        model.transformer.wpe.weight.copy_(torch.eye(period, 32)[torch.arange(128) % period])
        wanted = (torch.arange(period) + 1) % period
        model.lm_head.weight[wanted, torch.arange(period)] = 1.0
        model.transformer.wte.weight[period + right :, 20] = 50.0
        model.lm_head.weight[11, 20] = 1.0
    model.set_attn_implementation(attention_name(config))
    return Target(model)


def position_answer(prompt, limit, period=7):
    return [(len(prompt) + i) % period for i in range(limit)]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("k", SIZES)
def test_an_oracle_commits_k_and_the_bonus(k, batch):
    prompts = [[1, 2, 3], [4] * 8, [0]]
    ids, accepted = decode(oracle(), space(k, 11), prompts, 40, batch)
    assert ids == [position_answer(prompt, 40) for prompt in prompts]
    steps, rest = divmod(40 - 2, k + 1)
    assert accepted == [[1] + [k + 1] * steps + [rest] * (rest > 0)] * 3


@pytest.mark.parametrize("right", range(4))
def test_masks_right_for_some_places(right):
    """Separate ids; those of the places after `right` say something wrong."""
    ids, accepted = decode(oracle(right=right), SpaceDrafter([7, 8, 9], "cpu"), [[1, 2]], 20)
    assert ids == [position_answer([1, 2], 20)]
    full = 1 + min(right, 3)
    assert set(accepted[0][1:-1]) == {full} and accepted[0][0] == 1


def test_the_end_inside_the_candidates():
    """Nothing after it is committed, and nothing that pads is counted."""
    drafter, stop = space(5, 11), StopRules(frozenset({0}))
    for length, steps in ((1, [1, 5]), (2, [1, 4]), (5, [1, 1]), (6, [1]), (7, [])):
        ids, accepted = decode(oracle(), drafter, [[1] * length], stop=stop)
        wanted = position_answer([1] * length, 40)
        assert ids == [wanted[: wanted.index(0) + 1]]
        assert accepted == [steps]


def test_the_end_of_the_context():
    """Rows behind the model's last position do no harm."""
    prompt = [1] * 100
    ids, accepted = decode(oracle(), space(5, 11), [prompt], 100)
    assert ids == [position_answer(prompt, 28)] and sum(accepted[0]) == 27


# ---- shapes, flags


@pytest.mark.parametrize("batch", [1, 4])
def test_captured_steps(target, batch):
    static = Target(make_model(**LOOPY))
    capture = Replays()
    static.runtime, static.static_batch = Graphs(static._rows, capture), batch
    expected, lengths = decode(target, space(3), loopy_prompts(3), batch=batch)
    assert decode(static, space(3), loopy_prompts(3), batch=batch) == (expected, lengths)
    assert capture.captured == 1


def test_one_shape_and_one_tree(target):
    drafter = Recording(space(3))
    decode(target, drafter, loopy_prompts(), batch=4)
    ((num_nodes, parents, _),) = drafter.shapes()
    assert {draft.tokens.shape for draft, _ in drafter.drafts} == {(4, num_nodes)}
    assert all(draft.parents is parents and draft.depth == 3 for draft, _ in drafter.drafts)
    assert all(draft.probe is drafter.inner.probe for draft, _ in drafter.drafts)
    assert not any(draft.is_chain for draft, _ in drafter.drafts)
    assert drafter.inner.reads_per_step == 0 and drafter.inner.needs == Needs()


def test_only_candidates_count_as_drafted(target):
    (turn,) = generate(target, space(3), loopy_prompts(1), Sampler(), [0], StopRules(), 20)
    assert turn.drafted == [0] + [3] * (len(turn.drafted) - 1)


class Config:
    """A model's config with some fields."""

    def __init__(self, **fields):
        self.vocab_size = 40
        vars(self).update(fields)

    def get_text_config(self):
        return self


def test_masks_of_flags_and_config():
    named = Config(space_mask_ids=[38], space_mask_num=3)
    assert read_masks(named, None, None) == [38] * 3
    assert read_masks(named, None, 6) == [38] * 6
    assert read_masks(named, [2], None) == [2] * 3
    assert read_masks(Config(), [7], None) == [7] * 5
    several = Config(space_mask_ids=[35, 36, 37], space_mask_num=3)
    assert read_masks(several, None, None) == [35, 36, 37]
    assert read_masks(several, None, 2) == [35, 36]
    assert read_masks(several, [39], 2) == [39, 39]


@pytest.mark.parametrize(
    "config, ids, num, message",
    [
        (Config(), None, None, "config.json has no space_mask_ids; --mask-id N"),
        (Config(), [40], None, "--mask-id 40: the model's vocabulary has 40 ids"),
        (Config(), [3, 99], 2, "--mask-id 99"),
        (Config(), [1, 2], 3, "--mask-num 3: there are mask ids for 2 places only"),
        (Config(space_mask_ids=[44]), None, None, "--mask-id 44"),
        (Config(space_mask_ids="ab"), None, None, "space_mask_ids is 'ab', not a list of ids"),
        (Config(space_mask_ids=[1.5]), None, None, "not a list of ids"),
    ],
)
def test_unusable_masks_are_bad_input(config, ids, num, message):
    with pytest.raises(BadInput, match=message):
        read_masks(config, ids, num)


def test_build_reads_the_models_config(target):
    parser = arguments.make_parser("space", script.__doc__, script.add_args)
    args = parser.parse_args(["--model-path", "x", "--mask-id", "9", "--mask-num", "2"])
    assert script.build(args, target).mask_ids.tolist() == [9, 9]
    with pytest.raises(BadInput, match="no space_mask_ids"):
        script.build(parser.parse_args(["--model-path", "x"]), target)


@pytest.mark.parametrize("flags", [["--mask-num", "0"], ["--mask-id", "-1"], ["--mask-id"]])
def test_flags_out_of_range(flags, capsys):
    parser = arguments.make_parser("space", script.__doc__, script.add_args)
    with pytest.raises(SystemExit) as error:
        parser.parse_args(["--model-path", "x", *flags])
    assert error.value.code == 2
    message = capsys.readouterr().err
    assert flags[0] in message and message.count("\n") == 1


def test_a_mask_outside_the_vocabulary_is_one_line(model_dir, question_file, tmp_path, capsys):
    flags = ["--model-path", model_dir, "--question-file", question_file, "--mask-id", "32002"]
    with pytest.raises(SystemExit) as end:
        main(
            "space",
            script.__doc__,
            script.add_args,
            script.build,
            argv=[*flags, "--device", "cpu", "--answer-file", str(tmp_path / "a.jsonl")],
        )
    assert end.value.code == 2
    message = "inference_space: --mask-id 32002: the model's vocabulary has 258 ids"
    assert capsys.readouterr().err.splitlines()[-1] == message


def test_light_imports():
    code = "import sys, model.space.inference_space; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "False\n"


def test_a_fixed_group_is_seen():
    """The fault that greedy output hides: group 0 whatever was accepted."""

    class Fixed(SpaceDrafter):
        def observe(self, step):
            step.count = torch.ones_like(step.count)
            super().observe(step)

    ids, accepted = decode(oracle(), Fixed([11] * 5, "cpu"), [[1, 2, 3]], 40)
    assert ids == [position_answer([1, 2, 3], 40)]
    assert accepted[0][:4] != [1, 6, 6, 6]


def test_the_first_step_has_masks_only():
    drafter = space(3)
    prefill_like = type("P", (), {"next_token": torch.tensor([1, 2])})
    drafter.start(prefill_like, [], None)
    draft = drafter.propose()
    assert isinstance(draft, Draft)
    assert draft.tokens[:, drafter.candidates].tolist() == [[-1] * 3] * 2
