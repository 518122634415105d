"""Train tokenizers, and turn documents into packed token stores.

In go files of documents, out come a tokenizer's folder and stores that training reads. Open `train`; `job`
(tokenize, pack), `work` (of one process on a batch, and the progress that a killed job resumes from); for
conversations `chat` (the same job) and `chat_template` (ids and targets).
To extend a tokenizer: `extend` (the command), `held_out`, `continued_bpe` (learn), `reachable`,
`special_tokens`, `sentencepiece_model`, `gain` (the curve); `against_base` appends tokens as others do, to
compare.
"""
