"""Filter and deduplicate a corpus in stages of parallel tasks, on one machine or as SLURM job arrays.

In go files of documents, out come `documents/`, `excluded/REASON/`, `stats.json` and `report.md`. Open
`pipeline` (how stages run), `corpus` (reading and writing), then `clean` with `limits`, `measures`, `units`,
`repetition` and `language`, `dedup` with `dedup_index`, `minhash` with `shingles`, `minhash_index` and
`near_duplicates`, `summary`, `flow`, and `page` with `places`.
"""
