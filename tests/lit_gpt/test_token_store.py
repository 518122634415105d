"""The token store, read by its own reader and by a parser written from the specification."""

from pathlib import Path

import numpy as np

from lit_gpt.token_store import TokenStore
from lit_gpt.tokenizer import Tokenizer


def test_documents_are_found_and_decode(train_store_dir: Path, corpus_files: list[Path]):
    store = TokenStore.open(train_store_dir)
    tokenizer = Tokenizer.load(store.path / "tokenizer")
    assert store.n_shards > 1
    for shard, document in [(0, 0), (store.n_shards - 1, 0)]:
        info = store.document_info(shard, np.array([document]))[0]
        tokens = store.document_tokens(shard, document)
        assert store.find(info.id) == [(shard, document)]
        assert tokens[0] == store.bos_id
        assert tokens[-1] == store.eos_id
        assert len(tokens) == info.n_tokens
        assert tokenizer.decode(tokens) in Path(info.source).read_text().replace("\\n", "\n")
    store.verify()
