"""Train tokenizers, and turn documents into packed token stores.

In go files of documents, out come a tokenizer's folder and stores that training reads. Open `train`; `job`
(the tokenizing job), `encode` (the work of one process), `state` (resuming); `packing`.
"""
