"""Two ranks struck at a border, at every change to files: all that was trained comes back bitwise."""

import multiprocessing
import shutil
import signal
from itertools import count
from pathlib import Path

import pytest

from lit_gpt.checkpoint.folder import list_checkpoints
from pretrain.options import TrainOptions
from scripts.faults import faults
from scripts.faults.rank import BORDER, PRELOADED, Fault
from tests.pretrain.running import ROOT, SMALL
from tests.pretrain.stages.test_borders import assert_same_run
from tests.pretrain.stages.three_stages import BORDERS, LAST_STEP, RUN, three_stages

pytestmark = pytest.mark.slow


class Struck:
    """Runs of one folder of work; each start compares itself with the undisturbed run at every step."""

    def __init__(self, work: Path, options: TrainOptions) -> None:
        self.work, self._options = work, options
        self.straight = work / "straight"
        self.start(self.straight, record=True)

    def start(
        self, run: Path, fault: Fault | None = None, rank: int = 0, record: bool = False
    ) -> faults.Outcome:
        """Start both ranks with `--resume auto`; all are killed once the fault has struck.

        `reached` is that of the rank it strikes: the other may be killed before it reports the same step.
        """
        self._options.out_dir = str(run)
        job = faults.Job(self._options, self.work, record, startup_seconds=0.0)
        job.start(rank, fault)
        job.until(lambda: job.fired and fault.number == signal.SIGKILL)
        if job.fired and fault.number == signal.SIGKILL:
            job.kill()
        job.wait()
        outcome = job.outcome()
        assert outcome.error is None
        assert outcome.different == 0
        return outcome._replace(reached=job.reached_by(rank))

    def finish(self, run: Path) -> None:
        """Continue to the end, and compare the whole run."""
        assert self.start(run).complete
        assert_same_run(run, self.straight)
        assert [step for step, _ in list_checkpoints(run)] == [*BORDERS, LAST_STEP]  # keep_last is 1


@pytest.fixture(scope="module")
def struck(tmp_path_factory, train_store_dir, val_store_dir, masked_store_dir):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", str(ROOT))
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        patch.setattr(faults, "Process", context.Process)
        # Saved at once, so that no change of the save before falls into the border.
        settings = SMALL | RUN | {"devices": 2, "resume": "auto", "log_step_interval": 1, "async_save": False}
        stages = three_stages(train_store_dir, val_store_dir, masked_store_dir)
        options = TrainOptions([str(train_store_dir)], stages=stages)
        vars(options).update(settings)
        yield Struck(tmp_path_factory.mktemp("struck"), options)


def test_killed_after_the_steps_around_both_borders(struck):
    """The save after each of them is struck, by turns on either rank: a step is lost at most."""
    run, resumed = struck.work / "steps", -1
    for number, step in enumerate((3, 4, 5, 6, 7, 8)):
        saves = step - max(resumed, 0)
        outcome = struck.start(run, Fault("shard", occurrence=2 * saves - 1), rank=number % 2)
        assert outcome.reached >= step - 1
        resumed = list_checkpoints(run)[-1][0]
        assert resumed >= step - 1
    struck.finish(run)


def test_killed_at_every_change_to_files(struck):
    """Of rank 0, from the last step of a stage until the first of the next, which has fresh moments."""
    border, before, run = BORDERS[1], struck.work / "before", struck.work / "border"
    struck.start(before, Fault("shard", occurrence=2 * border - 1))
    assert list_checkpoints(before)[-1][0] == border - 1
    for number in count(1):
        shutil.copytree(before, run)
        outcome = struck.start(run, Fault(BORDER, number))
        if outcome.complete:
            break
        assert outcome.reached == border
        struck.finish(run)
        shutil.rmtree(run)
    assert number > 20  # metrics, log, checkpoint, the expired checkpoint, the log of the next stage


def test_killed_at_the_changes_of_the_other_rank_and_stopped(struck):
    run = struck.work / "sample"
    for number, kind, rank in ((1, signal.SIGKILL, 1), (3, signal.SIGTERM, 0), (22, signal.SIGTERM, 0)):
        outcome = struck.start(run, Fault(BORDER, number, number=kind), rank)
        assert not outcome.complete
        if kind == signal.SIGTERM:
            assert (run / "requeue").is_file()
    struck.finish(run)
