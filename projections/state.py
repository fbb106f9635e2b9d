"""State: one row per key and scope, the raw JSON value that was written last."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import ClassVar, Final

from msgspec import Raw

from eventstore.changes import Change, DeleteOwner, Put, Table
from eventstore.encoding import decode_members, slice_members, text_of
from eventstore.events import DeltaEvent, EventType, RecordedEvent, Stream
from eventstore.projection import BulkProjection

__all__ = ["StateProjection"]

_VIEW: Final = """\
SELECT s.kind AS scope,
       s.app_name,
       CASE WHEN s.kind <> 'app' THEN s.user_id END AS user_id,
       CASE WHEN s.kind = 'session' THEN s.session_id END AS session_id,
       p.state_key,
       p.state_value,
       p.position AS event
FROM state AS p JOIN streams AS s ON s.id = p.owner_id"""


class StateProjection(BulkProjection):
    """Applies the delta of every event to the keys it names, and to no others.

    A row belongs to the stream of its scope: the session's, the user's or the app's. Its value is
    the slice of the delta as it is stored; `position` is that of the event that wrote it.
    """

    name = "state"
    version = 1
    table = Table(
        "state",
        key={"owner_id": "integer", "state_key": "text"},
        columns={"state_value": "text", "position": "integer"},
    )
    views: ClassVar = {"sqlite": {"adk_state": _VIEW}}

    def apply(self, event: RecordedEvent) -> Iterable[Change]:
        """One Put per key of the delta."""
        for owner, key, value in self._members(event):
            yield Put((owner, key), (value, event.position))

    @staticmethod
    def _members(event: RecordedEvent) -> Iterator[tuple[int, str, str]]:
        """The owner, key and value of everything the delta names."""
        if event.delta is not None:
            owners = event.stream.owners
            for scope, members in decode_members(event.delta, event.encoding).items():
                for key, value in members.items():
                    yield owners[scope], key, value

    def apply_page(
        self, events: Sequence[DeltaEvent], streams: Mapping[int, Stream]
    ) -> Iterator[Change]:
        """One Put per key that any of the deltas names."""
        owners = {stream_id: stream.owners for stream_id, stream in streams.items()}
        # Most keys are overruled by a later delta of the page: only what is left is made a row.
        last: dict[int, dict[str, tuple[Raw | str, int]]] = {}
        for position, stream_id, _, delta, _, whole in events:
            if whole is not None:
                for owner, key, value in self._members(whole):
                    last.setdefault(owner, {})[key] = value, position
                if whole.type == EventType.SESSION_DELETED:
                    last.pop(stream_id, None)
                    yield DeleteOwner(stream_id)
            elif delta is not None:
                owned_by = owners[stream_id]
                for scope, members in slice_members(delta).items():
                    owned = last.setdefault(owned_by[scope], {})
                    for key, raw in members.items():
                        owned[key] = raw, position
        for owner, owned in last.items():
            for key, (text, position) in owned.items():
                value = text if isinstance(text, str) else text_of(text)
                yield Put((owner, key), (value, position))
