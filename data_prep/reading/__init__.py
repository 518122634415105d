"""Read documents from files, strictly and in bounded memory; unusable lines are counted and named.

In go paths, globs and datasets of the Hugging Face hub, out come `Document`s. Open `inputs` (find and check
files), `batches` (cut files into lines), `documents` (parse lines), `rejects` (name and count what cannot be
used), `sources` (field names of corpora), `conversations` (turns in the place of a text). For web pages:
`pages` (which records are pages), `archives` (cut WARC files into records), `encodings`.
"""
