"""scripts/datapoints.py, as it is typed: on a run over two stores, one of them with the nastiest of ids."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_prep.tokenizing import job
from lit_gpt.store.token_store import TokenStore
from pretrain.datapoints.files import RunLog, part_files, write_part
from pretrain.datapoints.replay import Replay
from pretrain.datapoints.reports import count_documents
from pretrain.datapoints.stage_table import COLUMNS, count_stages
from scripts import datapoints as command
from tests.masked_stores import conversations
from tests.pretrain.datapoints.staged import log_stages, open_stages
from tests.pretrain.feeding import GLOBAL_BATCH, log_steps, open_data

ROOT = Path(__file__).resolve().parents[2]
STEPS = 150
NASTY = [
    "../../etc/passwd",
    'say "ja"',
    "zwei\nZeilen",
    "Ünï©ode 🦊",
    "--run",
    "x" * 10_000,
    "doppelt",
    "doppelt",
]


def datapoints(*arguments) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts/datapoints.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
    )


@pytest.fixture(scope="module")
def nasty_store(tmp_path_factory, tokenizer_dir):
    folder = tmp_path_factory.mktemp("nasty")
    lines = [
        {"id": name, "text": f"Satz {number} von Fuchs und Gans. " * 9} for number, name in enumerate(NASTY)
    ]
    (folder / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    job.tokenize(
        job.Options(input=[str(folder / "in.jsonl")], tokenizer=tokenizer_dir, output=folder / "store")
    )
    return folder / "store"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, train_store_dir, nasty_store):
    folder = tmp_path_factory.mktemp("run")
    data = open_data(f"{train_store_dir}:2", f"{nasty_store}:1", block_size=512)
    log_steps(folder, data, 0, STEPS, commits={100, STEPS}, skipped={3}, with_losses=True)
    return folder


@pytest.fixture(scope="module")
def exported(run_dir):
    output = run_dir / "log.parquet"
    result = datapoints("export", "--run", run_dir, "--output", output)
    assert result.returncode == 0, result.stderr
    return pq.read_table(output).to_pylist()


def test_step_prints_the_text_that_was_fed_with_ids(run_dir, corpus_files, exported):
    result = datapoints("step", "--run", run_dir, "--step", 3)
    assert result.returncode == 0, result.stderr
    rows = re.split(r"^=== ", result.stdout, flags=re.MULTILINE)[1:]
    assert len(rows) == GLOBAL_BATCH
    assert all(
        row.startswith(f"step 3, sample {12 + n}, rank 0, step skipped: row ") for n, row in enumerate(rows)
    )
    texts = {
        json.loads(line)["id"]: json.loads(line)["text"]
        for file in corpus_files
        for line in file.read_text().splitlines()
    }
    segments = re.findall(
        r'^--- document (".*"), targets (\d+) to (\d+) of (\d+), loss (.+)\n([^=-]*)', result.stdout, re.M
    )
    logged = [segment for segment in exported if segment["iter_num"] == 3]
    assert [json.loads(segment[0]) for segment in segments] == [segment["data_id"] for segment in logged]
    compared = 0
    assert [segment[4] for segment in segments] == [f"{segment['loss']:.4f}" for segment in logged]
    for name, first, last, total, _, text in segments:
        whole = texts.get(json.loads(name))
        if whole is not None and int(first) == 0 and int(last) == int(total) - 1:
            assert text.rstrip("\n") == whole.rstrip("\n")
            compared += 1
    assert compared > 0


@pytest.mark.parametrize("name", ["a long one", "zwei\nZeilen", "x" * 10_000])
def test_doc_finds_every_step_by_the_order_and_by_the_log(run_dir, exported, name):
    if name == "a long one":
        name = next(segment["data_id"] for segment in exported if segment["start"] > 0)
    result = datapoints("doc", f"--run={run_dir}", f"--id={name}")
    assert result.returncode == 0, result.stderr
    printed = re.findall(r"^step (\d+), sample (\d+): targets (\d+) to (\d+)$", result.stdout, re.MULTILINE)
    expected = [
        (p["iter_num"], p["sample"], p["start"], p["start"] + p["length"] - 1)
        for p in exported
        if p["data_id"] == name
    ]
    assert [tuple(map(int, line)) for line in printed] == sorted(expected)
    assert expected


def test_doc_finds_all_documents_of_a_repeated_id(run_dir):
    result = datapoints("doc", "--run", run_dir, "--id", "doppelt")
    assert result.returncode == 0, result.stderr
    assert len(re.findall(r"^document \d+ of shard 0 in ", result.stdout, re.MULTILINE)) == 2


def test_losses_prints_the_documents_that_stand_out(run_dir, exported):
    result = datapoints("losses", "--run", run_dir, "--by", "document", "--steps", "101-150", "--top", 5)
    assert result.returncode == 0, result.stderr
    header, *lines = result.stdout.splitlines()
    assert re.split("  +", header.strip())[:3] == ["loss", "targets", "seen"]
    in_view = [line for line in exported if line["iter_num"] > 100]
    for line in lines:
        name = json.JSONDecoder().raw_decode(line[line.index('"') :])[0]
        own = [line for line in in_view if line["data_id"] == name]
        mean = sum(n["loss"] * n["length"] for n in own) / sum(n["length"] for n in own)
        assert line.split()[0] == f"{mean:.4f}" or name == "doppelt"
    assert len(lines) == 5
    result = datapoints("losses", "--run", run_dir, "--steps", "151-160")
    assert result.returncode == 2
    assert "--steps 151-160: give A-B, steps of the log, which ends at step 150" in result.stderr


def test_verify_agrees_and_disagrees(run_dir, tmp_path):
    result = datapoints("verify", "--run", run_dir)
    assert result.returncode == 0, result.stderr
    assert f"{STEPS} steps, {STEPS * GLOBAL_BATCH} rows" in result.stdout

    copy = shutil.copytree(run_dir, tmp_path / "run")
    part = part_files(copy / "datapoints")[1]
    table = pq.read_table(part)
    document = table["document"].combine_chunks()
    values = document.values.to_numpy().copy()
    values[0] += 1
    changed = type(document).from_arrays(document.offsets, values, type=document.type)
    at = table.schema.get_field_index("document")
    write_part(part, table.set_column(at, table.schema.field(at), changed))
    result = datapoints("verify", "--run", copy)
    assert result.returncode == 1
    assert "step 101, sample 600: its segments are not those of the packing" in result.stdout
    name = pq.read_table(part)["document"][0].as_py()[0]
    data = open_data(
        *[s.rpartition(":")[0] for s in RunLog(copy).periods[0].data["options"]["train_data_dir"]]
    )
    store, shard = table["store"][0].as_py(), table["shard"][0].as_py()
    wrong = data.stores[store].store.document_info(shard, np.array([name]))[0].id
    result = datapoints("doc", f"--run={copy}", f"--id={wrong}")
    assert result.returncode == 1
    assert "0 time(s) by the order, 1 by the log" in result.stdout


def test_a_store_that_moved_is_named_and_can_be_given(run_dir, train_store_dir, nasty_store, tmp_path):
    data_json = run_dir / "datapoints/data.json"
    before = data_json.read_text()
    data_json.write_text(before.replace(str(train_store_dir), "/gone"))
    try:
        result = datapoints("verify", "--run", run_dir)
        assert result.returncode == 2
        assert result.stderr.startswith("error: /gone is not a token store")
        result = datapoints("verify", "--run", run_dir, "--train_data_dir", train_store_dir, nasty_store)
        assert result.returncode == 0, result.stderr
        result = datapoints("verify", "--run", run_dir, "--train_data_dir", nasty_store, nasty_store)
        assert result.returncode == 2
        assert "no longer what the run read" in result.stderr
        moved = ["--train_data_dir", train_store_dir, nasty_store, "--packing_dir", tmp_path / "packings"]
        assert datapoints("verify", "--run", run_dir, *moved).returncode == 0
        assert len(list((tmp_path / "packings").glob("packing-*"))) == 2
    finally:
        data_json.write_text(before)


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["doc", "--help"], ["export", "-h"]])
def test_help_is_no_error(arguments):
    result = datapoints(*arguments)
    assert (result.returncode, result.stderr) == (0, "")
    assert f"datapoints.py {arguments[0]}" in result.stdout or "datapoints.py step" in result.stdout
    if arguments[0] == "export":
        assert "NAME.parquet: a line a segment. NAME.jsonl: a line a step" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["step", "--run", "RUN", "--step", "9999"], "--step 9999 is not in the log, which ends at step 150"),
        (["doc", "--run", "RUN", "--id", "nie gesehen"], "'nie gesehen' is in no store"),
        (["verify", "--run", "/nowhere"], "/nowhere has no datapoints/data.json"),
        (["verify", "--run", "RUN", "--wrong", "1"], "wrong"),
        (["eat", "--run", "RUN"], "'eat' is not a command; known: step, doc"),
        (["verfy", "--run", "RUN"], "did you mean verify?"),
        ([], "name a command: step, doc, verify, export, stats, stages, losses; --help says"),
        (["export", "--run", "RUN", "--output", "/proc/none/x.parquet"], "cannot write there"),
        (["export", "--run", "RUN", "--output", "e.csv"], "a name that ends in .parquet or .jsonl"),
        (["export", "--run", "RUN", "--output", "e.jsonl", "--format", "parquet"], "that ends in .parquet"),
    ],
)
def test_bad_input_is_one_line_and_2(run_dir, arguments, message):
    result = datapoints(*(str(run_dir) if argument == "RUN" else argument for argument in arguments))
    assert result.returncode == 2
    assert message in result.stderr
    assert re.fullmatch(r"error: .+\n", result.stderr)


def test_exports_hold_every_piece_with_the_originals_fields(run_dir, exported):
    logged = RunLog(run_dir)
    n_segments = sum(len(logged.step_rows(step)["document"].combine_chunks().flatten()) for step in (1, 2, 3))
    assert sum(segment["iter_num"] <= 3 for segment in exported) == n_segments
    assert {segment["iter_num"] for segment in exported if not segment["applied"]} == {3}

    output = run_dir / "log.jsonl"
    result = datapoints("export", "--run", run_dir, "--output", output, "--format", "jsonl")
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [line["iter_num"] for line in lines] == list(range(1, STEPS + 1))
    assert set(lines[0]) == {"time", "iter_num", "data_id", "file_id", "process_rank"}
    assert lines[4]["time"] == 1.7e9 + 5
    for line in lines[::40]:
        of_step = [segment for segment in exported if segment["iter_num"] == line["iter_num"]]
        assert line["data_id"] == [segment["data_id"] for segment in of_step]
        assert line["file_id"] == [segment["file_id"] for segment in of_step]
        assert line["process_rank"] == 0


def test_stats_count_documents_and_sources(run_dir, exported, train_store_dir, nasty_store):
    picture = run_dir / "stats.png"
    result = datapoints("stats", "--run", run_dir, "--output", picture)
    assert result.returncode == 0, result.stderr
    assert picture.read_bytes()[:4] == b"\x89PNG"
    # Ids repeat in the nasty store; there, a document is its id and first sample's shard and number.
    seen = Counter(p["data_id"] for p in exported if p["start"] == 0 and p["store"] == str(train_store_dir))
    total = sum(segment["length"] for segment in exported)
    assert f"steps: {STEPS}, of which skipped: 1" in result.stdout
    assert f"targets: {total:,}" in result.stdout
    data = open_data(train_store_dir, nasty_store)
    n_documents = sum(packed.store.n_documents for packed in data.stores)
    assert f"documents seen: {len(seen) + len(NASTY):,} of {n_documents:,}" in result.stdout
    share = sum(p["length"] for p in exported if p["store"] == str(nasty_store)) / total
    assert re.search(rf"{share:.2%}  .*in\.jsonl", result.stdout)


def test_stages_of_a_plain_run_are_a_line_for_each_store(run_dir, train_store_dir, nasty_store):
    result = datapoints("stages", "--run", run_dir)
    assert result.returncode == 0, result.stderr
    title, *lines = result.stdout.splitlines()
    assert re.split("  +", title) == [*COLUMNS, "store"]
    assert [line.split()[0] + line.split()[1] + line.split()[-1] for line in lines] == [
        f"-1-{STEPS}{store}" for store in (train_store_dir, nasty_store)
    ]
    assert sum(int(line.split()[2]) for line in lines) == STEPS * GLOBAL_BATCH


def test_commands_cross_the_borders_of_stages(tmp_path, train_store_dir, val_store_dir):
    stages = open_stages(train_store_dir, val_store_dir)
    log_stages(tmp_path, stages, 0, 72, commits={72})
    result = datapoints("step", "--run", tmp_path, "--step", 61)
    assert result.stdout.startswith("=== stage long, step 61, sample 360, rank 0: row ")
    name = json.loads(re.findall(r'^--- document (".*"), targets 0', result.stdout, re.MULTILINE)[0])
    assert "by the order and by the log" in datapoints("doc", "--run", tmp_path, f"--id={name}").stdout
    assert "72 steps, 420 rows" in datapoints("verify", "--run", tmp_path).stdout
    table = datapoints("stages", "--run", tmp_path).stdout.splitlines()
    assert Counter(line.split()[0] for line in table[1:]) == {"adapt": 2, "long": 2, "anneal": 2}


def test_a_mixture_of_plain_and_masked_stores_is_read_by_ids_and_proven_with_its_mask(
    tmp_path, train_store_dir, masked_store_dir, capsys
):
    data = open_data(f"{train_store_dir}:1", f"{masked_store_dir}:1")
    log_steps(tmp_path, data, 0, 20, commits={20})
    run = {"run": tmp_path}
    command.verify(command.VerifyOptions(**run))
    assert f"20 steps, {20 * GLOBAL_BATCH} rows" in capsys.readouterr().out

    command.print_step(command.StepOptions(**run, step=7))
    shown = re.findall(
        r'^--- document "chat/(\d+)", targets 0 to .*; (\d+) of them count, the text in ⟦ ⟧\n([^-=]*)',
        capsys.readouterr().out,
        re.M,
    )
    asked = list(conversations(300))
    store = TokenStore.open(masked_store_dir)
    for number, counted, text in shown:
        expected = "".join(f"⟦{part}⟧" if target else part for part, target in asked[int(number)])
        assert text.rstrip("\n") == expected.replace("⟦⟧", "")
        [(shard, document)] = store.find(f"chat/{number}")
        assert int(counted) == sum(int(token) >= 0 for token in store.document_tokens(shard, document)[1:])
    assert len(shown) > 3

    command.print_document(command.DocOptions(**run, id=f"chat/{shown[0][0]}"))
    assert re.search(r"^step 7, sample \d+: targets 0 to \d+$", capsys.readouterr().out, re.M)

    [plain, chat] = count_stages(Replay(tmp_path))
    counts = count_documents(Replay(tmp_path))
    samples = data.rows(np.arange(20 * GLOBAL_BATCH))
    of_chat = samples.store == 1
    targets = data.targets_per_row(samples)
    assert (plain.targets, chat.targets) == (targets[~of_chat].sum(), targets[of_chat].sum())
    assert counts.targets["chat.jsonl"] == chat.targets < data.tokens_per_row(samples)[of_chat].sum()
