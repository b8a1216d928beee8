"""All that the page and the figures show, as one plain dict: groups of files and their views."""

from evaluation.answers.meta import find_field
from evaluation.pictures.files import check_base, group
from evaluation.pictures.load import load_part
from evaluation.pictures.steps import EDGES, acceptance
from evaluation.pictures.views import PAIRED, views

COMMIT = 12  # digits shown


def document(files, settings, base=None, verdicts=None, slo=None):
    """({"groups": [...], "load": ..., ...}, Groups) of some AnswerFiles.

    settings: views.Settings; base: the AnswerFile of --base-path, or None; verdicts: {resolved
    path: words} of reports of equal.py and audit_sampling.py; slo: of load.load_part().
    """
    groups = group(files, base, settings.common)
    if base is not None:
        check_base(groups, base)
    return {
        "edges": list(EDGES),
        "bootstrap": {"resamples": settings.resamples, "seed": settings.seed, "level": 0.95},
        "groups": [group_part(one, settings, base, verdicts or {}) for one in groups],
        "load": load_part(files, slo),
    }, groups


def group_part(one, settings, base, verdicts):
    """What is shown of one Group; `baselines` begins with the one that the page opens with.

    Of a run with --paired 1 those are its own pairs, which no drift parts from its answers, unless
    a baseline is named.
    """
    found = views(one, settings)
    baselines = [*map(str, one.baselines)]
    if PAIRED in found:
        whole = not any(answers is base for answers in one.files)
        whole &= len(found[PAIRED]["rows"]) == len(one.files) - len(one.baselines)
        baselines.insert(0 if whole else len(baselines), PAIRED)
    return {
        "settings": one.settings,
        "files": [
            file_part(answers, name, verdicts) for answers, name in zip(one.files, one.names)
        ],
        "baselines": baselines,
        "views": {str(number): view for number, view in found.items()},
    }


def file_part(answers, name, verdicts):
    """What identifies a file, and what its steps show."""
    meta = answers.meta or {}
    judged = verdicts.get(answers.path.resolve())  # of the target or the audit, where in capitals
    answered = [question for question in answers.questions.values() if not question.error]
    return {
        "name": name,
        "label": answers.label,
        "file": answers.path.name,
        "sha256": answers.sha256[:COMMIT],
        "method": meta.get("method"),
        "lossy": answers.lossy,
        "acceptance_rule": meta.get("acceptance"),
        "runtime": find_field(meta, "runtime"),
        "runtime_ran": meta.get("runtime_ran"),
        "engine": (meta.get("method_args") or {}).get("engine"),
        "commit": (find_field(meta, "commit") or "")[:COMMIT],
        "started": meta.get("started"),
        "questions": len(answers.questions),
        "failed": len(answers.questions) - len(answered),
        "verdict": judged if judged and judged.isupper() else None,
        "acceptance": acceptance(answered),
    }
