"""What a user of transformers types, run by a Python that has some version of it and nothing of ours.

client_program.py FOLDER SCRATCH TEXTS N_TOKENS: prints one line of JSON.
"""

import json
import sys
from pathlib import Path

import tokenizers
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

CONVERSATION = [
    {"role": "user", "content": "Wer bist du?"},
    {"role": "assistant", "content": "Ein Modell."},
    {"role": "user", "content": "Und  du? "},
]


def main(folder: str, scratch: str, texts: list[str], n_tokens: int) -> dict:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    length = {"do_sample": False, "min_new_tokens": n_tokens, "max_new_tokens": n_tokens}

    def answers(inputs) -> list[list[int]]:
        return model.generate(**inputs, **length)[:, inputs["input_ids"].shape[1] :].tolist()

    one_by_one = [tokenizer(text, return_tensors="pt") for text in texts]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    plain = tokenizers.Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    writer = pipeline("text-generation", model=folder, device="cpu")

    model.save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    again, tokenizer_again = (
        AutoModelForCausalLM.from_pretrained(scratch),
        AutoTokenizer.from_pretrained(scratch),
    )
    with torch.no_grad():
        logits, logits_again = (one(batch["input_ids"]).logits for one in (model, again))
    return {
        "version": transformers.__version__,
        "inputs": sorted(one_by_one[0]),
        "ids": [inputs["input_ids"][0].tolist() for inputs in one_by_one],
        "literal_ids": [tokenizer.encode(text, split_special_tokens=True) for text in texts],
        "tokenizers_ids": [plain.encode(text).ids for text in texts],
        "ids_again": [tokenizer_again(text)["input_ids"] for text in texts],
        "answers": [answers(inputs)[0] for inputs in one_by_one],
        "batch_ids": batch["input_ids"].tolist(),
        "batch_mask": batch["attention_mask"].tolist(),
        "batch_answers": answers(batch),
        "decoded": [
            tokenizer.decode(model.generate(**i, **length)[0], skip_special_tokens=True) for i in one_by_one
        ],
        "pipeline": [writer(text, **length)[0]["generated_text"] for text in texts],
        "pipeline_batch": [w[0]["generated_text"] for w in writer(texts, batch_size=len(texts), **length)],
        "conversation_ids": [
            one.apply_chat_template(CONVERSATION, add_generation_prompt=True, return_dict=True)["input_ids"]
            for one in (tokenizer, tokenizer_again)
        ],
        "answer": writer(CONVERSATION, do_sample=False, max_new_tokens=n_tokens)[0]["generated_text"][-1],
        "same_logits_again": torch.equal(logits, logits_again),
        "pad": [tokenizer.pad_token, tokenizer.pad_token_id, model.generation_config.pad_token_id],
        "padding_row": model.get_input_embeddings().padding_idx,
        "model_max_length": tokenizer.model_max_length,
        "vocabulary": len(tokenizer),
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4]))))
