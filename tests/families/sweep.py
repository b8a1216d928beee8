"""Every causal family of the installed transformers, tiny and random: the loop against generate().

Run: python tests/families/sweep.py [FAMILY ...]

A family is EQUAL (vanilla, vanilla in three slots, pld, recycling and eagle2 give the ids of
transformers' own generate), EQUAL without heads (eagle2 is refused), EQUAL as chains (on its own
cache: vanilla and pld; trees are refused) or REFUSED when it is loaded, in the line that is
printed. In float64 where the family computes in it, else in float32.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[i]) for i in (0, 2)]
sys.path[:0] = [
    str(Path(__file__).resolve().parents[1] / "support"),
    str(Path(__file__).parents[1]),
]

import torch  # noqa: E402

LIMIT = 24  # new tokens
NOT_TEXT = (  # their entry wants sounds, pictures or bytes, or is no left-to-right model
    "blt fuyu gemma3 gemma3n got_ocr2 moshi moss_transcribe_diarize musicgen musicgen_melody "
    "dots3_note gemma4_assistant gemma4_unified_assistant reformer xlm xmod roc_bert"
).split()
UNBUILT = (  # the installed transformers cannot build a small one
    "dbrx",
    "dots3_note_text",
    "qwen4_exp",
    "qwen4_exp_text",
    "xlstm",
    "zamba",
)


def tried_families() -> list[str]:
    """All that decode text from left to right."""
    from tiny_families import families

    return [name for name in families() if name not in (*NOT_TEXT, *UNBUILT)]


def prompts() -> list[list[int]]:
    """Three ragged prompts, the second of them twice the same text."""
    generator = torch.Generator().manual_seed(1)
    found = [torch.randint(5, 120, (n,), generator=generator).tolist() for n in (5, 19, 33)]
    return [found[0], found[1] * 2, found[2]]


def save(family: str, folder: str):
    """Write a tiny model of the family; returns its class."""
    from tiny_families import SEQ2SEQ, random_model, small_config
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    kind = AutoModelForSeq2SeqLM if family in SEQ2SEQ else AutoModelForCausalLM
    model = random_model(small_config(CONFIG_MAPPING[family]), kind)
    if family in SEQ2SEQ:
        model.generation_config.decoder_start_token_id = 0
    model.save_pretrained(folder)
    return kind


def drafters(target, folder: str) -> dict:
    """{name: (drafter, slots)} of what is tried."""
    from eagle_dirs import eagle_dir
    from tiny_methods import build

    found = {"pld": (build("pld", folder, target, []), 1)}
    if target.reads_trees:
        recycling = build("recycling", folder, target, ["--prompt-seeds"])
        sizes = {"hidden_size": target.config.hidden_size, "vocab_size": target.vocab_size}
        (Path(folder) / "head").mkdir()
        (Path(folder) / "head" / "config.json").write_text(json.dumps(sizes))
        head = eagle_dir(Path(folder) / "eagle", str(Path(folder) / "head"))
        eagle = build("eagle2", folder, target, ["--eagle-path", head, "--total-token", "12"])
        found |= {"recycling": (recycling, 1), "eagle2": (eagle, 2)}
    return {name: tried for name, tried in found.items() if target.refuses(*tried) is None}


def expected(kind, folder: str, dtype, start) -> list[list[int]]:
    """transformers' own greedy answers."""
    from transformers import GenerationConfig

    model = kind.from_pretrained(folder, dtype=dtype).eval()
    model.generation_config = GenerationConfig(decoder_start_token_id=start, pad_token_id=0)
    answers = []
    for ids in prompts():
        inputs = torch.tensor([ids])
        mask = torch.ones_like(inputs)
        output = model.generate(inputs, attention_mask=mask, max_new_tokens=LIMIT, do_sample=False)
        answers.append(output[0, 1 if start is not None else len(ids) :].tolist())
    return answers


def verdict(family: str) -> str:
    """EQUAL ..., REFUSED ..., or what went wrong."""
    from tiny_methods import decode

    from model.common.contract.sequence import EmptyDrafter
    from model.common.errors import BadInput
    from model.common.loop.turns import StopRules
    from model.common.target.loading import load_target

    with tempfile.TemporaryDirectory() as folder:
        kind = save(family, folder)
        refusal = None
        for dtype in ("float64", "float32"):
            try:
                target = load_target(folder, dtype, "cpu", "eager")
                break
            except BadInput as error:
                refusal = str(error).removeprefix(f"{folder}: ")
        else:
            return f"REFUSED {refusal}"
        right = expected(kind, folder, getattr(torch, dtype), getattr(target, "start", None))
        tried = {"vanilla": (EmptyDrafter(), 1)}
        if target.reads_trees:
            tried["vanilla, 3 slots"] = (EmptyDrafter(), 3)
        tried |= drafters(target, folder)
        wrong = []
        for name, (drafter, slots) in tried.items():
            ids, _ = decode(target, drafter, prompts(), StopRules(), LIMIT, slots)
            if ids != right:
                wrong.append(name)
        if wrong:
            return f"DIFFERENT {', '.join(wrong)} in {dtype}"
        kind = "" if "eagle2" in tried else "without heads " if target.reads_trees else "as chains "
        return f"EQUAL {kind}in {dtype}"


def main(argv=None) -> int:
    """Print a line a family; 1 where one is neither EQUAL nor REFUSED."""
    import transformers

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("families", nargs="*", help="model types (default: all)")
    args = parser.parse_args(argv)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    counts: dict[str, int] = {}
    for family in args.families or tried_families():
        try:
            found = verdict(family)
        except Exception as error:  # a line of the table, whatever it is
            found = f"FAILED {type(error).__name__}: {' '.join(str(error).split())[:150]}"
        print(f"{family:28} {found}", flush=True)
        word = found.split(" in ")[0] if found.startswith("EQUAL") else found.split()[0]
        counts[word] = counts.get(word, 0) + 1
    print(counts)
    return int(bool({"DIFFERENT", "FAILED"} & set(counts)))


if __name__ == "__main__":
    sys.exit(main())
