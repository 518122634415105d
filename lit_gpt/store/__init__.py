"""Text as numbers: the tokenizer and the token store.

In: documents. Out: shards of token ids that are memory-mapped. Read tokenizer.py (and word_cache.py, its
speed), token_store.py (the reader), manifest.py, store_writer.py; megatron_index.py and document_table.py
are a shard's files.
"""
