"""The tokenizer that all mini models share: byte-level BPE, 2048 tokens, single digits."""

import json

from data.mini_bench.generate import conversations

VOCAB_SIZE = 2048
BOS, EOS, PAD, USER, ASSISTANT = "<|bos|>", "<|end|>", "<|pad|>", "<|user|>", "<|assistant|>"
# free for methods that need tokens of their own, such as masks; never in the corpus
RESERVED = [f"<|reserved_{i}|>" for i in range(8)]
CORPUS_SEED = 11
CORPUS_SIZE = 20_000
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}"
    "{{ '<|user|>' + message['content'] }}"
    "{%- elif message['role'] == 'assistant' -%}"
    "{{ '<|assistant|>' + message['content'] + eos_token }}"
    "{%- else -%}"
    "{{ raise_exception('roles are user and assistant, not ' + message['role']) }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)


def messages(example):
    """An example as chat messages, in the form chat templates take."""
    chat = []
    for turn, answer in zip(example.turns, example.answers):
        chat.append({"role": "user", "content": turn})
        chat.append({"role": "assistant", "content": answer})
    return chat


def build_tokenizer():
    """Train the tokenizer on a corpus sample and wrap it for transformers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[BOS, EOS, PAD, USER, ASSISTANT, *RESERVED],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = (
        text
        for example in conversations(CORPUS_SIZE, CORPUS_SEED)
        for text in (*example.turns, *example.answers)
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT, *RESERVED],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def save_tokenizer(tokenizer, folder):
    """Save, with a tokenizer_config.json that transformers 4 and 5 (and so vLLM) both read.

    The names of transformers 5 are left out; tokenizer.json says which tokens are special.
    """
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in ("backend", "is_local", "local_files_only", "extra_special_tokens"):
        config.pop(key, None)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["chat_template"] = CHAT_TEMPLATE
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
