"""A model without a network: it picks the tool calls a language model would pick here.

It keeps nothing between calls and decides from the request alone, as a hosted model does. So a
conversation that was begun in one process can be continued in another.
"""

import re
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from google.adk.models import BaseLlm
from google.adk.models.llm_request import LlmRequest
from google.adk.models.llm_response import LlmResponse
from google.genai import types

FEATURES = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g"]


class ScriptedModel(BaseLlm):
    """Answers requests about a data set by keywords."""

    model: str = "scripted"

    async def generate_content_async(
        self, llm_request: LlmRequest, stream: bool = False
    ) -> AsyncGenerator[LlmResponse, None]:
        """Yields the next step of the latest turn: a function call or the final text."""
        part = next_step(llm_request.contents)
        asked = sum(_words(content) for content in llm_request.contents)
        answer = types.Content(role="model", parts=[part])
        yield LlmResponse(
            content=answer,
            model_version=self.model,
            finish_reason=types.FinishReason.STOP,
            usage_metadata=types.GenerateContentResponseUsageMetadata(
                prompt_token_count=asked,
                candidates_token_count=_words(answer),
                total_token_count=asked + _words(answer),
            ),
        )


def next_step(contents: Sequence[types.Content]) -> types.Part:
    """Chooses what to do next from the whole conversation so far."""
    text, results = _latest_turn(contents)
    if failed := next((r for r in results if "error" in (r.response or {})), None):
        return types.Part(text=f"I could not do that. {(failed.response or {})['error']}.")
    done = {result.name for result in results}
    for name, pattern, arguments in _TOOLS:
        if name not in done and re.search(pattern, text, re.IGNORECASE):
            call = types.FunctionCall(name=name, args=arguments(text))
            return types.Part(function_call=call)
    if results:
        return types.Part(text=" ".join(_sentence(result) for result in results))
    if earlier := _function_responses(contents):
        return types.Part(text=f"This is the last thing I did. {_sentence(earlier[-1])}")
    return types.Part(text="I can load, summarise, train, evaluate and predict. Try penguins.csv.")


def _latest_turn(
    contents: Sequence[types.Content],
) -> tuple[str, list[types.FunctionResponse]]:
    """The user's latest text, and the function responses that have come in since."""
    for index in range(len(contents) - 1, -1, -1):
        content = contents[index]
        text = " ".join(part.text for part in content.parts or [] if part.text)
        if content.role == "user" and text:
            return text, _function_responses(contents[index:])
    return "", []


def _function_responses(contents: Sequence[types.Content]) -> list[types.FunctionResponse]:
    parts = (part for content in contents for part in content.parts or [])
    return [part.function_response for part in parts if part.function_response]


def _words(content: types.Content) -> int:
    """A stand-in for a token count."""
    return len(re.findall(r"\w+", content.model_dump_json(exclude_none=True)))


def _file_name(text: str) -> dict[str, Any]:
    found = re.search(r"[\w./-]+\.csv", text)
    return {"path": found.group() if found else "penguins.csv"}


def _measurements(text: str) -> dict[str, Any]:
    numbers = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)]
    return {"measurements": dict(zip(FEATURES, numbers, strict=False))}


def _training(text: str) -> dict[str, Any]:
    features = [feature for feature in FEATURES if feature in text]
    return {"target": "species", "features": features or FEATURES}


# In the order in which they build on each other: tool, what asks for it, its arguments.
_TOOLS: list[tuple[str, str, Callable[[str], dict[str, Any]]]] = [
    ("load_csv", r"\bload\b", _file_name),
    ("summarise", r"\bsummari[sz]e\b", lambda text: {}),
    ("train_model", r"\btrain\b", _training),
    ("evaluate_model", r"\bevaluate\b", lambda text: {}),
    ("predict", r"\bpredict\b", _measurements),
]

_SENTENCES: dict[str, Callable[[dict[str, Any]], str]] = {
    "load_csv": lambda r: (
        f"{r['path']} has {r['rows']} rows and {len(r['columns'])} columns;"
        f" {r['incomplete_rows']} rows have missing values."
    ),
    "summarise": lambda r: (
        "By species: "
        + ", ".join(f"{n} {name}" for name, n in r["species"]["counts"].items())
        + f". The mean body mass is {r['body_mass_g']['mean']:.0f} g."
    ),
    "train_model": lambda r: (
        f"I trained a {r['kind']} model on {r['training_rows']} rows to tell the {r['target']}"
        f" ({', '.join(r['classes'])}) from {', '.join(r['features'])}."
    ),
    "evaluate_model": lambda r: (
        f"It is right on {r['accuracy']:.1%} of the {r['test_rows']} rows it had not seen."
    ),
    "predict": lambda r: (
        f"That is most likely a {r['species']} penguin (probability {r['probability']:.3f})."
    ),
}


def _sentence(result: types.FunctionResponse) -> str:
    return _SENTENCES[result.name or ""](result.response or {})
