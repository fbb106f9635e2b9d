"""Proving a log while it goes by: that each stream is whole, and each event what was written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

from eventstore import (
    EventStoreError,
    EventType,
    LoggedEvent,
    StreamFacts,
    StreamKey,
    StreamKind,
    UnknownEvent,
    check_identifier,
)
from eventstore.chain import digest, first_link
from eventstore.encoding import check_text, decode, decode_members
from eventstore.events import CONVERSATION_TYPES
from eventstore.records import link_of
from eventstore.upcasting import upcast

__all__ = ["Proof"]

_SHA256_BYTES: Final = 32
_OWNED: Final = {
    StreamKind.SESSION: {"session", "user", "app"},
    StreamKind.USER: {"user", "app"},
    StreamKind.APP: {"app"},
    StreamKind.SYSTEM: set[str](),
}
_ENDING: Final = {StreamKind.SESSION, StreamKind.USER}
"""A user's stream ends while the user is erased."""


@dataclass(slots=True)
class _Progress:
    """A stream, and where its events have come to."""

    facts: StreamFacts
    version: int
    conversation_version: int
    chain: bytes
    deleted: bool = False


class Proof:
    """What has gone by of a log. `damaged` makes the error for a reason.

    Memory grows with the number of streams.
    """

    def __init__(self, damaged: Callable[[str], EventStoreError], *, whole: bool) -> None:
        self._damaged = damaged
        self._whole = whole
        self._streams: dict[int, _Progress] = {}
        self._live: set[StreamKey] = set()
        self._position = 0

    @property
    def head(self) -> int:
        """The last position of a whole log."""
        return self._position

    @property
    def heads(self) -> dict[int, tuple[int, bytes]]:
        """Version and link of each stream that has events, as an anchor has them."""
        return {n: (s.version, s.chain) for n, s in self._streams.items() if s.version and _has(s)}

    def begin(self, facts: StreamFacts) -> None:
        """Takes the next stream.

        Raises: what `damaged` makes, when it is none, or refers to none that came before.
        """
        stream, key = facts.stream, facts.stream.key
        if stream.id in self._streams or (facts.live and key in self._live):
            raise self._damaged(f"stream {stream.id} comes twice")
        if len(stream.chain) != _SHA256_BYTES or stream.version < stream.conversation_version:
            raise self._damaged(f"stream {stream.id} has a head that is none")
        if not facts.nonce and facts.live:
            raise self._damaged(f"stream {stream.id} lacks its nonce")
        if facts.nonce:
            self._check_owners(facts)
            if key.kind is StreamKind.SESSION and not stream.version:
                raise self._damaged(f"stream {stream.id} has no events")
        if facts.live:
            self._live.add(key)
        start = first_link(key, facts.nonce)
        if facts.nonce:
            self._streams[stream.id] = _Progress(facts, 0, 0, start)
        else:  # its events are gone, and its last version and link are all that is left
            self._streams[stream.id] = _Progress(
                facts, stream.version, stream.conversation_version, stream.chain
            )

    def _check_owners(self, facts: StreamFacts) -> None:
        stream, key = facts.stream, facts.stream.key
        parts = {
            StreamKind.SESSION: 3,
            StreamKind.USER: 2,
            StreamKind.APP: 1,
            StreamKind.SYSTEM: 0,
        }[key.kind]
        if any(key[1 + parts :]):
            raise self._damaged(f"stream {stream.id} has an id that its kind has not")
        app = StreamKey(StreamKind.APP, key.app_name)
        user = StreamKey(StreamKind.USER, key.app_name, key.user_id)
        for owner, wanted in (
            (stream.app_stream_id, app if parts > 1 else None),
            (stream.user_stream_id, user if parts > 2 else None),
        ):
            if wanted is None and not owner:
                continue
            found = self._streams.get(owner)
            right = wanted is not None and found is not None and found.facts.stream.key == wanted
            outside = wanted is not None and not owner and not self._whole
            if not right and not outside:
                raise self._damaged(f"stream {stream.id} refers to one of another user or app")

    def check(self, logged: LoggedEvent) -> None:
        """Takes the next event.

        Raises: what `damaged` makes, when it is not what was written, or not here.
        """
        event = logged.event
        stream = self._streams.get(event.stream.id)
        if stream is None or not stream.facts.nonce:
            raise self._damaged("the event is of a stream that has none")
        if self._whole:
            if event.position <= self._position:
                raise self._damaged("the event is not behind the one before")
            self._position = event.position
        elif event.position:
            raise self._damaged("the event has a position, which only a whole log has")
        if event.version != stream.version + 1 or event.version > stream.facts.stream.version:
            raise self._damaged(f"the event has version {event.version} and is not next")
        if stream.deleted:
            raise self._damaged("the event comes behind the end of its stream")
        for stored, expected in (
            (event.delta, logged.delta_digest),
            (event.data, logged.data_digest),
        ):
            if digest(stored) != expected:
                raise self._damaged("the content of the event does not match its digest")
        if link_of(logged, stream.chain) != logged.chain:
            raise self._damaged("the event does not fit the hash chain of its stream")
        self._check_content(stream, logged)
        stream.version, stream.chain = event.version, logged.chain
        if event.type in CONVERSATION_TYPES:
            stream.conversation_version = event.version
        stream.deleted = event.type == EventType.SESSION_DELETED

    def _check_content(self, stream: _Progress, logged: LoggedEvent) -> None:
        """Asserts that readers can take the event as it stands."""
        event, facts = logged.event, stream.facts
        key = facts.stream.key
        try:
            upcast(event._replace(stream=facts.stream))
            for text in (event.delta, event.data):
                if text is not None:
                    check_text(text, "the event")
            if event.delta is not None:
                scopes = decode_members(event.delta, event.encoding)
                if not scopes.keys() <= _OWNED[key.kind]:
                    raise ValueError("it names a scope that its stream has not")
                for name in chain.from_iterable(scopes.values()):
                    check_identifier("a state key", name)
            data: Any = None if event.data is None else decode(event.data, event.encoding)
            first = (event.type == EventType.SESSION_CREATED) == (event.version == 1)
            if key.kind is StreamKind.SESSION and not first:
                raise ValueError("a session begins with its creation, and only there")
            if key.kind is not StreamKind.SESSION and event.type in CONVERSATION_TYPES:
                raise ValueError("it belongs to a session")
            if event.type == EventType.SESSION_DELETED and key.kind not in _ENDING:
                raise ValueError("its stream has no end")
            if event.version == 1:
                said = data["stream"]
                if said != {**key._asdict(), "nonce": facts.nonce.hex()}:
                    raise ValueError("it begins another stream")
        except UnknownEvent as error:
            raise self._damaged(str(error)) from None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise self._damaged("the event holds what no reader could take") from None

    def finish(self) -> None:
        """Asserts that every stream has come to its head.

        Raises: what `damaged` makes, when one has not.
        """
        for stream_id, stream in self._streams.items():
            facts = stream.facts
            at = (stream.version, stream.conversation_version, stream.chain)
            said = (
                facts.stream.version,
                facts.stream.conversation_version,
                facts.stream.chain,
            )
            if at != said or (facts.nonce and stream.deleted == facts.live):
                raise self._damaged(f"stream {stream_id} ends elsewhere than it says")


def _has(stream: _Progress) -> bool:
    """Whether a stream's events are there."""
    return bool(stream.facts.nonce)
