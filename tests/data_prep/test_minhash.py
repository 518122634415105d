"""Near duplicates are dropped, for any number of tasks; the rest stays as it is."""

import random

from data_prep import minhash
from data_prep.minhash import Options
from tests.conftest import german_texts
from tests.data_prep.corpus_tools import contents, documents, stats, write_jsonl


def test_one_of_each_group_of_near_duplicates_stays(tmp_path):
    rng = random.Random(0)
    originals = [text for text in german_texts(400, seed=1) if len(text.split()) > 200][:40]
    records = [{"id": f"{number}", "text": text} for number, text in enumerate(originals)]
    for number, text in enumerate(originals[:15]):
        words = text.split()
        words[rng.randrange(len(words))] = "anders"
        records.append({"id": f"{number} fast", "text": "\n".join(words).replace(".", "!")})
    rng.shuffle(records)
    files = [write_jsonl(tmp_path / f"{n}.jsonl", records[n::4]) for n in range(4)]
    results = []
    for tasks in (1, 3):
        output = tmp_path / f"out{tasks}"
        options = Options(input=[str(file) for file in files], output=output, tasks=tasks, workers=1)
        minhash.main(options)
        results.append(contents(output))
    assert results[0] == results[1]
    kept = [record["id"].split()[0] for record in documents(output / "documents")]
    assert sorted(kept, key=int) == [str(number) for number in range(40)]
    assert stats(output)["excluded"]["near_duplicate"]["documents"] == 15
