"""Training MTP heads: FastMTP's rows, labels and weights, both kinds of keys, what is saved."""

import pytest
import torch
from conftest import save_model
from trainers import new_files, trained

from model.common.target.loading import load_model
from model.common.training.features import Batch, FrozenTarget
from model.common.training.flags import make_parser
from model.mtp import train
from model.mtp.unroll import step_weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("target"), num_hidden_layers=2)


def method_of(folder, *flags):
    """The method's training on a tiny target."""
    parser = make_parser("t", "doc", train.add_args, train.RECIPE)
    given = ["--model-path", folder, "--data", "x", "--output", "y", *flags]
    torch.manual_seed(0)
    target = FrozenTarget(load_model(folder, "float32", "cpu"))
    return train.MtpTraining(parser.parse_args(given), target, None)


def batch_of(target, ids, answer_from: int, pad: int = 0):
    """One conversation whose answer begins at a place, padded."""
    tokens = torch.tensor([[*ids, *[0] * pad]])
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    mask[0, answer_from : len(ids)] = True
    hidden = target.hidden(tokens, ("last",), mask)
    return Batch(tokens, mask, torch.tensor([len(ids)]), hidden, target, [])


def test_weights_of_the_steps():
    assert [round(w, 6) for w in step_weights(0.6, 3)] == [0.510204, 0.306122, 0.183673]
    five = [0.433727, 0.260236, 0.156142, 0.093685, 0.056211]
    assert [round(w, 6) for w in step_weights(0.6, 5)] == five


@pytest.mark.parametrize("pad", [0, 4])
@pytest.mark.parametrize("attend", ["own", "first"])
def test_rows_and_labels(folder, attend, pad):
    """Ids 10 .. 19 and three steps: six rows; row 0 reads 11 and predicts 12, at step 3 it reads 13
    and predicts 14; row 5 at step 3 reads 18 and predicts 19. The loss by hand, row by row."""
    method = method_of(folder, "--attend", attend)
    batch = batch_of(method.target, list(range(10, 20)), 1, pad)
    read, rows = [], method.module.rows
    method.module.rows = lambda tokens, states: read.append(tokens) or rows(tokens, states)
    loss, metrics = method.loss(batch)
    assert [step[0, :6].tolist() for step in read] == [
        [11, 12, 13, 14, 15, 16],
        [12, 13, 14, 15, 16, 17],
        [13, 14, 15, 16, 17, 18],
    ]
    expected = 0.0
    for step, states in enumerate(method.states(batch, 3, attend)):
        logits = method.target.lm_head(states[0, :6])
        goal = torch.arange(12 + step, 18 + step)  # row 0 and 5 of step 3: 14 and 19
        own = torch.nn.functional.cross_entropy(logits, goal)
        torch.testing.assert_close(metrics[f"loss_{step + 1}"], own)
        expected = expected + step_weights(0.6, 3)[step] * own
    torch.testing.assert_close(loss, expected)


def test_a_step_without_labels_costs_nothing(folder):
    """A conversation too short for all steps: no rows, a loss of 0 that has gradients."""
    method = method_of(folder)
    loss, _ = method.loss(batch_of(method.target, [10, 11, 12], 1))
    loss.backward()
    assert loss.item() == 0


def slow_states(method, batch, depth, attend):
    """[depth, T, H] a row at a time: its keys one by one, without masks."""
    module, ids, length = method.module, batch.ids[0], batch.ids.shape[1]
    layer, config = module.layer, module.layer.self_attn.config
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    states, known, found = batch.hidden["last"][0], [], []
    for step in range(depth):
        out, keys = [], []
        rows = module.rows(ids.roll(-(1 + step)).unsqueeze(0), states.unsqueeze(0))[0]
        for r in range(length):
            cos, sin = method.rotary(rows[None, :1], torch.tensor([[r + step]]))
            normed = layer.input_layernorm(rows[r])
            query, key, value = (
                getattr(layer.self_attn, f"{n}_proj")(normed).view(-1, config.head_dim)
                for n in "qkv"
            )
            keys.append((turned(key, cos[0], sin[0]), value))
            if attend == "own" or not step:
                seen = keys
            else:
                seen = known[0][: r + 1] + [earlier[r] for earlier in known[1:]] + [keys[r]]
            key, value = (torch.stack(part) for part in zip(*seen))
            key, value = (part.repeat_interleave(heads // groups, 1) for part in (key, value))
            scores = torch.einsum("hd,nhd->hn", turned(query, cos[0], sin[0]), key)
            weights = (scores / config.head_dim**0.5).softmax(-1)
            attended = torch.einsum("hn,nhd->hd", weights, value).flatten()
            row = rows[r] + layer.self_attn.o_proj(attended)
            out.append(row + layer.mlp(layer.post_attention_layernorm(row)))
        known.append(keys)
        states = module.norm(torch.stack(out))
        found.append(states)
    return torch.stack(found)


def turned(rows, cos, sin):
    """RoPE of rows [heads, D]."""
    left, right = rows.chunk(2, -1)
    return rows * cos + torch.cat([-right, left], -1) * sin


@pytest.mark.parametrize("attend", ["own", "first"])
@torch.no_grad()
def test_states_equal_a_slow_reference(folder, attend):
    method = method_of(folder)
    batch = batch_of(method.target, list(range(10, 19)), 1)
    found = torch.cat(list(method.states(batch, 3, attend)))
    wanted = slow_states(method, batch, 3, attend)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    other = torch.cat(list(method.states(batch, 3, {"own": "first", "first": "own"}[attend])))
    assert torch.equal(found[0], other[0]) and not torch.allclose(found[1], other[1], atol=1e-3)


@torch.no_grad()
def test_held_out_chains_are_those_of_decoding(folder, tmp_path):
    """Over a known answer: what the drafter drafts behind every prefix of it."""
    from recording import Recording
    from tiny_methods import build

    from model.common.loop.decode import generate
    from model.common.loop.sampling import Sampler
    from model.common.loop.turns import StopRules
    from model.common.target.loading import load_target

    method = method_of(folder)
    method.module.eh_proj.weight.mul_(3)
    method.save(tmp_path)
    target, prompt = load_target(folder, "float32", "cpu", "eager"), [5, 9, 70, 71, 72]
    recording = Recording(build("mtp", folder, target, ["--mtp-path", str(tmp_path)]))
    (turn,) = generate(target, recording, [prompt], Sampler(), [0], StopRules(), 12)
    ids = [*prompt, *turn.output_ids]
    chains = method.drafts(batch_of(method.target, ids, len(prompt)), 3)[0].tolist()
    compared = 0
    for one in recording.drafts:
        row = len(one.ids) - 2  # which reads the root
        for depth, token in enumerate(one.tokens):
            if row + 1 + depth >= len(ids) - 1 or one.tokens[:depth] != ids[row + 2 :][:depth]:
                break  # the chain was taught the answer's tokens
            assert chains[row][depth] == token
            compared += 1
    assert compared >= 8


@pytest.mark.training
@pytest.mark.parametrize("attend", ["own", "first"])
def test_a_head_learns_and_is_used(attend, tmp_path):
    """All steps learn; a head that was trained for the first alone is worse at the third."""
    files = new_files(tmp_path)
    several = trained("mtp", files, tmp_path / "several", attend=attend)
    alone = trained("mtp", files, tmp_path / "alone", **{"attend": attend, "step-decay": 0})
    assert several["accept_length"] > 1.5
    assert several["loss_3"] < 0.95 * alone["loss_3"]
