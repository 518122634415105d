"""What is counted when the tasks are done."""

import tracemalloc

from data_prep.reading.batches import UNREADABLE
from data_prep.stages.pipeline import write_json
from data_prep.stages.summary import _losses


def test_losses_are_found_in_the_memory_of_one_file(tmp_path):
    """A crawl has tens of thousands of files, each with thousands of records that are no pages."""
    lost = {"place": "a.warc.gz:7", "reason": f"{UNREADABLE} from here on: damaged"}
    places = [{"place": f"a.warc.gz:{n}", "reason": f"left out: not HTML (<{n}>)"} for n in range(500)]

    def peak(n_files):
        folder = tmp_path / f"{n_files}"
        for number in range(n_files):
            write_json(folder / f"{number:06d}.json", [*places, lost])
        tracemalloc.start()
        try:
            assert _losses(folder) == [f"{lost['place']}: {lost['reason']}"] * n_files
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(20) < 4 * peak(1)
