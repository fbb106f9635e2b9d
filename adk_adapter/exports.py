"""One session as the JSON files that ADK itself reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from google.adk.sessions import Session
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError

from adk_adapter.codec import merge_scopes
from eventstore import EventStoreError, EventType, RecordedEvent, ValueNotStorable
from eventstore.encoding import decode

__all__ = ["EvaluationMissing", "Form", "as_eval_set", "as_session_file", "initial_state"]

Form = Literal["session", "eval-set"]
"""What `adk run --resume` reads; what `adk eval` and the page of `adk web` read."""


class EvaluationMissing(EventStoreError):
    """ADK's evaluation cannot be imported here."""

    def __init__(self, missing: str) -> None:
        super().__init__(
            f"ADK's evaluation needs {missing}, which is not installed. "
            'Install it: pip install "google-adk[eval]"'
        )
        self.missing = missing


def as_session_file(session: Session) -> str:
    """A session as `adk run --save_session` writes it.

    Raises:
        ValueNotStorable: ADK's JSON cannot hold it.
    """
    return _text(session, Session.model_validate(session.model_dump()))


def as_eval_set(session: Session, state: Mapping[str, Any]) -> str:
    """An eval set with the session as its one case, which begins with a state.

    Its events become invocations by ADK's own rules, as on the page of `adk web`.

    Raises:
        EvaluationMissing: this ADK is installed without what its evaluation needs.
        ValueNotStorable: ADK's JSON cannot hold it.
    """
    try:  # it imports half of ADK
        from google.adk.evaluation.eval_case import EvalCase, SessionInput
        from google.adk.evaluation.eval_set import EvalSet
        from google.adk.evaluation.evaluation_generator import EvaluationGenerator
    except ImportError as error:
        raise EvaluationMissing(error.name or "a package") from error
    began_at = session.events[0].timestamp if session.events else session.last_update_time
    case = EvalCase(
        eval_id=session.id,
        conversation=EvaluationGenerator.convert_events_to_eval_invocations(session.events),
        session_input=SessionInput(
            app_name=session.app_name, user_id=session.user_id, state=dict(state)
        ),
        creation_timestamp=began_at,
    )
    made = EvalSet(
        eval_set_id=session.id, name=session.id, eval_cases=[case], creation_timestamp=began_at
    )
    return _text(session, made)


def _text(session: Session, model: BaseModel) -> str:
    try:
        text = model.model_dump_json(indent=2, exclude_none=True, by_alias=True) + "\n"
        type(model).model_validate_json(text)
    # A lone surrogate; or a NaN, which becomes null where ADK wants a number.
    except (PydanticSerializationError, ValidationError):
        raise ValueNotStorable(
            f"session {session.id!r}",
            "ADK's JSON holds no NaN, no infinity and no lone surrogate. Export it as a log, "
            "which holds them",
        ) from None
    return text


def initial_state(events: Sequence[RecordedEvent]) -> dict[str, Any]:
    """The state that a session was created with, from its events."""
    first = events[0]
    if first.type != EventType.SESSION_CREATED or first.delta is None:
        return {}
    return merge_scopes(decode(first.delta, first.encoding))
