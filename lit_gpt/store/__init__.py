"""Text as numbers: the tokenizer and the token store.

In: documents. Out: shards of token ids that are memory-mapped. Read tokenizer.py (word_cache.py, its speed;
token_bytes.py, how much text a token is), token_store.py (the reader; masking.py, tokens that are no
targets), manifest.py and shard_files.py (a shard's files), store_writer.py.
"""
