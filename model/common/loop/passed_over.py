"""What a checkpoint's generation config asks for and a run does not do.

Loop and engine take their settings from flags alone, so that method and baseline decode by the same
rules. Of a generation config they read what ends an answer and a decoder's start token. Its
sampling settings (temperature, top_k, top_p, min_p) are flags of every command. The others change
even greedy answers of transformers' generate: whoever compares with it is told.
"""

from __future__ import annotations

from model.common.loop.penalties import Penalties

NEUTRAL = {  # settings that change answers, and the value that changes nothing
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "suppress_tokens": [],
    "begin_suppress_tokens": [],
    "bad_words_ids": [],
    "sequence_bias": None,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "exponential_decay_length_penalty": None,
    "min_length": 0,
    "min_new_tokens": 0,
    "guidance_scale": 1.0,
    "num_beams": 1,
}


def passed_over(generation_config, penalties: Penalties) -> str | None:
    """A line that names the settings that a run with these penalties leaves out; None = none."""
    found = []
    for name, neutral in NEUTRAL.items():
        value = getattr(generation_config, name, None)
        given = penalties.repetition if name == "repetition_penalty" else neutral
        if value is not None and value not in (neutral, given):
            found.append(f"{name} {value}")
    if not found:
        return None
    return (
        f"the model's generation config asks for {', '.join(found)}, which is not done here: its "
        "answers are not those of transformers' generate by default"
    )
