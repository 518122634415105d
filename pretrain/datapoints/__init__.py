"""The log of what a run was fed, and its proof.

In go the rows of each step and the losses of their segments, out come Parquet parts, and from them steps,
documents and differences. Open `files` and `periods` (the format), `log` (writing), `completeness`, `replay`
(comparing with the data), `segments` (reading), `search` (finding a document), `reports`, `stage_table`,
`losses` and `document_losses`.
"""
