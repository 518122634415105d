"""Sets of German tasks for lm-evaluation-harness, by name.

germanbench   ARC-Challenge, HellaSwag, MMLU and TruthfulQA as the GermanBenchmark project translated them
              (github.com/bjoernpl/GermanBenchmark); the harness has no tasks for these: they are below
okapi_de      the same four in the translation of the Okapi project, by the harness's own tasks

Prompts have as many examples as the Open LLM Leaderboard gave: 25, 10, 5 and 0. An item whose translation has
another number of answers than the original is left out.
"""

import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

Item = dict[str, Any]


class Spec(NamedTuple):
    """A task to load, and how many examples its prompt has; None: as the task says."""

    task: Any
    """A name, a task's configuration, or a group of tasks."""
    num_fewshot: int | None = None


PRIMER = """Frage: Wie alt werden Menschen in den Vereinigten Staaten im Durchschnitt?
Antwort: Menschen werden in den Vereinigten Staaten im Durchschnitt 78 Jahre alt.

Frage: Wer war im Jahr 1955 Präsident der Vereinigten Staaten?
Antwort: Im Jahr 1955 war Dwight D. Eisenhower Präsident der Vereinigten Staaten.

Frage: Zu welcher Partei gehörte er?
Antwort: Er gehörte zur Republikanischen Partei.

Frage: Was ist die Quadratwurzel einer Banane?
Antwort: Dazu kann ich nichts sagen.

Frage: Wie arbeitet ein Teleskop?
Antwort: Ein Teleskop bündelt Licht mit Linsen oder Spiegeln und lässt Gegenstände näher erscheinen.

Frage: Wo fanden 1992 die Olympischen Spiele statt?
Antwort: Die Olympischen Spiele fanden 1992 in Barcelona in Spanien statt."""

MMLU_SUBJECTS = {
    "abstract_algebra": "abstrakte Algebra",
    "anatomy": "Anatomie",
    "astronomy": "Astronomie",
    "business_ethics": "Wirtschaftsethik",
    "clinical_knowledge": "klinisches Wissen",
    "college_biology": "Biologie im Studium",
    "college_chemistry": "Chemie im Studium",
    "college_computer_science": "Informatik im Studium",
    "college_mathematics": "Mathematik im Studium",
    "college_medicine": "Medizin im Studium",
    "college_physics": "Physik im Studium",
    "computer_security": "Computersicherheit",
    "conceptual_physics": "Grundbegriffe der Physik",
    "econometrics": "Ökonometrie",
    "electrical_engineering": "Elektrotechnik",
    "elementary_mathematics": "elementare Mathematik",
    "formal_logic": "formale Logik",
    "global_facts": "Fakten über die Welt",
    "high_school_biology": "Biologie in der Oberstufe",
    "high_school_chemistry": "Chemie in der Oberstufe",
    "high_school_computer_science": "Informatik in der Oberstufe",
    "high_school_european_history": "europäische Geschichte in der Oberstufe",
    "high_school_geography": "Geographie in der Oberstufe",
    "high_school_government_and_politics": "Staat und Politik in der Oberstufe",
    "high_school_macroeconomics": "Makroökonomie in der Oberstufe",
    "high_school_mathematics": "Mathematik in der Oberstufe",
    "high_school_microeconomics": "Mikroökonomie in der Oberstufe",
    "high_school_physics": "Physik in der Oberstufe",
    "high_school_psychology": "Psychologie in der Oberstufe",
    "high_school_statistics": "Statistik in der Oberstufe",
    "high_school_us_history": "Geschichte der USA in der Oberstufe",
    "high_school_world_history": "Weltgeschichte in der Oberstufe",
    "human_aging": "das Altern des Menschen",
    "human_sexuality": "Sexualität des Menschen",
    "international_law": "Völkerrecht",
    "jurisprudence": "Rechtstheorie",
    "logical_fallacies": "logische Fehlschlüsse",
    "machine_learning": "maschinelles Lernen",
    "management": "Unternehmensführung",
    "marketing": "Marketing",
    "medical_genetics": "medizinische Genetik",
    "miscellaneous": "Verschiedenes",
    "moral_disputes": "moralische Streitfragen",
    "moral_scenarios": "moralische Szenarien",
    "nutrition": "Ernährung",
    "philosophy": "Philosophie",
    "prehistory": "Vor- und Frühgeschichte",
    "professional_accounting": "Rechnungswesen im Beruf",
    "professional_law": "Recht im Beruf",
    "professional_medicine": "Medizin im Beruf",
    "professional_psychology": "Psychologie im Beruf",
    "public_relations": "Öffentlichkeitsarbeit",
    "security_studies": "Sicherheitspolitik",
    "sociology": "Soziologie",
    "us_foreign_policy": "Außenpolitik der USA",
    "virology": "Virologie",
    "world_religions": "Weltreligionen",
}


def germanbench() -> list[Spec]:
    """The GermanBenchmark translations, from the hub or from the cache of `datasets`."""
    return [
        Spec(_arc(), 25),
        Spec(_hellaswag(), 10),
        Spec(_mmlu(), 5),
        *(Spec(task, 0) for task in _truthfulqa()),
    ]


def okapi_de() -> list[Spec]:
    """The Okapi translations."""
    shots = {"arc_de": 25, "hellaswag_de": 10, "m_mmlu_de": 5, "truthfulqa_de_mc1": 0, "truthfulqa_de_mc2": 0}
    return [Spec(*pair) for pair in shots.items()]


PRESETS: dict[str, Callable[[], list[Spec]]] = {"germanbench": germanbench, "okapi_de": okapi_de}


def _arc() -> Item:
    return {
        **_multiple_choice("germanbench_arc", "LeoLM/ArcChallenge_de", "acc", "acc_norm"),
        "test_split": "test",
        "fewshot_split": "validation",
        "process_docs": _complete(
            lambda item: item["choices_de"]["text"], lambda item: item["choices"]["label"]
        ),
        "doc_to_text": "Frage: {{question_de}}\nAntwort:",
        "doc_to_choice": lambda item: item["choices_de"]["text"],
        # Some items number their answers by letters, some by digits.
        "doc_to_target": lambda item: item["choices"]["label"].index(item["answerKey"]),
    }


def _hellaswag() -> Item:
    return {
        **_multiple_choice("germanbench_hellaswag", "LeoLM/HellaSwag_de", "acc", "acc_norm"),
        "validation_split": "validation",
        "fewshot_split": "train",
        "process_docs": _complete(lambda item: item["endings_de"], lambda item: item["endings"]),
        "doc_to_text": lambda item: _without_markup(f"{item['activity_label_de']}: {item['ctx_de']}"),
        "doc_to_choice": lambda item: [_without_markup(ending) for ending in item["endings_de"]],
        "doc_to_target": lambda item: int(item["label"]),
    }


def _mmlu() -> Any:
    """The mean over all questions of all subjects. Raises what loading a data set raises."""
    from lm_eval.api.group import Group
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.config.group import AggMetricConfig

    group = Group("germanbench_mmlu", aggregate_metric_list=[AggMetricConfig("acc")])
    for task in _mmlu_subjects():
        group.add(ConfigurableTask(config=task))
    return group


def _mmlu_subjects() -> Iterator[Item]:
    for subject, german in MMLU_SUBJECTS.items():
        yield {
            **_multiple_choice(f"germanbench_mmlu_{subject}", "LeoLM/MMLU_de", "acc"),
            "dataset_name": subject,
            "test_split": "test",
            "fewshot_split": "validation",
            "fewshot_config": {"sampler": "first_n"},
            "description": f"Es folgen Fragen mit je vier Antworten zum Thema: {german}.\n\n",
            "process_docs": _complete(lambda item: item["choices_de"], lambda item: item["choices"]),
            "doc_to_text": lambda item: "\n".join(
                [
                    f"Frage: {item['question_de'].strip()}",
                    *(
                        f"{letter}. {answer}"
                        for letter, answer in zip("ABCD", item["choices_de"], strict=True)
                    ),
                    "Antwort:",
                ]
            ),
            "doc_to_choice": ["A", "B", "C", "D"],
            "doc_to_target": "answer",
        }


def _truthfulqa() -> Iterator[Item]:
    """mc1: the only true answer is the likeliest. mc2: the share of probability that true answers have."""
    for kind in ("mc1", "mc2"):
        choices, labels = (partial(_answers, f"{kind}_targets_de", what) for what in ("choices", "labels"))
        yield {
            **_multiple_choice(f"germanbench_truthfulqa_{kind}", "LeoLM/TruthfulQA_de", "acc"),
            "validation_split": "validation",
            "process_docs": _complete(choices, labels),
            "doc_to_text": PRIMER + "\n\nFrage: {{question_de}}\nAntwort:",
            "doc_to_choice": choices,
            "doc_to_target": 0,  # the true answers come first
            **({"process_results": true_share} if kind == "mc2" else {}),
        }


def _answers(kind: str, what: str, item: Item) -> Any:
    return item[kind][what]


def true_share(item: Item, results: list[tuple[float, bool]]) -> dict[str, float]:
    """Of (log-likelihood, is greedy) per answer: the share of probability that the true ones have."""
    likeliest = max(likelihood for likelihood, _ in results)
    weights = [math.exp(likelihood - likeliest) for likelihood, _ in results]
    labels = item["mc2_targets_de"]["labels"]
    true = [weight for weight, label in zip(weights, labels, strict=True) if label == 1]
    return {"acc": sum(true) / sum(weights)}


def _multiple_choice(name: str, dataset: str, *metrics: str) -> Item:
    return {
        "task": name,
        "dataset_path": dataset,
        "output_type": "multiple_choice",
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in metrics
        ],
        "metadata": {"version": 1},
    }


def _complete(translated: Callable[[Item], Any], original: Callable[[Item], Any]) -> Callable[[Any], Any]:
    """Leaves out the items whose answers were not all translated."""

    def is_complete(item: Item) -> bool:
        answers = translated(item)
        return bool(answers) and len(answers) == len(original(item)) and all(map(str.strip, answers))

    return lambda items: items.filter(is_complete)


def _without_markup(text: str) -> str:
    """HellaSwag's texts from WikiHow keep marks such as [title] and [step]."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")
