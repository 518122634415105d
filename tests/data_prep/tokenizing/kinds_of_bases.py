"""Small tokenizers of each kind that can be extended, and text of a kind that they have not learned from."""

import json
from pathlib import Path

from data_prep.tokenizing import train
from tests.conftest import german_texts

PASSAGES = Path(train.__file__).parents[1] / "sample_passages"
KINDS = ["byte_level", "ignore_merges", "sentencepiece", "llama2", "added", "gpt2"]


def passages():
    """Paragraphs of another kind of text than those that the base has learned from."""
    return [part for file in sorted(PASSAGES.glob("*.txt")) for part in file.read_text().split("\n\n")]


def base_of_kind(kind, folder):
    """A small tokenizer of one kind, trained on other text."""
    texts = list(german_texts(60, seed=1))
    if kind in ("byte_level", "ignore_merges", "gpt2"):
        train.train_byte_level(texts, 400, folder, ["<|im_end|>"])
    else:
        train.train_sentencepiece(texts, 400, folder)
    definition = json.loads((folder / "tokenizer.json").read_text())
    model, added = definition["model"], definition["added_tokens"]
    if kind == "ignore_merges":  # Llama 3: added tokens are no part of the model's vocabulary
        model["ignore_merges"] = True
        model["merges"] = model["merges"][:-20]  # the last tokens are made of complete words only
        highest = max(model["vocab"].values()) + 1
        added.append({**added[0], "id": highest, "content": "<|reserved|>"})
    if kind == "gpt2":  # with merges as older libraries wrote them
        model["merges"] = [" ".join(merge) for merge in model["merges"]]
        definition["pre_tokenizer"] = {
            "type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True,
        }  # fmt: skip
    if kind in ("llama2", "added"):
        model["vocab"] = {name.replace(" ", "▁"): number for name, number in model["vocab"].items()}
        model["merges"] = [[part.replace(" ", "▁") for part in merge] for merge in model["merges"]]
    if kind == "llama2":
        prepend, replace = {"type": "Prepend", "prepend": "▁"}, {"pattern": {"String": " "}, "content": "▁"}
        definition["normalizer"] = {
            "type": "Sequence",
            "normalizers": [prepend, {"type": "Replace", **replace}],
        }
        backward = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
        strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
        definition["decoder"]["decoders"] = [backward, *definition["decoder"]["decoders"], strip]
    if kind == "added":  # as the released tokenizer: single characters added, no byte tokens
        definition["pre_tokenizer"] = {
            "type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": False,
        }  # fmt: skip
        for number in range(256):
            del model["vocab"][f"<0x{number:02X}>"]
        names = sorted(model["vocab"], key=model["vocab"].get)
        model["vocab"] = {name: number for number, name in enumerate(names)}
        for number, content in enumerate("\n<$", len(names)):
            added.append({**added[0], "id": number, "content": content, "special": False, "normalized": True})
        definition["decoder"] = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
        (folder / "tokenizer.model").unlink()
        config = json.loads((folder / "tokenizer_config.json").read_text())
        config["added_tokens_decoder"] = {
            str(token["id"]): {name: value for name, value in token.items() if name != "id"}
            for token in added
        }
        config |= {"legacy": False, "add_prefix_space": False, "tokenizer_class": "LlamaTokenizer"}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    return folder
