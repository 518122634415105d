"""The page over a real run, in a real browser; and what it shows of losses, against counts by hand."""

import math
import re
import shutil
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from lit_gpt.model.attention import Documents
from lit_gpt.store import masking
from lit_gpt.store.masking import ids_of
from lit_gpt.store.token_store import TokenStore
from pretrain.datapoints.replay import Replay
from pretrain.monitor.metrics import MetricsWriter, StepMetrics, read_metrics
from pretrain.monitor.save_errors import SaveErrors
from scripts.explorer import callbacks, figures
from scripts.explorer import losses as losses_in_view
from scripts.explorer import page as page_layout
from scripts.explorer.losses import BUCKETS, EXTREMES, SHORTEST, read_losses, windows
from scripts.explorer.reading import Reading, in_order, infos_of, segments_of
from scripts.explorer.runs import open_runs
from scripts.explorer.server import bind, make_app
from scripts.explorer.text import visible
from scripts.explorer.tokens import PART, pieces, token_losses, tokenizer_of
from tests.pretrain.running import ROOT
from tests.scripts.explorer.conftest import HOSTILE, LONG
from tests.scripts.our_model import load

pytestmark = pytest.mark.slow
SHOWN = "document_id => document.querySelector('#document b')?.innerText == document_id"
PATIENCE = 120  # seconds, on a machine that has much else to do
LOSS = "document.querySelector('#curves .js-plotly-plot').data.find(line => line.customdata)"
ZOOMED = f"{LOSS}.x.length < 20"
WHOLE = f"{LOSS}.x.length >= 40"


@contextmanager
def served(*folders, **moved):
    server = bind(make_app(open_runs(list(folders)), [Reading(folder, **moved) for folder in folders]), 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def opened(browser, url):
    """A page in a context of its own, as of another user, whose requests and complaints are watched."""
    context = browser.new_context(viewport={"width": 1400, "height": 1100})
    page = context.new_page()
    page.set_default_timeout(1000 * PATIENCE)
    foreign, complaints = [], []
    page.on("request", lambda request: foreign.append(request.url) if is_foreign(request.url, url) else None)
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(url)
    wait(page, f"window.Plotly && document.querySelector('#curves .js-plotly-plot') && {LOSS}")
    page.locator("#segments tbody tr, #step-summary .error").first.wait_for()
    yield page
    assert page.evaluate("window.hacked") is None
    assert foreign == []
    assert complaints == []
    context.close()


def wait(page, condition, arg=None):
    """Until a condition holds; Playwright's own would evaluate text in the page, which the page forbids."""
    deadline = time.monotonic() + PATIENCE
    while not page.evaluate(condition, arg):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(50)


def is_foreign(url, own):
    return not url.startswith((own, "data:", "blob:"))


@pytest.fixture(scope="module")
def page(browser, run_dir):
    """One for several tests, each of which leaves all steps in view."""
    with served(run_dir) as address, opened(browser, address) as page:
        yield page


def choose_step(page, step):
    page.get_by_text("A step", exact=True).click()
    page.locator("#step").fill(str(step))
    page.locator("#step").press("Enter")
    wait(page, f"document.querySelector('#step-summary')?.innerText.includes('step {step}:')")


def find(page, document_id):
    page.get_by_text("A document", exact=True).click()
    ask(page, document_id)
    wait(page, SHOWN, arg=document_id)


def ask(page, document_id):
    page.locator("#document-id").fill(document_id)
    page.locator("#document-id").press("Enter")


def answered(page, part):
    """Until the answer has come that writes a part of the page."""
    return page.expect_response(lambda answer: f"..{part}.children" in (answer.request.post_data or ""))


def plot_point(page, step):
    """Where a step lies in the panel of the loss, in pixels of the page."""
    return page.evaluate(
        """step => {
            const plot = document.querySelector('#curves .js-plotly-plot'), {xaxis, yaxis} = plot._fullLayout;
            const box = plot.getBoundingClientRect();
            return [box.left + xaxis._offset + xaxis.d2p(step), box.top + yaxis._offset + yaxis._length / 2];
        }""",
        step,
    )


def drag(page, first, last):
    page.mouse.move(*plot_point(page, first))
    page.mouse.down()
    page.mouse.move(*plot_point(page, last), steps=5)
    page.mouse.up()


def click(page, step):
    """As a person does, who first sees what is under the pointer."""
    place = plot_point(page, step)
    page.mouse.move(place[0] - 3, place[1])
    page.mouse.move(*place, steps=3)
    page.locator("#curves .hoverlayer .hovertext").first.wait_for()
    page.wait_for_timeout(100)
    page.mouse.click(*place)


def test_zoom_click_and_read(page, run_dir):
    first_step = page.locator("#step").input_value()
    expected = {int(line["step"]): line["loss"] for line in read_metrics(run_dir / "metrics.csv")}
    drawn = page.evaluate(f"Object.fromEntries({LOSS}.customdata.map((at, i) => [at[1], {LOSS}.y[i]]))")
    assert {int(step): loss for step, loss in drawn.items()} == expected
    assert page.locator("#curves .modebar-btn").count() == 4  # none of which sends anything anywhere
    drag(page, 10.5, 20.5)
    wait(page, ZOOMED)
    assert page.evaluate(f"{LOSS}.x") == list(range(10, 22))

    click(page, 16)
    wait(page, "document.querySelector('#step-summary')?.innerText.includes('step 16:')")
    choose_step(page, first_step)  # which the field held before the click
    choose_step(page, 16)
    fed = segments_of(Reading(run_dir).step(16))
    assert f"4 rows, {len(fed)} segments" in page.locator("#step-summary").inner_text()
    assert "checksum of every row agrees" in page.locator("#step-summary").inner_text()
    losses = page.locator("#segments tbody tr td:first-child").all_inner_texts()
    assert losses == [f"{segment.loss:.3f}" for segment in in_order(fed, "high")][:25]
    line = page.locator("#segments tbody tr").nth(1)
    segment = in_order(fed, "high")[1]
    line.click()
    name = line.locator("td").nth(1).inner_text()
    wait(page, "name => document.querySelector('#segment-title b').innerText == name", arg=name)
    text = tokenizer_of(segment.store.path).decode(ids_of(segment.tokens))
    assert page.locator("#segment-text pre").evaluate("pre => pre.textContent") == visible(text)

    page.get_by_text("Which steps saw this document?").click()
    page.locator("#document tbody tr").first.wait_for()
    [document] = Reading(run_dir).documents(name)
    assert 16 in [seen.step for seen in document.seen]
    cells = page.locator("#document tbody tr").first.locator("td").all_inner_texts()
    first = document.seen[0]
    assert cells[:3] == [
        str(first.step),
        str(first.sample),
        f"{first.start}-{first.start + first.length - 1}",
    ]
    assert cells[3:] == [f"{first.loss:.3f}", "seen"]

    page.mouse.dblclick(*plot_point(page, 15))
    wait(page, WHOLE)


def test_the_loss_of_each_token_with_the_weights_of_a_checkpoint(page, run_dir):
    choose_step(page, 40)
    page.locator("#checkpoint").click()
    page.get_by_text("step 40", exact=True).last.click()
    page.locator("#segment-text span[title$=nats]").first.wait_for()
    segment = in_order(segments_of(Reading(run_dir).step(40)), "high")[0]
    assert page.locator("#segment-text span[title$=nats]").count() == segment.length
    told = page.locator("#segment-text .hint").inner_text()
    assert float(re.search(r"mean ([\d.]+) nats", told)[1]) == pytest.approx(segment.loss, abs=0.3)


def test_text_of_a_crawl_stays_text(page):
    for name, text in HOSTILE.items():
        if "\n" in name:  # no such id can be typed into the field
            ask(page, name.replace("\n", " "))
            page.locator("#document .error").wait_for()
            continue
        find(page, name)
        shown = page.locator("#document-text pre")
        assert shown.evaluate("pre => pre.textContent") == visible(text)
        assert shown.evaluate("pre => pre.querySelectorAll('*').length") == 0
    assert page.evaluate("document.querySelectorAll('#document img, #document b b').length") == 0


def test_an_answer_without_steps_does_not_repeat_the_last_click(page):
    click(page, 16)
    wait(page, "document.querySelector('#step-summary')?.innerText.includes('step 16:')")
    known = next(iter(HOSTILE))
    find(page, known)
    ask(page, "unknown")  # whose answer takes away the steps to go to
    page.locator("#document .error").wait_for()
    ask(page, known)
    wait(page, SHOWN, arg=known)
    with answered(page, "document"):
        ask(page, known)
    assert page.locator("#document b").is_visible()


def test_a_document_of_5_megabytes_comes_in_parts(page, run_dir, hostile_stores):
    find(page, LONG)
    [document] = Reading(run_dir).documents(LONG)
    parts = -(-document.info.n_tokens // PART)
    assert page.locator("#parts").inner_text() == f"of {parts}"
    page.locator("#part").fill(str(parts))
    page.locator("#part").press("Enter")
    wait(page, "document.querySelector('#document-text pre').textContent.endsWith('Ende der Sätze.')")


def test_losses_in_view(page, run_dir):
    page.get_by_text("Losses in view").click()
    page.locator("#extreme-segments tbody tr").first.wait_for()
    reading = Reading(run_dir)
    fed = [segment for step in range(1, 41) for segment in segments_of(reading.step(step))]
    assert f"steps 1 to 40: {len(fed):,} segments;" in page.locator("#losses-summary").inner_text()
    by_store, by_source = (
        page.evaluate(f"document.querySelector('#{name} .js-plotly-plot').data.map(line => line.name)")
        for name in ("by-store", "by-source")
    )
    assert set(by_store) == {"train", "hostile", "&lt;long&gt;"}
    assert len(by_source) == 4
    highest = max((segment for segment in fed if segment.length >= 16), key=lambda segment: segment.loss)
    line = page.locator("#extreme-segments tbody tr").first
    assert line.locator("td").first.inner_text() == f"{highest.loss:.3f}"
    step = int(line.locator("td").nth(1).inner_text())
    line.click()
    wait(page, f"document.querySelector('#step-summary')?.innerText.includes('step {step}:')")


def test_a_running_training_is_followed_by_several_browsers(browser, run_dir, tmp_path):
    live = shutil.copytree(run_dir, tmp_path / "live")
    with served(live, run_dir) as address, opened(browser, address) as one, opened(browser, address) as other:
        drag(one, 10.5, 20.5)
        wait(one, ZOOMED)
        writer = MetricsWriter(live, 41, None, SaveErrors("stop", 0))
        writer.write([StepMetrics(step, 1.5, 1.0, 1e-4, 500 * step, 0, 1) for step in range(41, 46)])
        writer.close()
        for page in (one, other):
            wait(page, "document.querySelector('#runs').innerText.includes('live step 45:')")
        wait(other, f"{LOSS}.x.at(-1) == 45")
        assert one.evaluate(f"{LOSS}.x") == list(range(10, 22)), "a zoom stays while a run grows"
        choose_step(other, 43)
        assert "not in the log (yet)" in other.locator("#step-summary").inner_text()
        with answered(other, "step-summary"):  # it may be there by now
            other.locator("#step").press("Enter")


def test_an_answer_that_takes_longer_than_a_tick_is_shown(browser, run_dir, monkeypatch):
    monkeypatch.setattr(page_layout, "REFRESH_SECONDS", 0.1)
    monkeypatch.setattr(callbacks, "curves", lambda *shown: time.sleep(0.5) or figures.curves(*shown))
    with served(run_dir) as address, opened(browser, address) as page:
        drag(page, 10.5, 20.5)
        wait(page, ZOOMED)


def test_a_million_steps_stay_few_points_down_to_the_single_step(browser, tmp_path):
    losses = np.random.default_rng(1).normal(3, 0.1, 1_000_000)
    losses[654_320] = 9.0
    lines = "".join(f"{step},{loss!r},{100 * step}\r\n" for step, loss in enumerate(losses.tolist(), start=1))
    (tmp_path / "metrics.csv").write_text("step,loss,tokens\r\n" + lines)
    with served(tmp_path) as address, opened(browser, address) as page:
        assert page.evaluate(f"{LOSS}.x.length") < 1500
        assert page.evaluate(f"Math.max(...{LOSS}.y)") == 9.0
        assert "no datapoints/data.json" in page.locator("#step-summary .error").inner_text()
        for half in (100_000, 8_000, 600, 10):
            drag(page, 654_321 - half, 654_321 + half)
            wait(page, f"{LOSS}.x.at(-1) - {LOSS}.x[0] < {3 * half}")
            assert page.evaluate(f"Math.max(...{LOSS}.y)") == 9.0
        assert page.evaluate(f"{LOSS}.x.every((x, i, all) => !i || x == all[i - 1] + 1)")


def test_a_store_that_has_moved_is_named(browser, run_dir, tmp_path, train_store_dir, hostile_stores):
    moved = shutil.copytree(run_dir, tmp_path / "moved")
    data = moved / "datapoints/data.json"
    data.write_text(data.read_text().replace(str(train_store_dir), "/gone"))
    with served(moved) as address, opened(browser, address) as page:
        told = page.locator("#step-summary .error").inner_text()
        assert told.startswith("/gone is not a token store")
        assert "--train_data_dir" in told
    stores = [str(train_store_dir), *map(str, hostile_stores)]
    with served(moved, train_data_dir=stores) as address, opened(browser, address) as page:
        assert "checksum of every row agrees" in page.locator("#step-summary").inner_text()


def test_a_screenshot_by_the_command(chromium, run_dir, tmp_path):
    picture = tmp_path / "page.png"
    command = [sys.executable, "scripts/explore.py", "--run", run_dir, "--screenshot", picture]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 100_000, "a page without curves is smaller"


# ---- without the browser, on the same run


def fed(reading, first, last):
    return [(step, one) for step in range(first, last + 1) for one in segments_of(reading.step(step))]


def test_against_every_segment(run_dir, monkeypatch):
    reading = Reading(run_dir)
    losses = reading.losses(3, 39)
    segments = fed(reading, 3, 39)
    infos = infos_of([one for _, one in segments])
    assert sorted(losses.all_values().tolist()) == sorted(one.loss for _, one in segments)
    for kind in ("store", "source"):
        means: dict = {}
        for (step, one), info in zip(segments, infos, strict=True):
            name = one.store.name if kind == "store" else info.source
            sums = means.setdefault(name, {}).setdefault((step - 3) * BUCKETS // 37, [0, 0])
            sums[0] += one.loss * one.length
            sums[1] += one.length
        found = losses.over_time(kind, 99)
        assert found.keys() == means.keys()
        for name, values in found.items():
            expected = {bucket: total / count for bucket, (total, count) in means[name].items()}
            known = {bucket: values[bucket] for bucket in range(BUCKETS) if not math.isnan(values[bucket])}
            assert known == pytest.approx(expected)
    by_loss = sorted(one.loss for _, one in segments if one.length >= SHORTEST)
    assert [one.loss for one in losses.lowest] == by_loss[:EXTREMES]
    assert [one.loss for one in losses.highest] == by_loss[::-1][:EXTREMES]

    monkeypatch.setattr(losses_in_view, "MAX_ROWS", 80)  # of 160
    sampled = read_losses(Replay(run_dir), 1, 40)
    assert sampled.steps_read == 40, "each bucket has a step at most"
    monkeypatch.setattr(losses_in_view, "BUCKETS", 10)
    parts = list(windows(Replay(run_dir), 1, 40))
    assert parts == [(1 + 4 * part, 2 + 4 * part) for part in range(10)]
    orders = {
        name: [one.loss for one in in_order([one for _, one in segments], name)] for name in ("high", "low")
    }
    assert orders["high"] == orders["low"][::-1]
    assert np.diff(orders["low"]).min() >= 0


def test_losses_of_tokens_are_those_of_the_model(run_dir, train_store_dir):
    store = TokenStore.open(train_store_dir)
    raw = store.document_tokens(0, 3)[:200]
    checkpoint = run_dir / "iter-00000040-ckpt.pth"
    losses = token_losses(checkpoint, raw)
    ids = torch.from_numpy(raw.astype(np.int64))[None]
    count = raw.size - 1
    bounds = Documents(torch.tensor([0, count], dtype=torch.int32), count)
    with torch.no_grad():
        total = load(checkpoint)(ids[:, :-1], torch.arange(count)[None], bounds, ids[:, 1:])
    assert np.isnan(losses[0])
    assert losses[1:].sum() == pytest.approx(total.item(), rel=1e-5)
    told = pieces(store, raw, losses)
    assert [piece.loss for piece in told] == [None, *losses[1:].tolist()]

    masked = masking.mask(raw, np.arange(raw.size) % 2 == 0)
    np.testing.assert_array_equal(
        np.isnan(token_losses(checkpoint, masked))[1:], np.arange(1, raw.size) % 2 == 1
    )
