"""State: one row per key and scope, the raw JSON value that was written last."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final

from msgspec import Raw

from eventstore.changes import Change, DeleteOwner, Put, Row, Table
from eventstore.encoding import (
    decode_members,
    decode_value,
    decode_values,
    split_deltas,
    text_of,
)
from eventstore.errors import CorruptRow
from eventstore.events import Deltas, EventType, RecordedEvent
from eventstore.projection import BulkProjection

__all__ = ["StateProjection", "state_by_owner"]

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
    views: ClassVar = {"sqlite": {"adk_state": _VIEW}, "postgresql": {"adk_state": _VIEW}}

    def apply(self, event: RecordedEvent) -> Iterable[Change]:
        """One Put per key of the delta."""
        position = event.position
        return [
            Put((owner, key), (value, position))
            for owner, members in self._members(event)
            for key, value in members.items()
        ]

    @staticmethod
    def _members(event: RecordedEvent) -> Iterator[tuple[int, dict[str, str]]]:
        """What the delta names, by owner."""
        if event.delta is not None:
            owners = event.stream.owners
            for scope, members in decode_members(event.delta, event.encoding).items():
                yield owners[scope], members

    def apply_page(self, page: Deltas) -> Iterator[Change]:
        """One Put per key that any of the deltas names."""
        written: dict[int, _Written] = {}
        for stream in page.streams:
            owned: _Written = {}
            deltas = split_deltas(stream.deltas)
            # The newest first: most keys were written again later, and are passed over.
            for position, delta in zip(stream.positions[::-1], deltas[::-1], strict=True):
                if (members := delta.session) is not None:
                    for key in members:
                        if key not in owned:
                            owned[key] = members[key], position
                if delta.user is not None:
                    _add(written, stream.user_stream_id, delta.user, position)
                if delta.app is not None:
                    _add(written, stream.app_stream_id, delta.app, position)
            written[stream.stream_id] = owned
        for whole in page.wholes:
            for owner, texts in self._members(whole):
                _add(written, owner, texts, whole.position)
            if whole.type == EventType.SESSION_DELETED:
                yield DeleteOwner(whole.stream.id)
                written.pop(whole.stream.id, None)
        for owner, owned in written.items():
            for key, (text, position) in owned.items():
                value = text if isinstance(text, str) else text_of(text)
                yield Put((owner, key), (value, position))


_Written = dict[str, tuple[Raw | str, int]]
"""Values by key, each with the position of the event that wrote it."""


def _add(
    written: dict[int, _Written], owner: int, members: Mapping[str, Raw | str], position: int
) -> None:
    """Adds what an event wrote, unless a later one wrote it too."""
    owned = written.setdefault(owner, {})
    for key, text in members.items():
        if key not in owned or owned[key][1] < position:
            owned[key] = text, position


def state_by_owner(rows: Sequence[Row]) -> Mapping[int, dict[str, Any]]:
    """The keys and values that rows of the table hold, by owner; nothing for others.

    Raises:
        CorruptRow: a value is no JSON.
    """
    state: defaultdict[Any, dict[Any, Any]] = defaultdict(dict)
    try:
        values = decode_values([str(row[2]) for row in rows])
    except ValueError:
        key = next(row[1] for row in rows if not _is_json(str(row[2])))
        raise CorruptRow("state", f"holds no JSON (key {key!r})") from None
    for (owner, key, _, _), value in zip(rows, values, strict=True):
        state[owner][key] = value
    return state


def _is_json(text: str) -> bool:
    try:
        decode_value(text)
    except ValueError:
        return False
    return True
