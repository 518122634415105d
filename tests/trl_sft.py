"""What a user of TRL types to tune a folder on conversations, run by a Python that has TRL.

trl_sft.py FOLDER MESSAGES SCRATCH STEPS: all conversations are one step's batch, in two micro-batches of the
same number of them. Prints one line of JSON: the data as TRL prepares them, and its log.
"""

import json
import sys
from pathlib import Path

from datasets import Dataset
from trl import SFTConfig, SFTTrainer


def main(folder: str, messages: Path, scratch: str, steps: int) -> dict:
    records = [json.loads(line) for line in messages.read_text(encoding="utf-8").splitlines()]
    assert len(records) % 2 == 0, "one would be left out"
    data = Dataset.from_list([{"messages": record["messages"]} for record in records])
    config = SFTConfig(
        scratch,
        assistant_only_loss=True,
        loss_type="nll",
        max_length=None,
        per_device_train_batch_size=len(records) // 2,
        gradient_accumulation_steps=2,
        max_steps=steps,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        weight_decay=0.1,
        max_grad_norm=1.0,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
    )
    trainer = SFTTrainer(folder, config, train_dataset=data)
    trainer.train()
    columns = {name: trainer.train_dataset[name][:] for name in ("input_ids", "labels")}
    return {**columns, "log": [entry for entry in trainer.state.log_history if "loss" in entry]}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))))
