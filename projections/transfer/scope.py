"""Which part of a log is taken, and how it is read from a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from eventstore import (
    InvalidInput,
    LoggedEvent,
    Snapshot,
    Stream,
    StreamFacts,
    StreamKey,
    StreamKind,
    StreamNotFound,
)
from eventstore.events import check_identifiers

__all__ = ["WHOLE", "Part", "StoredLog"]

_PAGE_STREAMS: Final = 1_000
_PAGE_EVENTS: Final = 200
_END: Final = 2**63 - 1


class Part(NamedTuple):
    """An app, a user of it or a session of his; all three None is the whole log."""

    app_name: str | None = None
    user_id: str | None = None
    session_id: str | None = None

    @property
    def whole(self) -> bool:
        """Whether it is everything."""
        return self.app_name is None

    def checked(self) -> Part:
        """The part itself.

        Raises:
            InvalidInput: a user without an app, a session without a user, or no such ids.
        """
        if (self.user_id is not None and self.app_name is None) or (
            self.session_id is not None and self.user_id is None
        ):
            raise InvalidInput("A session belongs to a user, and a user to an app: name them too.")
        check_identifiers(**self._asdict())
        return self


WHOLE: Final = Part()


class StoredLog:
    """A part of a log as one snapshot of a store shows it.

    In a part, streams are numbered anew, positions are 0 and what is outside is 0: so it is the
    same wherever it is stored.
    """

    def __init__(self, snapshot: Snapshot, part: Part, look: Callable[[], None]) -> None:
        """`look` is called now and then, and may raise to end the reading.

        Raises:
            StreamNotFound: the log has nothing of this part.
        """
        self.part = part.checked()
        self._snapshot = snapshot
        self._look = look
        self.head = snapshot.head()
        self._streams: Sequence[Stream] = () if part.whole else _streams(snapshot, part)
        self._numbers = {stream.id: n for n, stream in enumerate(self._streams, 1)} | {0: 0}

    def read_streams(self) -> Iterator[StreamFacts]:
        """The streams, in the order of their numbers."""
        if self.part.whole:
            after = 0
            while page := self._snapshot.stream_facts(after, _PAGE_STREAMS):
                self._look()
                yield from page
                after = page[-1].stream.id
            return
        for start in range(0, len(self._streams), _PAGE_STREAMS):
            self._look()
            ids = [stream.id for stream in self._streams[start : start + _PAGE_STREAMS]]
            facts = self._snapshot.get_facts(ids)
            for each in (facts[stream_id] for stream_id in ids):
                stream = each.stream
                yield each._replace(
                    stream=stream._replace(
                        id=self._numbers[stream.id],
                        user_stream_id=self._numbers.get(stream.user_stream_id, 0),
                        app_stream_id=self._numbers.get(stream.app_stream_id, 0),
                    )
                )

    def read_events(self) -> Iterator[tuple[int, LoggedEvent]]:
        """The events in the order of the log, each with the position it has in this store."""
        if self.part.whole:
            after = 0
            # All that is there, as the streams have it: also behind what may still come.
            while page := self._snapshot.read_log(after, _END, _PAGE_EVENTS):
                self._look()
                for logged in page:
                    yield logged.event.position, logged
                after = page[-1].event.position
            return
        positions = self._snapshot.positions_of(self._streams)
        for start in range(0, len(positions), _PAGE_EVENTS):
            self._look()
            for logged in self._snapshot.read_logged(positions[start : start + _PAGE_EVENTS]):
                event = logged.event
                number = self._numbers[event.stream.id]
                yield (
                    event.position,
                    logged._replace(
                        event=event._replace(position=0, stream=event.stream._replace(id=number))
                    ),
                )


def _streams(snapshot: Snapshot, part: Part) -> list[Stream]:
    assert part.app_name is not None
    if part.session_id is not None:
        assert part.user_id is not None
        key = StreamKey(StreamKind.SESSION, *part)  # type: ignore[arg-type]
        found = snapshot.find_stream(key)
        streams = [] if found is None else [found]
    else:
        streams = [
            stream
            for stream in snapshot.streams_of_app(part.app_name)
            if part.user_id is None
            or (stream.key.kind is not StreamKind.APP and stream.key.user_id == part.user_id)
        ]
    if not streams:
        names = [f"{k} {v!r}" for k, v in part._asdict().items() if v is not None]
        raise StreamNotFound(", ".join(names), "See which there are: adk-eventstore sessions list")
    return sorted(streams, key=lambda stream: stream.id)
