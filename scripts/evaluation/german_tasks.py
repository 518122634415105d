"""Sets of German tasks for lm-evaluation-harness, by name.

germanbench   ARC-Challenge, HellaSwag, MMLU and TruthfulQA as the GermanBenchmark project translated them
              (github.com/bjoernpl/GermanBenchmark), asked as for LeoLM: the prompts of the branch
              mmlu_de of github.com/bjoernpl/lm-evaluation-harness-de, to the letter. It is a fork of
              version 0.3 of the harness; today's has no tasks for these
okapi_de      the same four in the translation of the Okapi project, by the harness's own tasks

Prompts have as many examples as the Open LLM Leaderboard gave: 25, 10, 5 and 0. Items whose translation is
incomplete are asked like all others.
"""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

Item = dict[str, Any]


class Spec(NamedTuple):
    """A task to load, and how many examples its prompt has; None: as the task says."""

    task: Any
    """A name, a task's configuration, or a group of tasks."""
    num_fewshot: int | None = None


GERMANBENCH_VERSION = 2
"""Version 1 had prompts in words of its own, MMLU by letters, and left incomplete items out."""

PRIMER = """F: Was ist die menschliche Lebenserwartung in den Vereinigten Staaten?
A: Die menschliche Lebenserwartung in den Vereinigten Staaten beträgt 78 Jahre.

F: Wer war Präsident der Vereinigten Staaten im Jahr 1955?
A: Dwight D. Eisenhower war Präsident der Vereinigten Staaten im Jahr 1955.

F: Welcher Partei gehörte er an?
A: Er gehörte der Republikanischen Partei an.

F: Was ist die Quadratwurzel von Banane?
A: Dazu habe ich keinen Kommentar.

F: Wie funktioniert ein Teleskop?
A: Teleskope verwenden Linsen oder Spiegel, um Licht zu fokussieren und Objekte näher erscheinen zu lassen.

F: Wo wurden die Olympischen Spiele 1992 abgehalten?
A: Die Olympischen Spiele 1992 fanden in Barcelona, Spanien, statt."""

# Typing errors and doubles included: they are part of the prompts that published results were made with.
MMLU_SUBJECTS = {
    "abstract_algebra": "Abstrakte Algebra",
    "anatomy": "Anatomie",
    "astronomy": "Astronomie",
    "business_ethics": "Unternehmensethik",
    "clinical_knowledge": "Klinisches Wissen",
    "college_biology": "Hochschulbiologie",
    "college_chemistry": "Hochschulchemie",
    "college_computer_science": "Hochschulinformatik",
    "college_mathematics": "Hochschulmathematik",
    "college_medicine": "Hochschulmedizin",
    "college_physics": "Hochschulphysik",
    "computer_security": "Computersicherheit",
    "conceptual_physics": "Konzeptuelle Physik",
    "econometrics": "Ökonometrie",
    "electrical_engineering": "Elektrotechnik",
    "elementary_mathematics": "Elementarmathematik",
    "formal_logic": "Formale Logik",
    "global_facts": "Globale Fakten",
    "high_school_biology": "Hochschulbiologie",
    "high_school_chemistry": "Hochschulchemie",
    "high_school_computer_science": "Hochschulinformatik",
    "high_school_european_history": "Europäische Geschichte in der Oberstufe",
    "high_school_geography": "Geographie in der Oberstufe",
    "high_school_government_and_politics": "Regierung und Politik in der Oberstufe",
    "high_school_macroeconomics": "Makroökonomie in der Oberstufe",
    "high_school_mathematics": "Mathematik in der Oberstufe",
    "high_school_microeconomics": "Mikroökonomie in der Oberstufe",
    "high_school_physics": "Physik in der Oberstufe",
    "high_school_psychology": "Psychologie in der Oberstufe",
    "high_school_statistics": "Statistik in der Oberstufe",
    "high_school_us_history": "US-Geschichte in der Oberstufe",
    "high_school_world_history": "Weltgeschichte in der Oberstufe",
    "human_aging": "Menschliches Aaltern",
    "human_sexuality": "Menschliche Sexualität",
    "international_law": "Internationales Recht",
    "jurisprudence": "Rechtsphilosophie",
    "logical_fallacies": "Logische Fehlschlüsse",
    "machine_learning": "Maschinelles Lernen",
    "management": "Management",
    "marketing": "Marketing",
    "medical_genetics": "Medizinische Genetik",
    "miscellaneous": "Verschiedenes",
    "moral_disputes": "Moralische Streitigkeiten",
    "moral_scenarios": "Moralische Szenarien",
    "nutrition": "Ernährung",
    "philosophy": "Philosophie",
    "prehistory": "Vorgeschichte",
    "professional_accounting": "Berufliche Buchhaltung",
    "professional_law": "Berufliches Recht",
    "professional_medicine": "Berufliche Medizin",
    "professional_psychology": "Berufliche Psychologie",
    "public_relations": "Public Relations",
    "security_studies": "Sicherheitsstudien",
    "sociology": "Soziologie",
    "us_foreign_policy": "US-Außenpolitik",
    "virology": "Virologie",
    "world_religions": "Weltreligionen",
}


def germanbench() -> list[Spec]:
    """The GermanBenchmark translations, from the hub or from the cache of `datasets`.

    Raises what loading a data set raises.
    """
    from lm_eval.api.group import Group
    from lm_eval.config.group import AggMetricConfig

    from scripts.evaluation.harness_03_task import Harness03Task

    # Subjects count alike, regardless of their size.
    mmlu = Group("germanbench_mmlu", aggregate_metric_list=[AggMetricConfig("acc", weight_by_size=False)])
    for subject in _mmlu_subjects():
        mmlu.add(Harness03Task(config=subject))
    return [
        Spec(Harness03Task(config=_arc()), 25),
        Spec(Harness03Task(config=_hellaswag()), 10),
        Spec(mmlu, 5),
        *(Spec(Harness03Task(config=task), 0) for task in _truthfulqa()),
    ]


def okapi_de() -> list[Spec]:
    shots = {"arc_de": 25, "hellaswag_de": 10, "m_mmlu_de": 5, "truthfulqa_de_mc1": 0, "truthfulqa_de_mc2": 0}
    return [Spec(*pair) for pair in shots.items()]


PRESETS: dict[str, Callable[[], list[Spec]]] = {"germanbench": germanbench, "okapi_de": okapi_de}


def _arc() -> Item:
    from scripts.evaluation.harness_03_task import Harness03Sampler

    return {
        **_multiple_choice("germanbench_arc", "LeoLM/ArcChallenge_de", "acc", "acc_norm"),
        "test_split": "test",
        "fewshot_split": "validation",
        "fewshot_config": {"sampler": Harness03Sampler},
        "doc_to_text": lambda item: f"Frage: {item['question_de']}\nAntwort:",
        "doc_to_choice": lambda item: item["choices_de"]["text"],
        # Some items number their answers by letters, some by digits.
        "doc_to_target": lambda item: "ABCDE12345".index(item["answerKey"]) % 5,
    }


def _hellaswag() -> Item:
    return {
        **_multiple_choice("germanbench_hellaswag", "LeoLM/HellaSwag_de", "acc", "acc_norm"),
        "validation_split": "validation",
        "fewshot_split": "train",
        "doc_to_text": lambda item: _without_markup(f"{item['activity_label_de']}: {item['ctx_de']}"),
        "doc_to_choice": lambda item: [_without_markup(ending) for ending in item["endings_de"]],
        "doc_to_target": lambda item: int(item["label"]),
    }


def _mmlu_subjects() -> Iterator[Item]:
    """Not the letters but the answers themselves are scored."""
    from scripts.evaluation.harness_03_task import Harness03Sampler

    for subject, german in MMLU_SUBJECTS.items():
        yield {
            **_multiple_choice(f"germanbench_mmlu_{subject}", "LeoLM/MMLU_de", "acc"),
            "dataset_name": subject,
            "test_split": "test",
            # The fork's code names `dev`, but version 0.3 never asks that function: it draws from here.
            "fewshot_split": "validation",
            "fewshot_config": {"sampler": Harness03Sampler},
            "description": f"Es folgen multiple-choice Fragen (mit Antworten) über das Thema {german}.\n\n",
            "doc_to_text": _mmlu_question,
            "doc_to_choice": lambda item: item["choices_de"],
            "doc_to_target": _mmlu_target,
        }


def _mmlu_question(item: Item) -> str:
    lettered = zip("ABCD", item["choices_de"], strict=False)
    options = "".join(f"{letter}. {answer}\n" for letter, answer in lettered)
    # With the space at the end, and a second one before an answer.
    return f"Frage: {item['question_de'].strip()}\nOptionen:\n{options}Antwort: "


def _mmlu_target(item: Item) -> int:
    answer = item["answer"]
    return "ABCD".index(answer) if isinstance(answer, str) else answer


def _truthfulqa() -> Iterator[Item]:
    """mc1: the first answer, the true one, is the likeliest. mc2: the true answers' share of probability."""
    for kind in ("mc1", "mc2"):
        yield {
            **_multiple_choice(f"germanbench_truthfulqa_{kind}", "LeoLM/TruthfulQA_de", "acc"),
            "validation_split": "validation",
            "doc_to_text": lambda item: f"{PRIMER}\n\nF: {item['question_de']}\nA:",
            "doc_to_choice": lambda item, targets=f"{kind}_targets_de": item[targets]["choices"],
            "doc_to_target": 0,
            **({"process_results": true_share} if kind == "mc2" else {}),
        }


def true_share(item: Item, results: list[tuple[float, bool]]) -> dict[str, float]:
    """Of (log-likelihood, is greedy) per answer: the share of probability that the true ones have.

    True are those before the first that is labelled 0.
    """
    n_true = [*item["mc2_targets_de"]["labels"], 0].index(0)
    likeliest = max(likelihood for likelihood, _ in results)
    weights = [math.exp(likelihood - likeliest) for likelihood, _ in results]
    return {"acc": sum(weights[:n_true]) / sum(weights)}


def _multiple_choice(name: str, dataset: str, *metrics: str) -> Item:
    return {
        "task": name,
        "dataset_path": dataset,
        "output_type": "multiple_choice",
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in metrics
        ],
        "metadata": {"version": GERMANBENCH_VERSION},
    }


def _without_markup(text: str) -> str:
    """HellaSwag's texts from WikiHow keep marks such as [title] and [step]."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")
