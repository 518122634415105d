"""Text to token stores: one command per file; `prepare.py` runs them all.

In go files of documents (.jsonl, .parquet) or web pages (WARC, HTML), out come tokenizers, token stores and
their packings. The work lies in the rooms, in the order of the data: `reading`, `text`, `filters`,
`duplicates`, `report`, `tokenizing`; `stages` runs the second to the fourth in tasks, and `processes`
(workers, one run at a time in a folder) serves all of them. `passages` draws the text of the two `sample_`
commands. `adopt_megatron`, `evaluate_tokenizer` and `token_ratio` hold their work themselves.
"""
