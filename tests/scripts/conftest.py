"""A small trained model and what clients are given of it."""

import json
import shutil

import pytest

from scripts.convert_lit_checkpoint import ConvertOptions, convert
from tests.pretrain import running

STEPS = 40


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory, train_store_dir):
    """The folder of a run with two checkpoints, of steps 20 and 40. Never write into it."""
    out_dir = tmp_path_factory.mktemp("run")
    done = running.train(out_dir, train_store_dir, max_steps=STEPS)
    assert done.returncode == 0, done.stderr
    return out_dir


@pytest.fixture(scope="session")
def converted_run(tmp_path_factory, trained_run):
    """Its checkpoints as Hugging Face folders iter-00000020 and iter-00000040. Never write into it."""
    folder = tmp_path_factory.mktemp("hf")
    for step in (20, 40):
        convert(ConvertOptions(trained_run / f"iter-{step:08d}-ckpt.pth", folder / f"iter-{step:08d}"))
    return folder


@pytest.fixture
def hf_folder(tmp_path, converted_run):
    """A copy of the last one, to spoil."""
    return shutil.copytree(converted_run / f"iter-{STEPS:08d}", tmp_path / "model")


@pytest.fixture(scope="session")
def own_tasks(tmp_path_factory):
    """A folder of task files: `fortsetzung` scores likelihoods of continuations, its data is local."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "fortsetzung.yaml").write_text(
        f"""
task: fortsetzung
tag: eigene
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{folder}/items.jsonl"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: choices
doc_to_target: answer
process_results: !function likelihood.score
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: loglikelihood, aggregation: mean, higher_is_better: true}}
""",
        encoding="utf-8",
    )
    (folder / "likelihood.py").write_text(
        """
def score(item, results):
    likelihoods = [likelihood for likelihood, _ in results]
    best = likelihoods.index(max(likelihoods))
    return {"acc": float(best == item["answer"]), "loglikelihood": sum(likelihoods)}
""",
        encoding="utf-8",
    )
    texts = ["Der Wald ist", "Die Schule auf dem Land", "Ein Haus", "Über die", "Mutter von"]
    choices = ["die Wasserstraße", "von Zug", "und"]
    items = [{"text": text, "choices": choices, "answer": at % 3} for at, text in enumerate(texts)]
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return folder
