"""The log of what a run was fed, and its proof.

In go the rows of each step, out come Parquet parts, and from them steps, documents and differences. Open
`files` and `periods` (the format), `log` (writing, completeness), `replay` (comparing with the data),
`search` (finding a document), `reports`, `stage_table`.
"""
