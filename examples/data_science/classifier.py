"""Gaussian naive Bayes on the numeric columns of a CSV file, with the standard library alone."""

import csv
import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, pvariance
from typing import TypedDict

Row = dict[str, str]
Sample = tuple[str, list[float]]

MISSING = frozenset({"", "NA"})
# Keeps a feature that is constant within a class from dividing by zero.
VARIANCE_FLOOR = 1e-6


class ClassModel(TypedDict):
    """What was learned about one class: how common it is, and each feature's distribution."""

    prior: float
    means: list[float]
    variances: list[float]


class Model(TypedDict):
    """A trained model as plain JSON; with the split, so that it can be evaluated later."""

    kind: str
    dataset: str
    target: str
    features: list[str]
    test_fraction: float
    seed: int
    training_rows: int
    classes: dict[str, ClassModel]


class Evaluation(TypedDict):
    """How a model did on the rows it was not trained on."""

    accuracy: float
    test_rows: int
    confusion: dict[str, dict[str, int]]


def read_rows(path: Path) -> list[Row]:
    """Reads a CSV file with a header line."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, restval=""))


def present(rows: Sequence[Row], column: str) -> list[str]:
    """The values of one column, without the missing ones."""
    return [row[column] for row in rows if row[column] not in MISSING]


def numeric_columns(rows: Sequence[Row]) -> list[str]:
    """The columns in which every value that is there is a number."""
    return [column for column in rows[0] if _all_numbers(present(rows, column))]


def split(rows: Sequence[Row], model: Model) -> tuple[list[Sample], list[Sample]]:
    """The training and the test samples; the same ones for the same rows and seed.

    A row is left out if its target or one of its features is missing.
    """
    columns = [model["target"], *model["features"]]
    samples = [
        (row[model["target"]], [float(row[feature]) for feature in model["features"]])
        for row in rows
        if not any(row[column] in MISSING for column in columns)
    ]
    random.Random(model["seed"]).shuffle(samples)
    test_size = round(len(samples) * model["test_fraction"])
    return samples[test_size:], samples[:test_size]


def fit(samples: Sequence[Sample]) -> dict[str, ClassModel]:
    """Learns one Gaussian per class and feature."""
    by_class: defaultdict[str, list[list[float]]] = defaultdict(list)
    for label, values in samples:
        by_class[label].append(values)
    return {
        label: ClassModel(
            prior=len(members) / len(samples),
            means=[fmean(values) for values in zip(*members, strict=True)],
            variances=[pvariance(values) + VARIANCE_FLOOR for values in zip(*members, strict=True)],
        )
        for label, members in sorted(by_class.items())
    }


def classify(classes: Mapping[str, ClassModel], values: Sequence[float]) -> dict[str, float]:
    """The probability of each class for one sample."""
    scores = {label: _log_score(learned, values) for label, learned in classes.items()}
    # Relative to the best score: exp() of the scores themselves would underflow to zero.
    best = max(scores.values())
    weights = {label: math.exp(score - best) for label, score in scores.items()}
    total = sum(weights.values())
    return {label: weight / total for label, weight in weights.items()}


def evaluate(classes: Mapping[str, ClassModel], samples: Sequence[Sample]) -> Evaluation:
    """Classifies samples whose class is known, and counts."""
    confusion = {actual: dict.fromkeys(classes, 0) for actual in sorted({s[0] for s in samples})}
    for actual, values in samples:
        probabilities = classify(classes, values)
        confusion[actual][max(probabilities, key=probabilities.__getitem__)] += 1
    right = sum(counts.get(actual, 0) for actual, counts in confusion.items())
    return Evaluation(accuracy=right / len(samples), test_rows=len(samples), confusion=confusion)


def _log_score(learned: ClassModel, values: Sequence[float]) -> float:
    features = zip(values, learned["means"], learned["variances"], strict=True)
    return math.log(learned["prior"]) - 0.5 * sum(
        math.log(2 * math.pi * variance) + (value - mean) ** 2 / variance
        for value, mean, variance in features
    )


def _all_numbers(values: Sequence[str]) -> bool:
    try:
        return bool([float(value) for value in values])
    except ValueError:
        return False
