"""The files that the training prompts are made from: repositories, commits, paths, and their bytes.

The pins are those of the files in the repositories at these commits.
"""

from __future__ import annotations

from typing import NamedTuple

from data.fetching.web import Published


class Source(NamedTuple):
    """A file of a repository at GitHub, at a commit."""

    repository: str
    commit: str
    path: str
    published: Published

    def address(self, host: str) -> str:
        """Its URL at a host that serves files as raw.githubusercontent.com does."""
        return f"{host.rstrip('/')}/{self.repository}/{self.commit}/{self.path}"

    @property
    def place(self) -> str:
        """Its path below a folder of sources."""
        return f"{self.repository}/{self.path}"


# what the prompts are to be, once made
PROMPTS = Published(2792729, "457a431e9623227348bab64317a1a12d9cc47a947bdedc5f81d0d4a2c17f787e")
SELF_INSTRUCT = ("yizhongw/self-instruct", "0b26ccaa415992100fa32df62d41b994cf928e23")
FOLDER = "data/finetuning/t0_train_50k/data_per_template"
# T0's templates; their order is that of the pools that are drawn from
ARTICLES = (
    "cnn_dailymail_3_0_0_2_or_3_sentences",
    "cnn_dailymail_3_0_0_news_card_view",
    "cnn_dailymail_3_0_0_tldr_summary",
    "cnn_dailymail_3_0_0_news_summary",
    "cnn_dailymail_3_0_0_sum_in_brief",
    "cnn_dailymail_3_0_0_news_stock",
    "cnn_dailymail_3_0_0_write_an_outline",
)
DIALOGUES = (
    "samsum_Generate_a_summary_for_this_dialogue",
    "samsum_Summarize_",
    "samsum_Sum_up_the_following_dialogue",
)
PARAGRAPHS = (
    "quoref_Answer_Question_Given_Context",
    "quoref_Find_Answer",
    "quoref_What_Is_The_Answer",
    "ropes_plain_background_situation",
    "ropes_prompt_beginning",
    "duorc_SelfRC_answer_question",
    "duorc_ParaphraseRC_answer_question",
    "quartz_use_info_from_paragraph_question",
    "wiki_bio_comprehension",
)
QUESTIONS = (
    "trec_trec1",
    "kilt_tasks_hotpotqa_straighforward_qa",
    "sciq_Direct_Question_Closed_Book_",
    "wiki_qa_Direct_Answer_to_Question",
    "kilt_tasks_hotpotqa_complex_question",
    "social_i_qa_Generate_answer",
    "cosmos_qa_context_question_description_text",
)


def _self_instruct(path: str, num_bytes: int, sha256: str) -> Source:
    return Source(*SELF_INSTRUCT, path, Published(num_bytes, sha256))


def _template(name: str, num_bytes: int, sha256: str) -> Source:
    return _self_instruct(f"{FOLDER}/{name}.jsonl", num_bytes, sha256)


SEED_TASKS = _self_instruct(
    "data/seed_tasks.jsonl",
    110934,
    "7779004fa198fdf27cf70a159363879d8a26c53329e11b436af17b3941875f48",
)
USER_TASKS = _self_instruct(
    "human_eval/user_oriented_instructions.jsonl",
    170193,
    "81d60a117db495cecedecd9193504fd07c5b5a42f6699ef6b0f9da10fc22f42e",
)
MATHS = Source(
    "openai/grade-school-math",
    "3101c7d5072418e28b9008a6636bde82a006892c",
    "grade_school_math/data/train.jsonl",
    Published(4166206, "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465"),
)
GERMAN = Source(
    "multi30k/dataset",
    "a3d2e0d26b56f3846f66a952536ffed4e401d05a",
    "data/task1/raw/train.de.gz",
    Published(637044, "726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6"),
)
# name of a template: (bytes, sha256) of its file
_PINS = {
    "cnn_dailymail_3_0_0_2_or_3_sentences": (
        469549,
        "aea6ffe338c503e0c5f34a39c1978ed4fa97a8baa31387862ec962c8f6013747",
    ),
    "cnn_dailymail_3_0_0_news_card_view": (
        470949,
        "517a2772445fe463cffbe7eed6eaf32d252c8eae742e874eab55602cfa8c9356",
    ),
    "cnn_dailymail_3_0_0_tldr_summary": (
        470549,
        "56c029dbc69206ac005818d1c2f229b653406d35f0e3cf0647cba4693b26040d",
    ),
    "cnn_dailymail_3_0_0_news_summary": (
        454349,
        "65aa425fc79a9ec7903ba58f8be6369cde82a3bf6788cd21581b5a6a4f8c4b1b",
    ),
    "cnn_dailymail_3_0_0_sum_in_brief": (
        456349,
        "f927bcc731d9b396c091cd252e32ea517bb76274d5e0c25e0ae2c07f2a45ee46",
    ),
    "cnn_dailymail_3_0_0_news_stock": (
        465949,
        "30faa012f0c1b60c59d28b502d3ab852b189e994850c1569436921980e1252a6",
    ),
    "cnn_dailymail_3_0_0_write_an_outline": (
        464949,
        "89c6873558aaee2dab27b2249b144fb769db89b4ef03d3b84bb38d6931df4dca",
    ),
    "samsum_Generate_a_summary_for_this_dialogue": (
        148010,
        "92ccc49e08ab669dae831124853b638a8d01e4d5471e31c13a5881f48d728b57",
    ),
    "samsum_Summarize_": (
        142410,
        "47b51038d87de53e762f560174018001258812f924f45ec129af170b83100b27",
    ),
    "samsum_Sum_up_the_following_dialogue": (
        146810,
        "b03da61f4e3be01c037fd9a4336196874278b550501412be48a5335a0013a529",
    ),
    "quoref_Answer_Question_Given_Context": (
        418927,
        "b1d378f08949ad58c3d68805a9be34b803c31ac71abc50adddec405ff1026d88",
    ),
    "quoref_Find_Answer": (
        422921,
        "f542fcf3428c1a42b30b39e36265d2262b59aef0437b364871138444a9dbb953",
    ),
    "quoref_What_Is_The_Answer": (
        418944,
        "090e771527bd1146cc9fad32edb204b34a24841328d4ea89b94ff6d2d73b686f",
    ),
    "ropes_plain_background_situation": (
        224256,
        "5e6a43e0bb53820d648b7da4a45935df91fee817ced8b53b63e287460bf7fe1d",
    ),
    "ropes_prompt_beginning": (
        242056,
        "f2f0a7612c3352849bd831614246e49a939faa8e078173c7656398c736ff0a13",
    ),
    "duorc_SelfRC_answer_question": (
        451791,
        "203a8415a365e0fc396809be05a8584489be362afabe9f3686d2d5b0cfc96d35",
    ),
    "duorc_ParaphraseRC_answer_question": (
        447462,
        "8158e6044d144244173bc057b65ae0806595147cd67ca8700334acb29412ca2d",
    ),
    "quartz_use_info_from_paragraph_question": (
        74888,
        "d910980c9f0a3e5b0875508ae76b1271b075d2a04f4c0680cc355997ce717285",
    ),
    "wiki_bio_comprehension": (
        273784,
        "7a3dc66b9d3fce2864aaaec578e6fb40d29fd31542551c794bf60bece976e2a1",
    ),
    "trec_trec1": (
        36466,
        "e16f7ae253a74f2e70da5037a1e43b2ae6f0587c7cf054926801197c9feefce7",
    ),
    "kilt_tasks_hotpotqa_straighforward_qa": (
        34309,
        "c7b6217bc8dd379e3bd32b48d741025be02614f9ddec84f29abfde3e173b43bb",
    ),
    "sciq_Direct_Question_Closed_Book_": (
        30649,
        "6795bb3d3ff1fda709c4e89dac3d9694e0213cc9479daa937108526edc2e8a7d",
    ),
    "wiki_qa_Direct_Answer_to_Question": (
        1726,
        "8eaefbe05669a96e6f4278604952ab66ad9ae3f863f2990bc92b184fac2faa56",
    ),
    "kilt_tasks_hotpotqa_complex_question": (
        53314,
        "ded535e13e0c1b60826167dbdc6374fff8ee090b4fd2b7b384585d29609b9f5a",
    ),
    "social_i_qa_Generate_answer": (
        39686,
        "0b1d5efc30f697f74365e178c9041629c1f2e3398d665079c5d277f03164dea9",
    ),
    "cosmos_qa_context_question_description_text": (
        108197,
        "1a4c173c065a64e714a153fa37fc000991daa647849818277311e20c6da9426f",
    ),
}
TEMPLATES = {name: _template(name, *pin) for name, pin in _PINS.items()}
