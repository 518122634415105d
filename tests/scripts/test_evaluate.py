"""scripts/evaluate.py: the harness sees the model that was trained, results are kept, mistakes are named."""

import json
import math
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from lit_gpt.cli import InputError
from lit_gpt.store.tokenizer import Tokenizer
from scripts.evaluate import EvaluateOptions, find_models, main
from scripts.evaluation import german_tasks
from scripts.evaluation.harness import load_model, load_tasks, run_tasks, seed_examples
from scripts.evaluation.results import ModelResults, Score, TaskResult, draw, load_all, write_tensorboard
from tests.pretrain.running import ROOT
from tests.scripts import our_model


def options(model: Path, output: Path, own_tasks: Path, **changes) -> EvaluateOptions:
    settings = {"tasks": ["fortsetzung"], "include_path": own_tasks, "device": "cpu"} | changes
    return EvaluateOptions(model, output, **settings)


@pytest.fixture
def datasets_cache(tmp_path_factory, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, trained_run, own_tasks):
    """The output of the command on a run, as it is typed."""
    output = tmp_path_factory.mktemp("evaluation") / "new" / "folder"
    arguments = {"model": trained_run, "output": output, "include_path": own_tasks, "tasks": "eigene"}
    done = evaluate(**arguments)
    assert done.returncode == 0, done.stderr
    return output, done.stdout


def evaluate(**flags) -> subprocess.CompletedProcess[str]:
    """The command without a network."""
    parts = [str(part) for name, value in flags.items() for part in (f"--{name}", value)]
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts/evaluate.py"), *parts, "--device", "cpu"],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"},
    )


def mean_loglikelihood(checkpoint: Path, tokenizer: Tokenizer, items: list[dict]) -> float:
    """By our own model: per item, the sum over answers of log p(answer | BOS text)."""
    model = our_model.load(checkpoint)
    total = 0.0
    for item in items:
        context = len(tokenizer.encode([item["text"]])[0]) - 1  # without EOS
        for choice in item["choices"]:
            ids = torch.tensor(tokenizer.encode([f"{item['text']} {choice}"])[0][:-1].astype(int))
            logits = our_model.logits(model, ids)
            total -= F.cross_entropy(logits[context - 1 : -1], ids[context:], reduction="sum").item()
    return total / len(items)


@pytest.mark.slow
def test_scores_are_those_of_the_trained_weights(evaluated, trained_run, tokenizer_dir, own_tasks):
    items = [json.loads(line) for line in (own_tasks / "items.jsonl").read_text().splitlines()]
    results = load_all(evaluated[0])
    assert [result.step for result in results] == [20, 40]
    for result in results:
        checkpoint = trained_run / f"iter-{result.step:08d}-ckpt.pth"
        found = result.tasks["eigene"]["fortsetzung"]
        expected = mean_loglikelihood(checkpoint, Tokenizer.load(tokenizer_dir), items)
        assert found.metrics["loglikelihood"].value == pytest.approx(expected, abs=1e-3)
        assert found.n_items == 5


@pytest.mark.slow
def test_a_run_gives_json_tensorboard_plot_and_table(evaluated):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output, printed = evaluated
    names = {path.name for path in output.iterdir()}
    assert names == {"iter-00000020.json", "iter-00000040.json", "results.png", "tensorboard"}
    events = EventAccumulator(str(output / "tensorboard")).Reload()
    results = load_all(output)
    for metric in ("acc", "loglikelihood"):
        found = [(event.step, event.value) for event in events.Scalars(f"fortsetzung/{metric}")]
        expected = [(r.step, r.tasks["eigene"]["fortsetzung"].metrics[metric].value) for r in results]
        assert [step for step, _ in found] == [20, 40]
        assert [value for _, value in found] == pytest.approx([value for _, value in expected])
        for result, (_, value) in zip(results, expected, strict=True):
            assert f"{result.name}  fortsetzung  {metric}  {value:.4f}" in printed


@pytest.mark.slow
@pytest.mark.usefixtures("datasets_cache")
def test_what_is_done_is_not_done_again(tmp_path, evaluated, trained_run, own_tasks, capsys):
    output = shutil.copytree(evaluated[0], tmp_path / "output")
    (output / "iter-00000020.json").unlink()
    first = (output / "iter-00000040.json").stat().st_mtime_ns
    main(options(trained_run, output, own_tasks, tasks=["eigene"]))
    assert "iter-00000040: already evaluated" in capsys.readouterr().out
    assert (output / "iter-00000040.json").stat().st_mtime_ns == first
    assert ModelResults.load(output / "iter-00000020.json") == load_all(evaluated[0])[0]

    # Another task is added to what is there.
    main(options(trained_run, output, own_tasks, tasks=["eigene", "fortsetzung"]))
    for result in load_all(output):
        assert list(result.tasks) == ["eigene", "fortsetzung"]
        assert result.tasks["eigene"] == result.tasks["fortsetzung"]
    assert {path.suffix for path in output.iterdir()} == {".json", ".png", ""}, "converted folders stay"


@pytest.mark.slow
@pytest.mark.usefixtures("datasets_cache")
def test_converted_folders_give_the_same(tmp_path, evaluated, converted_run, own_tasks):
    main(options(converted_run, tmp_path, own_tasks, tasks=["eigene"]))
    for ours, theirs in zip(load_all(tmp_path), load_all(evaluated[0]), strict=True):
        assert (ours.name, ours.step, ours.tasks) == (theirs.name, theirs.step, theirs.tasks)
    single = tmp_path / "single"
    main(options(converted_run / "iter-00000040", single, own_tasks, tasks=["eigene"]))
    assert load_all(single) == load_all(tmp_path)[1:]


@pytest.mark.slow
@pytest.mark.usefixtures("datasets_cache")
def test_one_damaged_checkpoint_does_not_keep_the_others(tmp_path, trained_run, own_tasks, capsys):
    run = shutil.copytree(trained_run, tmp_path / "run")
    [weights] = (run / "iter-00000020-ckpt.pth" / "model").glob("*.safetensors")
    with weights.open("r+b") as file:
        file.seek(-7, os.SEEK_END)
        file.write(b"damaged")
    output = tmp_path / "output"
    with pytest.raises(InputError, match="iter-00000020 could not be evaluated, see above"):
        main(options(run, output, own_tasks))
    assert "does not match its hash" in capsys.readouterr().err
    assert [result.step for result in load_all(output)] == [40]


@pytest.mark.slow
@pytest.mark.usefixtures("datasets_cache")
def test_results_of_other_weights_or_settings_are_not_mixed(tmp_path, evaluated, converted_run, own_tasks):
    output = shutil.copytree(evaluated[0], tmp_path / "output")
    before = (output / "iter-00000040.json").read_text()
    model = converted_run / "iter-00000040"
    with pytest.raises(InputError, match="results of other weights"):
        main(options(model, output, own_tasks))
    main(options(model, tmp_path / "new", own_tasks))
    with pytest.raises(InputError, match=r"results of other settings.*'limit': 2"):
        main(options(model, tmp_path / "new", own_tasks, limit=2))
    assert (output / "iter-00000040.json").read_text() == before


@pytest.mark.slow
@pytest.mark.usefixtures("datasets_cache")
def test_code_and_pickles_in_a_folder_run_nothing(tmp_path, hf_folder, own_tasks):
    planted = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n"
    (hf_folder / "modeling_planted.py").write_text(planted + "class Planted: ...\n")
    config = json.loads((hf_folder / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "modeling_planted.Planted",
        "AutoModelForCausalLM": "modeling_planted.Planted",
    }
    config["trust_remote_code"] = True
    (hf_folder / "config.json").write_text(json.dumps(config))
    main(options(hf_folder, tmp_path / "output", own_tasks))
    assert not list(hf_folder.rglob("ran"))

    (hf_folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": torch.zeros(2, 2)}, hf_folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"does not load on cpu: .* no file named model\.safetensors"):
        main(options(hf_folder, tmp_path / "pickled", own_tasks))
    assert not list((tmp_path / "pickled").iterdir())


@pytest.mark.slow
def test_tasks_that_cannot_be_had_are_named(tmp_path, converted_run):
    model = converted_run / "iter-00000040"
    with pytest.raises(InputError, match=r"--tasks keine_aufgabe: no preset .* no task, group or tag"):
        main(EvaluateOptions(model, tmp_path, ["keine_aufgabe"]))
    done = evaluate(model=model, output=tmp_path, tasks="germanbench")
    assert done.returncode == 2
    assert "--tasks germanbench does not load" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_folders_that_hold_nothing_to_evaluate(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match=r"not a Hugging Face folder .* a run .* or a folder of"):
            find_models(folder)


def test_results_of_another_kind_are_refused(tmp_path):
    for content in ("", "[]", "{}", '{"name": "x", "tasks": {"a": {"b": {}}}}'):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(InputError, match=r"x\.json does not hold results"):
            load_all(tmp_path)


def test_sums_leave_out_the_parts_of_a_group(tmp_path):
    def task(value, group=None):
        return TaskResult({"acc": Score(value, None)}, 5, 100, "1", group)

    results = ModelResults(
        "model", None, "", {}, {}, {"preset": {"all": task(0.5), "part": task(0.4, "all")}}
    )
    assert list(results.scores()) == [("all", "acc", Score(0.5, None))]
    results.save(tmp_path)
    assert load_all(tmp_path) == [results]
    # A model without a step has no place in a plot, but in TensorBoard.
    draw([results], tmp_path / "results.png")
    assert not (tmp_path / "results.png").exists()
    write_tensorboard([results], tmp_path / "tensorboard")


# ---- German tasks


def numbered(n_items: int, item) -> list[dict]:
    return [item(number) for number in range(n_items)]


def write_dataset(folder: Path, **splits: list[dict]) -> None:
    folder.mkdir(parents=True)
    for split, items in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))


def arc_item(number: int) -> dict:
    labels = list("ABC") if number % 2 else list("123")
    german = ["eins", "zwei", "drei"][: 1 if number == 1 else 3]
    question = {"question": f"What {number}?", "question_de": f"Was ist {number}?"}
    choices = {
        "choices": {"text": list("xyz"), "label": labels},
        "choices_de": {"text": german, "label": labels},
    }
    return {"id": str(number), **question, **choices, "answerKey": labels[1]}


def hellaswag_item(number: int) -> dict:
    german = ["läuft [step] weg", "ruht", "isst", "" if number == 1 else "singt  laut"]
    labels = {"activity_label_de": "Laufen", "ctx_de": f"Jemand {number} [title] Er", "label": "3"}
    return {**labels, "endings": list("abcd"), "endings_de": german}


def mmlu_item(number: int) -> dict:
    german = ["rot", "grün", "blau", "gelb"][: 3 if number == 7 else 4]
    question = {"question_de": f" Frage {number}? ", "choices": list("wxyz"), "answer": number % 4}
    return {**question, "choices_de": german}


def truthfulqa_item(number: int) -> dict:
    mc1 = {"choices": ["wahr", "falsch"], "labels": [1, 0]}
    mc2 = {"choices": ["wahr", "auch wahr", "falsch"], "labels": [1, 1, 0]}
    return {"question_de": f"Stimmt {number}?", "mc1_targets_de": mc1, "mc2_targets_de": mc2}


@pytest.fixture
def germanbench_data(tmp_path, monkeypatch, datasets_cache):
    """Data of the hub's shape: 30 items each, 12 in a subject of MMLU. One of each is not fully translated.

    What examples are drawn from is.
    """
    hub = tmp_path / "LeoLM"
    whole = [number for number in range(60) if number not in (1, 7)]
    arc, hellaswag, mmlu = (
        [item(number) for number in whole] for item in (arc_item, hellaswag_item, mmlu_item)
    )
    write_dataset(hub / "ArcChallenge_de", validation=arc, test=numbered(30, arc_item))
    write_dataset(hub / "HellaSwag_de", train=hellaswag, validation=numbered(30, hellaswag_item))
    write_dataset(hub / "TruthfulQA_de", validation=numbered(30, truthfulqa_item))
    sizes = {"anatomy": 30, "human_aging": 12}
    splits = ("dev", "validation", "test")
    configs = []
    for subject, n_items in sizes.items():
        parts = (mmlu[:5], mmlu[10:], numbered(n_items, mmlu_item))
        write_dataset(hub / "MMLU_de" / subject, **dict(zip(splits, parts, strict=True)))
        files = [{"split": split, "path": f"{subject}/{split}.jsonl"} for split in splits]
        configs.append({"config_name": subject, "data_files": files})
    (hub / "MMLU_de" / "README.md").write_text(f"---\n{json.dumps({'configs': configs})}\n---\n")
    subjects = {name: german_tasks.MMLU_SUBJECTS[name] for name in sizes}
    monkeypatch.setattr(german_tasks, "MMLU_SUBJECTS", subjects)
    monkeypatch.chdir(tmp_path)
    return {"arc": arc, "hellaswag": hellaswag, "mmlu": mmlu[10:]}


def drawn_as_in_version_03(items: list[dict], pool: list[dict], n_examples: int, one_more: bool):
    """(item, its examples) in the order of asking."""
    generator, order = random.Random(42), list(items)
    generator.shuffle(order)
    for item in order:
        drawn = generator.sample(pool, n_examples + one_more)
        yield item, [example for example in drawn if not one_more or example != item][:n_examples]


@pytest.mark.slow
def test_germanbench_asks_as_leolm_did(germanbench_data):
    """Every prompt and every scored answer. What is expected was compared with the fork's own code once."""
    tasks = load_tasks("germanbench", None, None)
    seed_examples(tasks)
    for task in tasks["tasks"].values():
        task.build_all_requests()
    found = {name: [instance.args for instance in task.instances] for name, task in tasks["tasks"].items()}

    def arc(item):
        return f"Frage: {item['question_de']}\nAntwort:"

    expected = []
    items = numbered(30, arc_item)
    for item, examples in drawn_as_in_version_03(items, germanbench_data["arc"], 25, one_more=True):
        prompt = "".join(f"{arc(example)} zwei\n\n" for example in examples) + arc(item)
        expected += [(prompt, f" {text}") for text in item["choices_de"]["text"]]
    assert found.pop("germanbench_arc") == expected

    def hellaswag(item):
        return f"Laufen: {item['ctx_de'].replace(' [title]', '.')}"

    expected = []
    items = numbered(30, hellaswag_item)
    for item, examples in drawn_as_in_version_03(items, germanbench_data["hellaswag"], 10, one_more=False):
        prompt = "".join(f"{hellaswag(example)} singt laut\n\n" for example in examples)
        endings = ["läuft weg", "ruht", "isst", item["endings_de"][3].replace("  ", " ")]
        expected += [(prompt + hellaswag(item), f" {ending}") for ending in endings]
    assert found.pop("germanbench_hellaswag") == expected

    def mmlu(item):
        options = "".join(f"{letter}. {answer}\n" for letter, answer in zip("ABCD", item["choices_de"]))  # noqa: B905
        return f"Frage: {item['question_de'].strip()}\nOptionen:\n{options}Antwort: "

    for subject, size, german in (("anatomy", 30, "Anatomie"), ("human_aging", 12, "Menschliches Aaltern")):
        expected = []
        items = numbered(size, mmlu_item)
        for item, examples in drawn_as_in_version_03(items, germanbench_data["mmlu"], 5, one_more=True):
            prompt = f"Es folgen multiple-choice Fragen (mit Antworten) über das Thema {german}.\n\n"
            prompt += "".join(f"{mmlu(e)} {e['choices_de'][e['answer']]}\n\n" for e in examples)
            expected += [(prompt + mmlu(item), f" {answer}") for answer in item["choices_de"]]
        assert found.pop(f"germanbench_mmlu_{subject}") == expected

    assert german_tasks.PRIMER.startswith("F: Was ist die menschliche Lebenserwartung")
    for kind, answers in (("mc1", ["wahr", "falsch"]), ("mc2", ["wahr", "auch wahr", "falsch"])):
        items = drawn_as_in_version_03(numbered(30, truthfulqa_item), [{}], 0, one_more=False)
        prompts = [f"{german_tasks.PRIMER}\n\nF: {item['question_de']}\nA:" for item, _ in items]
        expected = [(prompt, f" {answer}") for prompt in prompts for answer in answers]
        assert found.pop(f"germanbench_truthfulqa_{kind}") == expected
    assert not found


@pytest.mark.slow
@pytest.mark.usefixtures("germanbench_data")
def test_all_models_are_asked_the_same(converted_run):
    tasks = load_tasks("germanbench", None, None)
    asked = []
    for name in ("iter-00000020", "iter-00000040"):
        run_tasks(load_model(converted_run / name, dtype="auto", device="cpu", batch_size=16), tasks, limit=3)
        asked.append([instance.args for task in tasks["tasks"].values() for instance in task.instances])
    assert asked[0] == asked[1]


@pytest.mark.slow
@pytest.mark.usefixtures("germanbench_data")
def test_germanbench_counts_every_item_and_subjects_alike(tmp_path, converted_run, capsys):
    model, output = converted_run / "iter-00000040", tmp_path / "output"
    settings = EvaluateOptions(model, output, ["germanbench"], device="cpu")
    main(settings)
    [results] = load_all(output)
    found = results.tasks["germanbench"]
    assert {name: result.n_items for name, result in found.items() if result.group is None} == {
        "germanbench_arc": 30,
        "germanbench_hellaswag": 30,
        "germanbench_mmlu": 42,
        "germanbench_truthfulqa_mc1": 30,
        "germanbench_truthfulqa_mc2": 30,
    }
    subjects = [result for result in found.values() if result.group == "germanbench_mmlu"]
    scores = [subject.metrics["acc"].value for subject in subjects]
    assert scores[0] != scores[1]
    assert found["germanbench_mmlu"].metrics["acc"].value == pytest.approx(sum(scores) / 2)

    # Results of prompts that were other ones are not taken for these.
    path = output / "iter-00000040.json"
    path.write_text(path.read_text().replace('"version": "2"', '"version": "1"'))
    capsys.readouterr()
    main(settings)
    assert "has results of an earlier version of germanbench" in capsys.readouterr().out
    assert load_all(output) == [results]
    main(settings)
    assert "iter-00000040: already evaluated" in capsys.readouterr().out


@given(st.lists(st.floats(-800, 0), min_size=2), st.data())
def test_true_share_is_the_true_answers_part_of_the_probability(likelihoods, data):
    n_true = data.draw(st.integers(1, len(likelihoods)))
    labels = [1] * n_true + [0] * (len(likelihoods) - n_true)
    if n_true < len(labels):
        labels[-1] = (
            data.draw(st.integers(0, 1)) if n_true + 1 < len(labels) else 0
        )  # as if after a false one
    item = {"mc2_targets_de": {"labels": labels}}
    share = german_tasks.true_share(item, [(likelihood, False) for likelihood in likelihoods])["acc"]
    # In logarithms throughout: a second way to the same number.
    values = torch.tensor(likelihoods, dtype=torch.float64)
    expected = math.exp(torch.logsumexp(values[:n_true], 0) - torch.logsumexp(values, 0))
    assert math.isclose(share, expected, rel_tol=1e-9, abs_tol=1e-300)
