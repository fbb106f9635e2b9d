"""A data science agent whose work survives a crash: see `make_runner` for the one-line change."""

import os
from collections import Counter
from pathlib import Path
from statistics import fmean, median
from time import perf_counter
from typing import Any

from google.adk.agents import LlmAgent
from google.adk.models import BaseLlm
from google.adk.runners import Runner
from google.adk.sessions import BaseSessionService
from google.adk.tools.base_tool import BaseTool
from google.adk.tools.tool_context import ToolContext

# The one line that changes; it was: from google.adk.sessions import InMemorySessionService
from adk_adapter import DatabaseSessionService

from . import classifier
from .scripted_model import ScriptedModel

APP_NAME = "data_science"
DATA_DIR = Path(__file__).parent / "data"

INSTRUCTION = """\
You are a data scientist. Answer with the tools you have, never from memory: load_csv opens a data
set, summarise describes it, train_model learns to tell one of its columns from the others,
evaluate_model measures that on rows the model has not seen, predict applies it to new
measurements. The data set you can rely on is penguins.csv. Report numbers as the tools gave them.
"""


class ToolUseError(ValueError):
    """A tool was called before the one it builds on, or with a column that is not there."""


def load_csv(path: str, tool_context: ToolContext) -> dict[str, Any]:
    """Opens a CSV file and makes it the data set of this conversation.

    Args:
        path: Name of the file in the data folder, such as "penguins.csv".
    """
    rows = _read(path)
    # The rows stay in their file: state is for what the conversation has to remember.
    dataset = {
        "path": path,
        "rows": len(rows),
        "incomplete_rows": sum(any(v in classifier.MISSING for v in r.values()) for r in rows),
        "columns": list(rows[0]),
        "numeric_columns": classifier.numeric_columns(rows),
    }
    tool_context.state["dataset"] = dataset
    tool_context.state["user:favourite_dataset"] = path
    return dataset


def summarise(tool_context: ToolContext) -> dict[str, Any]:
    """Describes every column of the loaded data set; missing values are left out and counted."""
    dataset = _recall(tool_context, "dataset", "load_csv")
    rows = _read(dataset["path"])
    summary = {
        column: _describe(rows, column, numeric=column in dataset["numeric_columns"])
        for column in dataset["columns"]
    }
    tool_context.state["summary"] = summary
    return summary


def train_model(target: str, features: list[str], tool_context: ToolContext) -> dict[str, Any]:
    """Trains a Gaussian naive Bayes classifier on three quarters of the loaded data set.

    Args:
        target: The column to tell from the others, such as "species".
        features: The numeric columns to tell it from.
    """
    dataset = _recall(tool_context, "dataset", "load_csv")
    unknown = {target} - set(dataset["columns"]) | set(features) - set(dataset["numeric_columns"])
    if unknown or not features:
        raise ToolUseError(f"Not columns that can be used: {sorted(unknown) or 'no features'}")
    started = perf_counter()
    model = classifier.Model(
        kind="gaussian naive bayes",
        dataset=dataset["path"],
        target=target,
        features=features,
        test_fraction=0.25,
        seed=2014,
        training_rows=0,
        classes={},
    )
    training, test = classifier.split(_read(dataset["path"]), model)
    if not test:
        raise ToolUseError("Too few complete rows to train on some and test on others")
    model["training_rows"] = len(training)
    model["classes"] = classifier.fit(training)
    tool_context.state["model"] = model
    tool_context.state["user:models_trained"] = tool_context.state.get("user:models_trained", 0) + 1
    # Of interest for the rest of this turn only, so it is not stored.
    tool_context.state["temp:training_seconds"] = perf_counter() - started
    return {
        "kind": model["kind"],
        "target": target,
        "features": features,
        "training_rows": len(training),
        "classes": list(model["classes"]),
    }


def evaluate_model(tool_context: ToolContext) -> dict[str, Any]:
    """Measures the trained model on the quarter of the data set it was not trained on."""
    model: classifier.Model = _recall(tool_context, "model", "train_model")
    _, test = classifier.split(_read(model["dataset"]), model)
    evaluation = classifier.evaluate(model["classes"], test)
    tool_context.state["evaluation"] = evaluation
    best = max(evaluation["accuracy"], tool_context.state.get("app:best_accuracy", 0.0))
    tool_context.state["app:best_accuracy"] = best
    return {**evaluation, "best_accuracy_so_far": best}


def predict(measurements: dict[str, float], tool_context: ToolContext) -> dict[str, Any]:
    """Applies the trained model to new measurements.

    Args:
        measurements: A value for every feature the model was trained on.
    """
    model: classifier.Model = _recall(tool_context, "model", "train_model")
    missing = [feature for feature in model["features"] if feature not in measurements]
    if missing:
        raise ToolUseError(f"No value for: {', '.join(missing)}")
    values = [float(measurements[feature]) for feature in model["features"]]
    probabilities = classifier.classify(model["classes"], values)
    prediction = {
        "measurements": measurements,
        model["target"]: max(probabilities, key=probabilities.__getitem__),
        "probability": max(probabilities.values()),
    }
    tool_context.state["last_prediction"] = prediction
    return prediction


def explain_error(
    tool: BaseTool, args: dict[str, Any], tool_context: ToolContext, error: Exception
) -> dict[str, Any] | None:
    """Tells the model what it can put right itself; anything else ends the turn."""
    return {"error": str(error)} if isinstance(error, ToolUseError) else None


def make_agent(model: str | BaseLlm) -> LlmAgent:
    """Makes the agent, to run on the given model."""
    return LlmAgent(
        name="data_scientist",
        description="Loads a data set, trains a classifier on it, and uses it.",
        model=model,
        instruction=INSTRUCTION,
        tools=[load_csv, summarise, train_model, evaluate_model, predict],
        on_tool_error_callback=explain_error,
    )


root_agent = make_agent("gemini-2.5-flash" if os.environ.get("GOOGLE_API_KEY") else ScriptedModel())


def make_runner(
    session_service: BaseSessionService | None = None, agent: LlmAgent = root_agent
) -> Runner:
    """Makes a runner that keeps its sessions in a file, which survives this process."""
    if session_service is None:
        session_service = DatabaseSessionService()
    return Runner(app_name=APP_NAME, agent=agent, session_service=session_service)


def _read(name: str) -> list[classifier.Row]:
    # The name comes from a language model, so it must not lead out of the data folder.
    path = (DATA_DIR / name).resolve()
    if not path.is_relative_to(DATA_DIR.resolve()) or not path.is_file():
        raise ToolUseError(f"No such file in the data folder: {name}")
    rows = classifier.read_rows(path)
    if not rows:
        raise ToolUseError(f"No rows in {name}")
    return rows


def _recall(tool_context: ToolContext, key: str, tool: str) -> Any:
    value = tool_context.state.get(key)
    if value is None:
        raise ToolUseError(f"There is no {key} yet: call {tool} first")
    return value


def _describe(rows: list[classifier.Row], column: str, *, numeric: bool) -> dict[str, Any]:
    values = classifier.present(rows, column)
    missing = len(rows) - len(values)
    if not numeric:
        return {"missing": missing, "counts": dict(Counter(values).most_common(10))}
    numbers = [float(value) for value in values]
    return {
        "missing": missing,
        "mean": round(fmean(numbers), 2),
        "median": median(numbers),
        "min": min(numbers),
        "max": max(numbers),
    }
