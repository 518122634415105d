"""Run work over a corpus in stages of parallel tasks, on one machine or as SLURM job arrays.

In go files of documents, out come `documents/`, `excluded/REASON/`, `stats.json` and `report.md`. Open
`pipeline` (how stages run), `settings` (what a rerun may change), `input_files` (options, sizes),
`corpus` (the documents), then `summary` (the counts).
"""
