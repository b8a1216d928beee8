"""SPACE's mini model, which is its own target: transformers' ids, and more than one a step."""

import pytest
from tiny_methods import MINI, ROOT, build, decode, transformers_ids

from model.common.loop.sampling import Sampler
from model.common.prompts.prompter import Prompter, load_tokenizer
from model.common.prompts.questions import per_category, read_questions
from model.common.target.loading import load_target

PATH = MINI / "space"
pytestmark = pytest.mark.skipif(
    not (PATH / "config.json").exists(), reason="data/mini_models/space is not there"
)


class Mini:
    """The fine-tuned model, some held-out prompts and transformers' answers to them."""

    def __init__(self):
        self.target = load_target(str(PATH), "float32", "cpu", "eager")
        self.prompter = Prompter(load_tokenizer(str(PATH)))
        self.stop = self.prompter.stop_rules(self.target.model.generation_config)
        questions = read_questions(ROOT / "data" / "mini_bench" / "question.jsonl")
        self.prompts = [
            self.prompter.render(question["turns"], []) for question in per_category(questions, 2)
        ]
        plain = load_target(str(PATH), "float32", "cpu", "eager").model
        plain.set_attn_implementation("sdpa")
        self.expected = transformers_ids(plain, self.prompts, 60, sorted(self.stop.eos_ids))


@pytest.fixture(scope="module")
def mini():
    return Mini()


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("flags", [[], ["--mask-num", "2"]], ids=str)
def test_answers_are_the_models_own(mini, flags, batch):
    drafter = build("space", str(PATH), mini.target, flags)
    ids, accepted = decode(mini.target, drafter, mini.prompts, mini.stop, 60, batch)
    assert ids == mini.expected
    steps = [length for lengths in accepted for length in lengths]
    assert sum(steps) / len(steps) > 1.2


def test_sampled_ids_are_vanillas(mini):
    sampler, prompts = Sampler(temperature=0.8, top_p=0.95), mini.prompts[:4]
    runs = [
        decode(mini.target, build(name, str(PATH), mini.target, []), prompts, mini.stop, 30, batch,
               sampler)[0]
        for name, batch in (("vanilla", 1), ("space", 1), ("space", 4))
    ]  # fmt: skip
    assert runs[0] == runs[1] == runs[2]


def test_no_answer_holds_a_mask(mini):
    masks = set(mini.target.model.config.space_mask_ids)
    assert not masks & {token for ids in mini.expected for token in ids}
