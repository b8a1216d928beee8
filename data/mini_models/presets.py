"""The mini models: shape, training budget and the card that is saved with the weights."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Phase:
    """A stretch of training: linear warm-up to the peak rate, linear decay to zero.

    Every phase begins with a new optimizer and new data (seed + its number); all but the first
    begin with the weights of the one before, rounded to float16.
    """

    num_tokens: int  # padding not counted
    learning_rate: float
    shares: dict = field(default_factory=dict, hash=False)  # of topics, where not the corpus's own


@dataclass(frozen=True)
class Preset:
    """One model: arguments of LlamaConfig and of its training."""

    shape: dict = field(hash=False)
    phases: tuple
    what: str


PRESETS = {
    "target": Preset(
        shape={
            "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 8,
            "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32,
        },
        # the second phase is for sums of two-digit numbers, which the first leaves shaky
        phases=(
            Phase(9_000_000, 3e-3),
            Phase(2_200_000, 1.5e-3, {"math_reasoning": 70, "translation": 30}),
        ),
        what="the target of the embedded default",
    ),
    "sps": Preset(
        shape={
            "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 32,
        },
        phases=(Phase(5_000_000, 4e-3),),
        what="an independent draft model for vanilla speculative decoding",
    ),
}  # fmt: skip

CARD = """# mini {name}

A LlamaForCausalLM, {what}: {num_parameters:,} parameters, float16,
{shape}.
It knows only the corpus of `data/mini_bench` and is for trying, testing and teaching.

    {command}

| | |
|---|---|
| seed | {seed} |
| training tokens (per phase) | {num_tokens} |
| steps | {num_steps} |
| duration | {duration_s} s on a CPU with {num_threads} threads, other work beside it |
| final training loss | {train_loss:.4f} |
| final held-out loss (answers only, weights rounded to float16) | {held_out_loss:.4f} |
| model.safetensors | {num_bytes:,} bytes |
| versions | {versions} |
"""


def build_model(name, tokenizer):
    """A fresh model of a preset; the caller has set the seed."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=2048,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=False,
        **PRESETS[name].shape,
        **ids,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=False, **ids)
    return model
