"""Drop what occurs twice: paragraphs, and documents that are alike.

Open `dedup` with `dedup_index` for paragraphs, `minhash` with `shingles`, `minhash_index` and
`near_duplicates` for documents.
"""
