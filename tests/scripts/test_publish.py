"""scripts/publish.py against a hub on the loopback, and what it refuses to publish."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_gpt.cli import InputError
from scripts.publish import PublishOptions, main, plan
from tests.pretrain.running import ROOT
from tests.scripts import local_hub

TOKEN = "hf_geheimnis"


@pytest.fixture
def hub():
    with local_hub.serve(TOKEN) as running:
        yield running


def run(hub, tmp_path, *command, token: str | None = TOKEN) -> subprocess.CompletedProcess[str]:
    """A program that knows no other hub and no other token than these."""
    home = {"HOME": str(tmp_path / "home"), "HF_HOME": str(tmp_path / "home/hf")}
    network = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "no_proxy": "*"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= home | network | {"OMP_NUM_THREADS": "1"} | ({} if token is None else {"HF_TOKEN": token})
    return subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, timeout=300, env=environment
    )


def publish(hub, tmp_path, *flags, token: str | None = TOKEN) -> subprocess.CompletedProcess[str]:
    """The command; the token must be nowhere afterwards."""
    done = run(hub, tmp_path, ROOT / "scripts/publish.py", "--repo_id", "org/klein", *flags, token=token)
    written = [path.read_bytes() for path in tmp_path.glob("home/**/*") if path.is_file()]
    assert not any((token or TOKEN).encode() in text for text in [done.stdout.encode(), *written])
    assert (token or TOKEN) not in done.stderr
    assert "Traceback" not in done.stderr
    return done


def content(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.slow
def test_everything_arrives_where_the_dry_run_says(tmp_path, hub, converted_run, trained_run):
    model, log = converted_run / "iter-00000040", trained_run / "datapoints"
    flags = ["--model", model, "--checkpoints", converted_run, "--datapoints", log]
    shown = publish(hub, tmp_path, *flags, "--dry_run", token=None)
    assert shown.returncode == 0, shown.stderr
    assert not hub.repositories

    done = publish(hub, tmp_path, *flags)
    assert done.returncode == 0, done.stderr
    found = {
        (kind.removesuffix("s"), name, branch, path): len(file)
        for (kind, name), repository in hub.repositories.items()
        for branch, files in repository.branches.items()
        for path, file in files.items()
        if path != ".gitattributes"
    }
    expected, target = {}, None
    for line in shown.stdout.splitlines():
        if match := re.fullmatch(r".* -> (model|dataset) (\S+), branch (\S+)", line):
            target = match.groups()
        elif match := re.fullmatch(r" *([\d,]+)  (\S+)", line):
            expected[(*target, match[2])] = int(match[1].replace(",", ""))
    assert found == expected
    assert f"{sum(found.values()):,}  bytes in {len(found)} files" in shown.stdout
    assert done.stdout.startswith(shown.stdout)

    models, log_repository = (
        hub.repositories["models", "org/klein"],
        hub.repositories["datasets", "org/klein-datapoints"],
    )
    assert models.private
    assert log_repository.private
    for branch, folder in {"main": model, **{path.name: path for path in converted_run.iterdir()}}.items():
        assert models.branches[branch] == {".gitattributes": b"", **content(folder)}
    assert log_repository.branches["main"] == {".gitattributes": b"", **content(log)}


@pytest.mark.slow
def test_transformers_loads_a_published_revision(tmp_path, hub, converted_run):
    assert publish(hub, tmp_path, "--checkpoints", converted_run).returncode == 0
    program = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
name, revision, output = sys.argv[1:]
assert AutoTokenizer.from_pretrained(name, revision=revision).encode("Wald")
AutoModelForCausalLM.from_pretrained(name, revision=revision).save_pretrained(output)
"""
    loaded = run(hub, tmp_path, "-c", program, "org/klein", "iter-00000020", tmp_path / "loaded")
    assert loaded.returncode == 0, loaded.stderr
    ours = load_file(converted_run / "iter-00000020/model.safetensors")
    theirs = load_file(tmp_path / "loaded/model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
def test_an_interrupted_upload_goes_on(tmp_path, hub, hf_folder):
    hub.full = True
    done = publish(hub, tmp_path, "--model", hf_folder)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("run this again to continue")
    assert "storage limit reached" in done.stderr.splitlines()[-1]
    hub.full = False
    assert publish(hub, tmp_path, "--model", hf_folder, "--public").returncode == 0
    assert hub.n_sent == 1
    assert publish(hub, tmp_path, "--model", hf_folder).returncode == 0
    assert hub.n_sent == 1, "weights that are there are not sent again"

    # The same weights in two files: the old one must not stay beside them.
    weights = load_file(hf_folder / "model.safetensors")
    (hf_folder / "model.safetensors").unlink()
    places = {name: f"model-0000{1 + at % 2}-of-00002.safetensors" for at, name in enumerate(sorted(weights))}
    for place in set(places.values()):
        save_file({name: weights[name] for name in weights if places[name] == place}, hf_folder / place)
    (hf_folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    repository = hub.repositories["models", "org/klein"]
    repository.branches["main"]["picture.png"] = b"of its maker"
    assert publish(hub, tmp_path, "--model", hf_folder).returncode == 0
    kept = {".gitattributes": b"", "picture.png": b"of its maker"}
    assert repository.branches["main"] == {**kept, **content(hf_folder)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, "HF_TOKEN is not set"),
        ("hf_falsch", "401"),
        ("hf_zwei\nzeilen", "HF_TOKEN has"),
        ("hf_größe", "HF_TOKEN has"),
    ],
)
def test_a_token_that_does_not_do(tmp_path, hub, converted_run, token, message):
    done = publish(hub, tmp_path, "--model", converted_run / "iter-00000020", token=token)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert not hub.repositories


def spoil(name: str, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    match name:
        case "a pickle":
            (folder / "training_args.bin").write_bytes(b"")
        case "code":
            (folder / "modeling.py").touch()
        case "a name of code":
            (folder / "config.json").write_text(json.dumps(config | {"auto_map": {}}))
        case "a hidden file":
            (folder / ".env").touch()
        case "a link":
            (folder / "LICENSE").symlink_to("/etc/passwd")
        case "a folder":
            (folder / "runs").mkdir()
            (folder / "runs" / "x.json").touch()
        case "no card":
            (folder / "README.md").unlink()
        case "no weights":
            (folder / "model.safetensors").unlink()
        case "cut weights":
            os.truncate(folder / "model.safetensors", 5000)
        case "other weights":
            shutil.copy(folder / "model.safetensors", folder / "model-00001-of-00002.safetensors")
        case "a torn configuration":
            (folder / "config.json").write_text('{"model_type"')
        case "an index of other tensors":
            index = {"weight_map": {"lm_head.weight": "model.safetensors"}}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        case "a tensor that the index leaves out":
            weights = load_file(folder / "model.safetensors")
            index = {"weight_map": dict.fromkeys(weights, "model.safetensors")}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
            save_file(weights | {"secret": torch.ones(3)}, folder / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a pickle", r"training_args\.bin is none of"),
        ("code", r"modeling\.py is none of"),
        ("a name of code", r"config\.json names code of its own"),
        ("a hidden file", r"\.env is none of"),
        ("a link", "LICENSE is none of"),
        ("a folder", r"runs/x\.json does not belong"),
        ("no card", r"has no README\.md"),
        ("no weights", r"has no weights in model\.safetensors"),
        ("cut weights", r"model\.safetensors: no readable safetensors file"),
        ("other weights", r"model-00001-of-00002\.safetensors is not part of the model"),
        ("a torn configuration", r"config\.json is not readable JSON"),
        ("an index of other tensors", r"model\.embed_tokens\.weight is a tensor that .* not name"),
        ("a tensor that the index leaves out", r"model\.safetensors: secret is a tensor that .* not name"),
    ],
)
def test_a_folder_that_is_not_whole_or_holds_more(hf_folder, name, message):
    plan(PublishOptions("org/klein", model=hf_folder))
    spoil(name, hf_folder)
    with pytest.raises(InputError, match=message):
        plan(PublishOptions("org/klein", model=hf_folder))
    with pytest.raises(InputError, match=message):
        main(
            PublishOptions(
                "org/klein", checkpoints=shutil.move(hf_folder, hf_folder.parent / "a/iter-1").parent
            )
        )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "nothing to publish"),
        ({"model": "missing"}, "missing: no such folder"),
        ({"checkpoints": "empty"}, "has no folder iter-N"),
        ({"datapoints": "empty"}, "empty is empty"),
        ({"datapoints": "log"}, r"notes\.txt is none of"),
    ],
)
def test_nothing_to_publish(tmp_path, flags, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "notes.txt").touch()
    options = PublishOptions("org/klein", **{name: tmp_path / folder for name, folder in flags.items()})
    with pytest.raises(InputError, match=message):
        plan(options)


@pytest.mark.parametrize("name", ["klein", "org/klein/main", "org/", "../klein", "org/kl ein", "org/klein\n"])
def test_a_name_that_is_none(name):
    with pytest.raises(InputError, match="must be ORGANISATION/NAME"):
        plan(PublishOptions(name))
