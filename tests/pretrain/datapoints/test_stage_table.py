"""What each stage was fed from each store: against counting the rows of the log one by one."""

from collections import defaultdict

from pretrain.datapoints.replay import Replay
from pretrain.datapoints.stage_table import StoreOfStage, count_stages, table_lines
from tests.pretrain.feeding import whole


def test_the_table_of_stages_is_what_counting_rows_gives(logged, stages):
    expected, fed, rows_of = [], defaultdict(set), defaultdict(int)
    rows = whole(logged).to_pylist()
    for stage in stages:
        first = stage.numbering.steps_before + 1
        of_stage = [row for row in rows if first <= row["step"] <= stage.last_step]
        before = {path: set(documents) for path, documents in fed.items()}
        for number, packed in enumerate(stage.data.stores):
            mine = [row for row in of_stage if row["store"] == number]
            documents = {(row["shard"], document) for row in mine for document in row["document"]}
            rows_of[packed.fingerprint] += len(mine)
            path = str(packed.store.path)
            fed[path] |= documents
            shown = f"{path}@0-40" if (stage.name, number) == ("long", 0) else path
            line = StoreOfStage(
                *(stage.name, shown, int(packed.rows_per_shard.sum()), first, stage.last_step, len(mine)),
                *(sum(sum(row["length"]) for row in mine), rows_of[packed.fingerprint]),
                *(len(documents), len(documents & before.get(path, set()))),
            )
            expected.append(line)
    counted = count_stages(Replay(logged))
    assert sorted(counted, key=repr) == sorted(expected, key=repr)
    assert any(0 < line.seen_before < line.documents for line in counted)
    lines = list(table_lines(counted))
    assert lines[0].split("  ")[0] == "stage"
    assert len(lines) == 7
    val = max(counted, key=lambda line: line.rows_until_here)
    assert val.rows_until_here > val.rows_per_epoch == 301
    assert lines[1 + counted.index(val)].split() == [
        *("anneal", "71-110", f"{val.rows}", f"{val.targets:,}", f"{val.rows / 301:.3f}"),
        *(f"{val.rows_until_here / 301:.3f}", f"{val.seen_before / val.documents:.1%}", val.store),
    ]
