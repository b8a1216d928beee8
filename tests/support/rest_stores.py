"""Datastores of documents given as ids."""

from model.rest.datastore import open_datastore
from model.rest.writer import Writer, settings_of

GOLDEN = [[1, 2, 3, 4], [1, 2, 3, 4], [2, 3, 5, 6]]
SOURCE = {"name": "test", "num_files": 1, "bytes": 1, "sha256": ""}


class Ids:
    """Stands for a tokenizer of so many ids."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def get_vocab(self):
        return {"all": self.size}


def make_store(folder, documents, size=100, chunk_tokens=1 << 20, separators=True, tokenizer=None):
    """A datastore of documents given as ids."""
    settings = settings_of(tokenizer or Ids(size), "test", SOURCE, chunk_tokens, separators)
    writer = Writer(str(folder), settings)
    for ids in documents:
        writer.add(ids, True)
    writer.finish(0)
    return open_datastore(str(folder))


def random_documents(dice, num_tokens, letters, base=0):
    """Documents of 1 to 60 ids, a third of them copied from earlier ones."""
    documents, total = [], 0
    while total < num_tokens:
        ids = [base + dice.randrange(letters) for _ in range(dice.randint(1, 60))]
        if documents and dice.random() < 0.33:
            ids = dice.choice(documents)[: dice.randint(1, 60)] + ids[:5]
        documents.append(ids)
        total += len(ids)
    return documents
