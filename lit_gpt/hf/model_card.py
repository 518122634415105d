"""README.md of an exported folder: what the model is, how and on what it was trained."""

from collections.abc import Mapping
from typing import Any

from lit_gpt.model.config import ModelConfig

_HYPERPARAMETERS = (
    "global_batch_size",
    "max_steps",
    "learning_rate",
    "min_lr",
    "lr_schedule",
    "warmup_steps",
    "weight_decay",
    "beta1",
    "beta2",
    "grad_clip",
    "precision",
    "seed",
)

_BEGINNING = {
    True: "Documents began with the BOS token; the tokenizer puts it before a text.",
    False: "Documents began without a BOS token; the tokenizer puts none before a text.",
}

_CONVERSATIONS = [
    "## Conversations",
    "",
    "It was tuned on conversations, in the format of `chat_template.jinja`, and ends its turns:",
    "",
    "```python",
    'chat = transformers.pipeline("text-generation", model=FOLDER)',
    'turns = [{"role": "user", "content": "Wer bist du?"}]',
    'print(chat(turns, max_new_tokens=200)[0]["generated_text"][-1]["content"])',
    "```",
    "",
]


def card_head(name: str) -> list[str]:
    """The front matter that the Hugging Face hub reads, and the title."""
    return ["---", "library_name: transformers", "pipeline_tag: text-generation", "---", "", f"# {name}", ""]


def model_card(
    config: ModelConfig, state: Mapping[str, Any], losses: Mapping[str, float | None], bos: bool | None
) -> str:
    """Markdown with the front matter that the Hugging Face hub reads.

    Args:
        state: state.json of the checkpoint.
        losses: by name, from metrics.csv; those that are None are left out.
        bos: whether documents began with BOS; None: not known.
    """
    lines = [
        *card_head(config.name),
        f"A Llama-style language model, pretrained from scratch: {config.n_parameters:,} parameters, "
        f"{config.n_layer} layers of width {config.n_embd}, {config.n_head} heads, {config.n_query_groups} "
        f"groups of keys and values, vocabulary {config.vocab_rows:,}, context {config.block_size:,}.",
        "",
        "## Training",
        "",
        *_training_lines(state, losses),
        "",
        "## Data",
        "",
        *_data_lines(state.get("data", {}).get("data", {})),
        "",
        *([] if bos is None else [_BEGINNING[bos], ""]),
        "The run's datapoint log names the documents that each step was fed.",
        "",
        *(_CONVERSATIONS if "chat" in state else []),
        "## Licence",
        "",
        "To be named by those who publish the model.",
        "",
    ]
    return "\n".join(lines)


def _training_lines(state: Mapping[str, Any], losses: Mapping[str, float | None]) -> list[str]:
    options = state.get("options", {})
    return [
        f"{state.get('step', 0):,} optimizer steps, {state.get('tokens', 0):,} predicted tokens. Documents "
        "were packed without padding and attended to themselves only.",
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| {name} | {options[name]} |" for name in _HYPERPARAMETERS if name in options),
        *(f"| {name} | {value:.4f} |" for name, value in losses.items() if value is not None),
    ]


def _data_lines(data: Mapping[str, Any]) -> list[str]:
    """The stores by name and fingerprint, not by their place on the machine."""
    if not data:
        return ["Not recorded."]
    names = [entry.rsplit("/", 1)[-1] for entry in data["options"]["train_data_dir"]]
    return [
        "| token store | rows | fingerprint |",
        "|---|---|---|",
        *(
            f"| {name} | {store['rows']:,} | `{store['store']}` |"
            for name, store in zip(names, data["stores"], strict=True)
        ),
    ]
