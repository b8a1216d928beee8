"""REST on one sequence: ask the datastore for what followed the last tokens."""

from __future__ import annotations

import functools

from model.common.contract.sequence import Guess, SequenceDrafter


class RESTDrafter(SequenceDrafter):
    """Keeps the last tokens of its sequence; the retriever, which is shared, does the rest."""

    def __init__(self, retriever):
        self.retriever = retriever

    def start(self, ids):
        self.ids: list[int] = []
        self.observe(ids)

    def observe(self, ids):
        self.ids = (self.ids + ids)[-self.retriever.longest :]

    def propose(self) -> Guess:
        return self.retriever.lookup(self.ids)


def facts_of(retriever) -> dict:
    """Sizes and times that a report should name beside REST's row."""
    store, lookups = retriever.store, retriever.num_lookups
    return {
        "datastore_bytes": store.num_bytes,
        "datastore_tokens": store.manifest["num_tokens"],
        "build_s": store.manifest["build_s"],
        "num_lookups": lookups,
        "lookup_s": retriever.seconds / lookups if lookups else 0.0,
    }


def make_drafter(args):
    """The drafter of a command line: one retriever for all slots."""
    from model.common.contract.sequence import PerSequence
    from model.common.errors import BadInput
    from model.common.prompts.prompter import load_tokenizer
    from model.rest.datastore import open_datastore
    from model.rest.retriever import Retriever

    if args.max_token_span < args.min_token_span:
        raise BadInput(
            f"--max-token-span {args.max_token_span} is below "
            f"--min-token-span {args.min_token_span}"
        )
    store = open_datastore(args.datastore_path)
    store.check_tokenizer(load_tokenizer(args.model_path))
    retriever = Retriever(
        store, args.min_token_span, args.max_token_span, args.max_depth, args.num_draft
    )
    facts = functools.partial(facts_of, retriever)
    return PerSequence(lambda: RESTDrafter(retriever), args.num_draft, args.max_depth, facts)
