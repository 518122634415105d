"""A trained run whose stores hold what a crawl may hold, and a browser."""

import json
import os
import shutil

import numpy as np
import pytest

from lit_gpt.store.store_writer import TokenStoreWriter
from lit_gpt.store.tokenizer import Tokenizer
from scripts.explorer.screenshot import find_chromium
from tests.cluster.debian_packages import apt
from tests.pretrain import running

HOSTILE = {
    "<script>window.hacked = 1</script>": "<script>window.hacked = 1</script> <img src=x onerror=hacked=1>",
    "zwei\nZeilen": "</pre><b>fett</b> [link](javascript:alert(1)) {{ 7 * 7 }} " * 3,
    "bidi": "Von rechts: \u202enegnirps etfierG\u202c und \u2067\u05d0\u05d1\u2069.\u200f \a Ende",
    "../../etc/passwd": "Satz von Fuchs und Gans. " * 9,
    'say "ja" & <b>': "Wort " * 300,
}
LONG = "long"
LONG_BYTES = 5_000_000


@pytest.fixture(scope="session")
def hostile_stores(tmp_path_factory, tokenizer_dir):
    """A store of HOSTILE documents, and one of a document of LONG_BYTES."""
    folder = tmp_path_factory.mktemp("hostile")
    tokenizer = Tokenizer.load(tokenizer_dir)
    sentence = "Der Wald ist groß und die Leute gehen nach Hause. "
    bos, *ids, eos = (int(token) for token in tokenizer.encode([sentence])[0])
    ending = tokenizer.encode(["Ende der Sätze."])[0][1:]
    long = np.concatenate([[bos], np.tile(ids, LONG_BYTES // len(sentence.encode())), ending])
    assert ending[-1] == eos
    hostile = zip(HOSTILE, tokenizer.encode(list(HOSTILE.values())), strict=True)
    for name, documents in (("hostile", hostile), ("<long>", [(LONG, long.astype(tokenizer.dtype))])):
        writer = TokenStoreWriter(folder / name, tokenizer, 1 << 28)
        for number, (document_id, tokens) in enumerate(documents, start=1):
            writer.add(document_id, f"<i>{name}.jsonl", number, tokens)
        writer.finish({})
    return folder / "hostile", folder / "<long>"


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory, train_store_dir, val_store_dir, hostile_stores):
    """A run over three stores with checkpoints of steps 20 and 40. Never write into it."""
    out_dir = tmp_path_factory.mktemp("explored") / "run"
    hostile, long = hostile_stores
    stores = (
        f"[{json.dumps(f'{train_store_dir}:4')}, {json.dumps(f'{hostile}:2')}, {json.dumps(f'{long}:1')}]"
    )
    done = running.train(out_dir, stores, val_data_dir=val_store_dir)
    assert done.returncode == 0, done.stderr
    return out_dir


@pytest.fixture(scope="session")
def chromium():
    """A headless Chromium; skips where none is installed and none can be."""
    if find_chromium() is None:
        if os.geteuid() != 0 or not shutil.which("apt-get"):
            pytest.skip("no Chromium on the PATH, and only root on Debian can install it here")
        try:
            apt("update")
            apt("install", "-y", "--no-install-recommends", "chromium-headless-shell")
        except RuntimeError as error:
            pytest.skip(f"no Chromium here: {error}")
    return find_chromium()


@pytest.fixture(scope="module")
def browser(chromium):
    """Driven through the DevTools protocol."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield launched
        launched.close()
