"""REST on one sequence: ask the datastore for what followed the last tokens."""

from __future__ import annotations

from model.common.contract.sequence import Guess, PerSequence, SequenceDrafter


class RESTSequence(SequenceDrafter):
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


class RESTDrafter(PerSequence):
    """The sequences of all slots, which ask one retriever."""

    def __init__(self, retriever):
        super().__init__(
            lambda: RESTSequence(retriever),
            retriever.num_nodes,
            retriever.depth,
            lambda: facts_of(retriever),
        )
        self.retriever = retriever

    def forget(self):
        self.retriever.forget()


def facts_of(retriever) -> dict:
    """What a report should name beside REST's row: the corpus, sizes and times."""
    store, lookups = retriever.store, retriever.num_lookups
    source = store.manifest["source"]
    return {
        "datastore_corpus": source.get("name"),
        "datastore_corpus_sha256": source.get("sha256"),
        "datastore_tokenizer_sha256": store.manifest["tokenizer_sha256"],
        "datastore_bytes": store.num_bytes,
        "datastore_tokens": store.manifest["num_tokens"],
        "build_s": store.manifest["build_s"],
        "num_lookups": lookups,
        "lookup_s": retriever.seconds / lookups if lookups else 0.0,
    }


def make_drafter(args):
    """The drafter of a command line: one retriever for all slots."""
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
    sizes = args.min_token_span, args.max_token_span, args.max_depth, args.num_draft
    return RESTDrafter(Retriever(store, *sizes))
