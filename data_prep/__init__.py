"""Text to token stores: one command per file; `prepare.py` runs them all.

In go files of documents (.jsonl, .parquet), out come tokenizers, token stores and their packings. The work
lies in the rooms, in the order of the data: `reading`, `stages` (filters and deduplication), `tokenizing`.
"""
