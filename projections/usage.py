"""Usage: tokens, calls, errors and latency, per user, UTC day, model and agent.

Off until it is enabled for a database, by `DatabaseSessionService(projections=[UsageProjection()])`
or by `adk-eventstore projections run usage`. From then on the database follows it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any, ClassVar, Final, NamedTuple

from eventstore import (
    Add,
    Change,
    EventStore,
    EventType,
    InvalidInput,
    MaintenanceRunning,
    Projection,
    ProjectionFailed,
    ProjectionMissing,
    RecordedEvent,
    Row,
    Snapshot,
    StreamKey,
    StreamKind,
    Table,
)
from projections.asynchronous import run

__all__ = ["GROUPS", "UsageProjection", "UsageRow", "usage"]

_TOKENS: Final = {
    "prompt_tokens": "promptTokenCount",
    "output_tokens": "candidatesTokenCount",
    "cached_tokens": "cachedContentTokenCount",
    "thoughts_tokens": "thoughtsTokenCount",
    "tool_use_tokens": "toolUsePromptTokenCount",
    "total_tokens": "totalTokenCount",
}
"""Column to the member of an event's `usageMetadata`."""
_COUNTS: Final = (
    "model_calls",
    "tool_calls",
    "errors",
    *_TOKENS,
    "latency_us",
    "latency_calls",
)
_MOST_TOKENS: Final = 2**31
"""Counts are int32 in the API. What is beyond cannot be one, and could overflow a sum."""
_LONGEST_CALL_US: Final = 3_600_000_000
"""An event that is recorded more than an hour behind its timestamp was not recorded as it happened:
it was imported, or comes from a machine with another clock."""
_LONGEST_LABEL: Final = 200
_NOT_TOOLS: Final = "adk_request_"
"""How the calls are named by which ADK itself asks a user for something."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_PAGE_ROWS: Final = 2_000
_WAIT_S: Final = 30.0
_POLL_S: Final = 0.05

_VIEW: Final = f"""\
SELECT s.app_name,
       s.user_id,
       p.day,
       p.model,
       p.agent,
       {", ".join(f"p.{name}" for name in _COUNTS[:-2])},
       round(p.latency_us / 1000.0 / nullif(p.latency_calls, 0), 1) AS mean_latency_ms
FROM usage AS p JOIN streams AS s ON s.id = p.user_stream_id"""  # noqa: S608 - names from above


class UsageProjection(Projection):
    """What models and tools were used for, counted from the events that ADK stores.

    A row belongs to the user's stream, so it stays when sessions are deleted and their events
    removed. Its key goes on with the UTC day of the event's timestamp, the model (`modelVersion`,
    '' when the event names none) and the agent (the event's author). Every column is a sum:

    - `model_calls`: events with `usageMetadata` or a `finishReason`. A call of a stream is one
      event, for partial ones are not stored; one that raised, or that gave no content, is none.
      What an AgentTool's agent does in a session of its own is not in this log.
    - `tool_calls`: the `functionCall` parts of events, without those by which ADK asks a user for
      credentials, confirmation or input.
    - `errors`: events with an `errorCode`, of models and of runs that failed or were aborted.
    - tokens as the model reports them in `usageMetadata`: `prompt_tokens` (with the cached ones),
      `output_tokens` (its candidates), `cached_tokens`, `thoughts_tokens`, `tool_use_tokens` (the
      results of tools that the model itself runs) and `total_tokens`. They are not added up here:
      a total that a model does not report is 0.
    - `latency_us` (microseconds) over `latency_calls` calls, for a mean: `recorded_at - timestamp`.
      ADK stamps the event when it is about to call the model and has it stored when the response
      is there. So this is the time of the call with its retries, with the callbacks before and
      after the model, and with the wait for the commit. It is counted for model calls by an agent
      only where that holds as far as can be told: not when `partial` is there (false ends a
      stream, whose last event is stamped at the chunk before it; LiteLlm says false always), not
      in live sessions, which stamp on arrival, and not when it is negative or more than an hour
      (an import, or clocks that differ). Of a model that answers one call with several whole
      responses each event counts, from the one before it.

    Whatever in a payload is missing or of another type than ADK stores counts as nothing.
    """

    name = "usage"
    version = 1
    table = Table(
        "usage",
        key={"user_stream_id": "integer", "day": "text", "model": "text", "agent": "text"},
        columns=dict.fromkeys(_COUNTS, "integer"),
    )
    views: ClassVar = {"sqlite": {"adk_usage": _VIEW}, "postgresql": {"adk_usage": _VIEW}}

    def apply(self, event: RecordedEvent) -> Iterable[Change]:
        """One Add for an event that says anything to be counted."""
        if event.type != EventType.ADK_EVENT or event.stream.key.kind is not StreamKind.SESSION:
            return ()
        try:
            payload = event.payload()
        except (ValueError, RecursionError):
            return ()
        if not isinstance(payload, dict):
            return ()
        counts = {name: n for name, n in _counts(event, payload).items() if n}
        if not counts:
            return ()
        model, agent = _label(payload.get("modelVersion")), _label(event.author)
        return (Add((event.stream.user_stream_id, _day(event), model, agent), counts),)


def _counts(event: RecordedEvent, payload: Mapping[str, Any]) -> dict[str, int]:
    reported = payload.get("usageMetadata")
    tokens = reported if isinstance(reported, dict) else {}
    is_call = isinstance(reported, dict) or _is_text(payload.get("finishReason"))
    latency = _latency_us(event, payload) if is_call else None
    return {
        "model_calls": int(is_call),
        "tool_calls": _tool_calls(payload.get("content")),
        "errors": int(_is_text(payload.get("errorCode"))),
        **{column: _count(tokens.get(member)) for column, member in _TOKENS.items()},
        "latency_us": latency or 0,
        "latency_calls": int(latency is not None),
    }


def _count(value: object) -> int:
    return value if type(value) is int and 0 <= value < _MOST_TOKENS else 0


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _tool_calls(content: object) -> int:
    parts = content.get("parts") if isinstance(content, dict) else None
    return sum(_is_tool_call(part) for part in parts) if isinstance(parts, list) else 0


def _is_tool_call(part: object) -> bool:
    call = part.get("functionCall") if isinstance(part, dict) else None
    name = call.get("name") if isinstance(call, dict) else None
    return isinstance(name, str) and not name.startswith(_NOT_TOOLS)


def _latency_us(event: RecordedEvent, payload: Mapping[str, Any]) -> int | None:
    """How long a model call took, in microseconds; None where the event does not tell."""
    if event.author in ("", "user") or "partial" in payload or "liveSessionId" in payload:
        return None
    try:
        latency = event.recorded_at - round(event.timestamp * 1e6)
    except (ValueError, OverflowError):  # it is not finite
        return None
    return latency if 0 <= latency <= _LONGEST_CALL_US else None


def _day(event: RecordedEvent) -> str:
    """The UTC day of an event, as its writer's clock had it; of a time before year 1, none."""
    for seconds in (event.timestamp, event.recorded_at / 1e6):
        try:
            return (_EPOCH + timedelta(seconds=seconds)).date().isoformat()
        except (ValueError, OverflowError):
            continue
    return ""


def _label(value: object) -> str:
    """Text that every database can hold as a part of a key; '' for anything else."""
    if not isinstance(value, str):
        return ""
    return value[:_LONGEST_LABEL].replace("\0", "\ufffd").encode(errors="replace").decode()


GROUPS: Final = ("app", "user", "day", "model", "agent")
"""What `usage` can be grouped by."""


class UsageRow(NamedTuple):
    """What was used, as a sum over everything that the five first fields do not tell apart.

    Those are None unless it was asked for by them. Tokens, calls and latency are as
    UsageProjection says.
    """

    app_name: str | None
    user_id: str | None
    day: str | None
    """The UTC day, as "2026-01-31"."""
    model: str | None
    agent: str | None
    model_calls: int
    tool_calls: int
    errors: int
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    thoughts_tokens: int
    tool_use_tokens: int
    total_tokens: int
    latency_us: int
    latency_calls: int

    @property
    def mean_latency_ms(self) -> float | None:
        """Milliseconds per model call whose duration is known; None when none is."""
        return self.latency_us / self.latency_calls / 1000 if self.latency_calls else None


def usage(
    store: EventStore,
    app_name: str | None = None,
    user_id: str | None = None,
    *,
    since: date | str | None = None,
    until: date | str | None = None,
    by: Iterable[str] = ("day",),
    enable: bool = False,
) -> list[UsageRow]:
    """What was used, in one row for each group of `by`, some of GROUPS, ordered by them.

    `since` and `until` are UTC days, both inclusive: a date, or text like "2026-01-31". The numbers
    are current: the projection is brought up to the head that the log has when this is called,
    which takes longest the first time, when it is built from the whole log. `enable` lets that be
    done in a database which does not have it yet. Blocks.

    Raises:
        ProjectionMissing: it was never enabled for this database, or has a newer version there.
        ProjectionFailed: it is stopped.
        MaintenanceRunning: it is to be built, and for 30 s somebody else was at maintenance.
        InvalidInput: (a ValueError) no such day or group.
        StorageFailed, StoreBusy: see eventstore.errors.
    """
    groups = _groups(by)
    days = (_as_day(since, "since") or "", _as_day(until, "until") or "9999-12-31")
    _bring_up(store, enable=enable)
    return store.snapshot(partial(_read, app_name, user_id, days, groups))


def _groups(by: Iterable[str]) -> tuple[str, ...]:
    groups = (by,) if isinstance(by, str) else tuple(by)
    for group in groups:
        if group not in GROUPS:
            raise InvalidInput(
                f"usage cannot be grouped by {group!r}. Group it by: {', '.join(GROUPS)}."
            )
    return groups


def _as_day(value: date | str | None, what: str) -> str | None:
    if value is None:
        return None
    if isinstance(value, datetime) and value.tzinfo is not None:
        value = value.astimezone(UTC)
    try:
        day = date.fromisoformat(value) if isinstance(value, str) else value
        return date(day.year, day.month, day.day).isoformat()
    except (ValueError, AttributeError, TypeError):
        raise InvalidInput(f"{what} must be a day such as '2026-01-31', not {value!r}.") from None


def _bring_up(store: EventStore, *, enable: bool) -> None:
    projection = UsageProjection()
    head, registered = store.snapshot(lambda s: (s.head(), s.registered()))
    if projection.name not in registered and not enable:
        raise ProjectionMissing(
            projection.name,
            "it was never enabled for this database",
            "Enable it with DatabaseSessionService(projections=[UsageProjection()]), or: "
            "adk-eventstore projections run usage",
        )
    deadline = time.monotonic() + _WAIT_S
    while not _reached(store, head):
        try:
            (status,) = run(store, (projection,), stopping=lambda: _reached(store, head))
        except MaintenanceRunning:
            # Most likely somebody else builds it just now.
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_S)
        else:
            if status.failed_at is not None:
                raise ProjectionFailed(projection.name, status.failed_at, status.failure or "")


def _reached(store: EventStore, position: int) -> bool:
    """Whether the rows have everything up to a position of the log."""
    row = store.snapshot(lambda s: s.registered()).get(UsageProjection.name)
    return (
        row is not None
        and row.version == UsageProjection.version
        and row.checkpoint is not None
        and row.checkpoint >= position
    )


def _read(
    app_name: str | None,
    user_id: str | None,
    days: tuple[str, str],
    groups: tuple[str, ...],
    snapshot: Snapshot,
) -> list[UsageRow]:
    sums: dict[tuple[str | None, ...], list[int]] = {}
    for page in _pages(app_name, user_id, snapshot):
        streams = snapshot.get_facts({int(row[0]) for row in page})
        for owner, day, model, agent, *counts in page:
            key = streams[int(owner)].stream.key
            if app_name not in (None, key.app_name) or user_id not in (None, key.user_id):
                continue
            if not days[0] <= str(day) <= days[1]:
                continue
            names = (key.app_name, key.user_id, str(day), str(model), str(agent))
            group = tuple(
                name if what in groups else None for what, name in zip(GROUPS, names, strict=True)
            )
            total = sums.setdefault(group, [0] * len(counts))
            total[:] = (a + int(b) for a, b in zip(total, counts, strict=True))
    rows = [UsageRow._make((*group, *total)) for group, total in sums.items()]
    order = [GROUPS.index(group) for group in groups]
    return sorted(rows, key=lambda row: [str(row[place]) for place in order])


def _pages(
    app_name: str | None, user_id: str | None, snapshot: Snapshot
) -> Iterator[Sequence[Row]]:
    """The rows that may be of an app and a user."""
    projection = UsageProjection()
    if app_name is not None and user_id is not None:
        stream = snapshot.find_stream(StreamKey(StreamKind.USER, app_name, user_id))
        if stream is not None:
            yield snapshot.owned_rows(projection, [stream.id])
        return
    after: Row | None = None
    while page := snapshot.table_page(projection, after, _PAGE_ROWS):
        yield page
        after = page[-1][: len(projection.table.key)]
