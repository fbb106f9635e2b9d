"""What the service does, for OpenTelemetry and for `logging`: ids, sizes and times, never content.

Spans and metrics go through the API that ADK depends on, to wherever the program sends them. Until
the program (or ADK) has imported that API nothing can be configured, so it is not imported here
either; imported and not configured, it costs a microsecond per call.

The names are those of OpenTelemetry's semantic conventions for database clients and for GenAI,
and below `adk_eventstore` where these have none.
"""

from __future__ import annotations

import inspect
import logging
import sys
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import wraps
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, Protocol, TypeVar
from urllib.parse import parse_qsl, urlsplit

from google.adk.events import Event
from google.adk.sessions import Session

from adk_adapter._adk import StaleSessionError
from adk_adapter.session import ListSessionsResponse, count_events
from eventstore import EventStore, EventStoreError
from projections import status

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Observation
    from opentelemetry.trace import Span

__all__ = ["Operation", "Telemetry", "observed"]

_SCOPE: Final = "adk_eventstore"
_SECONDS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1, 5, 10)
"""Boundaries of durations. The conventions' begin at a millisecond: most appends take less."""
_LONG_S: Final = 1.0
"""From where on a wait for other writers is worth a line in the log."""
_REQUESTS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)

_log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class Telemetry:
    """Where a service tells what it does. It is the observer of its store's commits, too."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self.path = store.path
        self.attributes = _attributes(store.path)
        self.target = self.attributes["db.namespace"].rpartition("/")[2]
        store.observe(_Commits(self.attributes))
        _open.add(self)
        if _is_imported():
            _instruments()

    def operation(self, name: str, session_id: object = None) -> Operation:
        """Measures what is done inside it."""
        return Operation(self, name, session_id)

    def merged(self) -> None:
        """An append was put behind events of others."""
        if _is_imported():
            _instruments().conflicts.add(1, {**self.attributes, _OUTCOME: "merged"})

    def close(self) -> None:
        """The store is about to be closed: its size and lag are not asked for any more."""
        _open.discard(self)

    def sizes(self) -> Iterator[tuple[int, Mapping[str, str]]]:
        """How many bytes each file of the database has."""
        for file, size in self._store.sizes().items():
            yield size, {**self.attributes, "adk_eventstore.file": file}

    def lags(self) -> Iterator[tuple[int, Mapping[str, str]]]:
        """How many positions each asynchronous projection is behind the head."""
        for each in status(self._store):
            if not each.inline:
                named = {"adk_eventstore.projection": each.projection}
                yield each.lag, {**self.attributes, **named}


class Operation:
    """One call of the service: a span, a duration and a line of the log."""

    def __init__(self, telemetry: Telemetry, name: str, session_id: object) -> None:
        self._telemetry = telemetry
        self._name = name
        self._session_id = session_id
        self._span: Span | None = None
        self._current: AbstractContextManager[Span] | None = None

    def __enter__(self) -> Operation:
        if _is_imported():
            self._begin_span()
        self._began = time.perf_counter()
        return self

    def returned(self, result: object) -> None:
        """Notes which session or event it was about, and how much was read."""
        if isinstance(result, Session):
            self._session_id = result.id
        if self._span is None:
            return
        if isinstance(result, Session):
            self._span.set_attribute("db.response.returned_rows", count_events(result))
        elif isinstance(result, ListSessionsResponse):
            self._span.set_attribute("db.response.returned_rows", len(result.sessions))
        elif isinstance(result, Event):
            self._span.set_attribute("adk_eventstore.event.id", result.id)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        seconds = time.perf_counter() - self._began
        error = None if exc_type is None else exc_type.__qualname__
        if self._span is not None and self._current is not None:
            self._end_span(self._span, error)
            self._current.__exit__(None, None, None)
        if _is_imported():
            attributes = self._telemetry.attributes
            named = {**attributes, "db.operation.name": self._name}
            if error is not None:
                named["error.type"] = error
            _instruments().duration.record(seconds, named)
            if isinstance(exc_value, StaleSessionError):
                _instruments().conflicts.add(1, {**attributes, _OUTCOME: "refused"})
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug(
                "%s of session %s took %.2f ms%s",
                self._name,
                self._session_id,
                seconds * 1e3,
                f": {error}" if error else "",
            )

    def _begin_span(self) -> None:
        trace = _instruments().trace
        if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            return  # nobody has configured one
        self._span = _instruments().tracer.start_span(
            f"{self._name} {self._telemetry.target}",
            kind=trace.SpanKind.CLIENT,
            attributes={**self._telemetry.attributes, "db.operation.name": self._name},
        )
        self._current = trace.use_span(self._span, end_on_exit=True)
        self._current.__enter__()

    def _end_span(self, span: Span, error: str | None) -> None:
        if isinstance(self._session_id, str):  # whatever a caller gives
            span.set_attribute("gen_ai.conversation.id", self._session_id)
        if error is not None:
            # Not the error itself: what it says is for whoever called.
            span.set_attribute("error.type", error)
            span.set_status(_instruments().trace.StatusCode.ERROR)


class _Service(Protocol):
    _telemetry: Telemetry


S = TypeVar("S", bound=_Service)


def observed(
    function: Callable[Concatenate[S, P], Awaitable[T]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """Makes an operation of each call of a method; its session is in `session` or `session_id`."""
    names = list(inspect.signature(function).parameters)[1:]
    name = next((each for each in ("session", "session_id") if each in names), "")
    index = names.index(name) if name else sys.maxsize

    @wraps(function)
    async def wrapper(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        session = args[index] if index < len(args) else kwargs.get(name)
        session_id = getattr(session, "id", session)
        with self._telemetry.operation(function.__name__, session_id) as operation:
            result = await function(self, *args, **kwargs)
            operation.returned(result)
            return result

    return wrapper


class _Commits:
    """An Observer."""

    def __init__(self, attributes: Mapping[str, str]) -> None:
        self._attributes = attributes

    def committed(self, requests: int, seconds: float) -> None:
        if _is_imported():
            _instruments().commit_duration.record(seconds, self._attributes)
            _instruments().commit_size.record(requests, self._attributes)

    def retried(self, requests: int) -> None:
        if _is_imported():
            _instruments().retries.add(requests, self._attributes)

    def waited(self, seconds: float) -> None:
        if seconds >= _LONG_S:
            _log.info("%s: a commit waited %.1f s", self._attributes["db.namespace"], seconds)
        if _is_imported():
            _instruments().waits.record(seconds, self._attributes)


_OUTCOME: Final = "adk_eventstore.outcome"
_open: weakref.WeakSet[Telemetry] = weakref.WeakSet()


class _Instruments:
    """One of each for the process. They begin to count when a provider is configured."""

    def __init__(self) -> None:
        from importlib.metadata import version

        from opentelemetry import metrics, trace

        self.trace = trace
        self.tracer = trace.get_tracer(_SCOPE, version("adk-eventstore"))
        meter = metrics.get_meter(_SCOPE, version("adk-eventstore"))
        self.duration = meter.create_histogram(
            "db.client.operation.duration",
            "s",
            "How long calls of the session service take.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self.commit_duration = meter.create_histogram(
            "adk_eventstore.commit.duration",
            "s",
            "How long transactions take, from their beginning until they are committed.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self.commit_size = meter.create_histogram(
            "adk_eventstore.commit.size",
            "{request}",
            "How many requests are committed together.",
            explicit_bucket_boundaries_advisory=_REQUESTS,
        )
        self.waits = meter.create_histogram(
            "adk_eventstore.commit.wait_time",
            "s",
            "How long commits wait for other writers, where they do.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self.retries = meter.create_counter(
            "adk_eventstore.commit.retries",
            "{request}",
            "Requests that were executed again, because their transaction was undone.",
        )
        self.conflicts = meter.create_counter(
            "adk_eventstore.append.conflicts",
            "{conflict}",
            "Appends to a session that somebody else had appended to: refused, or merged.",
        )
        meter.create_observable_gauge(
            "adk_eventstore.projection.lag",
            [_observe(Telemetry.lags)],
            "{event}",
            "Positions between an asynchronous projection and the head of the log.",
        )
        meter.create_observable_gauge(
            "adk_eventstore.database.size",
            [_observe(Telemetry.sizes)],
            "By",
            "Bytes of the files of the database.",
        )


def _observe(
    measure: Callable[[Telemetry], Iterator[tuple[int, Mapping[str, str]]]],
) -> Callable[[CallbackOptions], list[Observation]]:
    def callback(options: CallbackOptions) -> list[Observation]:
        from opentelemetry.metrics import Observation

        found: dict[str, list[Observation]] = {}
        for telemetry in list(_open):
            try:
                measured = [Observation(*each) for each in measure(telemetry)]
            except EventStoreError as error:  # closed meanwhile, or it cannot be read just now
                _log.debug("not measured: %s", type(error).__name__)
            else:
                found[telemetry.path] = measured
        return [each for observations in found.values() for each in observations]

    return callback


_made: list[_Instruments] = []
_making: Final = threading.Lock()


def _instruments() -> _Instruments:
    if not _made:
        with _making:
            if not _made:
                _made.append(_Instruments())
    return _made[0]


def _is_imported() -> bool:
    return "opentelemetry" in sys.modules


def _attributes(path: str) -> dict[str, str]:
    """What names a database, without a user or a password."""
    if "://" not in path:
        return {"db.system.name": "sqlite", "db.namespace": path}
    from eventstore.postgres.address import DEFAULT_SCHEMA

    url = urlsplit(path)
    schema = dict(parse_qsl(url.query)).get("schema", DEFAULT_SCHEMA)
    namespace = f"{url.path.lstrip('/')}|{schema}"  # as the conventions have it
    named = {"db.system.name": "postgresql", "db.namespace": namespace}
    if url.hostname:
        named["server.address"] = url.hostname
    return named
