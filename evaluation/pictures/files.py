"""Which answer files can be set beside each other: the same target, asked and run the same way."""

from dataclasses import dataclass

from evaluation.answers.meta import AnswerError, differing_fields, find_field
from evaluation.summary.rows import shortened

SETTINGS = ("target", "scale_to", "bench_name", "dtype", "temperature", "top_p", "batch_size")
SETTINGS += ("max_new_tokens", "device", "num_threads")
"""Fields of a meta in which files of one group agree; the page filters by those that vary, and by
the number of questions, where groups were asked other ones."""


@dataclass
class Group:
    """Files of one target and setting, and the baselines among them."""

    settings: dict
    files: list  # AnswerFiles
    names: list  # what each is called, short
    baselines: list  # numbers of files


def is_baseline(answers):
    """Whether an AnswerFile is a plain decoding: vanilla in any runtime, or transformers' own."""
    meta = answers.meta or {}
    return meta.get("method") == "vanilla" and not meta.get("pairs_of")


def group(files, base=None, common=False):
    """The Groups of some AnswerFiles, in the order in which their first file stands.

    base: an AnswerFile that is a baseline whatever its meta says, the first of its group. common:
    files that were asked other questions are of one group, too.
    """
    by_settings = {}
    for answers in files:
        settings = {name: find_field(answers.meta, name) for name in SETTINGS}
        asked = None
        if answers.meta is not None and not common:
            settings["questions"] = answers.meta.get("num_questions")
            asked = find_field(answers.meta, "questions_sha256")
        by_settings.setdefault(repr((settings, asked)), (settings, []))[1].append(answers)
    groups = []
    for settings, members in by_settings.values():
        baselines = [i for i, one in enumerate(members) if one is base or is_baseline(one)]
        baselines.sort(key=lambda i: members[i] is not base)
        groups.append(Group(settings, members, names_of(members), baselines))
    return groups


def check_base(groups, base):
    """Refuse a baseline that no other file can be held to: others are of other settings."""
    mine = next(one for one in groups if any(answers is base for answers in one.files))
    others = [one for one in groups if one is not mine]
    if len(mine.files) > 1 or not others:
        return
    theirs = others[0].settings
    differing = [
        f"{name} {value!r}, in {others[0].files[0].path.name} {theirs.get(name)!r}"
        for name, value in mine.settings.items()
        if value != theirs.get(name)
    ]
    raise AnswerError(
        f"--base-path {base.path}: no FILE is of its settings:"
        f" {'; '.join(differing) or 'other questions were asked'}"
    )


def names_of(files):
    """A short name for each of some AnswerFiles, no two the same; a lossy one is called so."""
    short = shortened({answers.label for answers in files})
    names = [short[answers.label] for answers in files]
    twice = {name for name in names if names.count(name) > 1}
    for i, answers in enumerate(files):
        if names[i] in twice:
            names[i] += f" [{answers.path.parent.name}/{answers.path.name}]"
        if answers.lossy and "(lossy" not in names[i]:
            names[i] += " (lossy)"
    return names


def other_runtime(method, base):
    """["runtime"] where two AnswerFiles differ in that, as baselines do by design, else []."""
    if method.meta is None or base.meta is None:
        return []
    differs = (dotted for dotted, *_ in differing_fields(method.meta, base.meta))
    return ["runtime"] if "runtime" in differs else []
