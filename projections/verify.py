"""Verify: recompute everything from the log and compare it with what is stored.

The log is read in pages, each in a snapshot of its own, so that a large one does not keep the WAL
from being folded into the file; only the tail and the comparison share one snapshot. Writers go on.
What is found is named: the table, the key, both values and the event that last touched the key.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple

from eventstore import (
    DeleteOwner,
    EventStore,
    EventType,
    LoggedEvent,
    MaintenanceTransaction,
    Projection,
    RecordedEvent,
    Registered,
    Row,
    Snapshot,
    Stream,
    StreamFacts,
    StreamKey,
    StreamKind,
    changes_of,
)
from eventstore.chain import digest, first_link
from eventstore.events import CONVERSATION_TYPES, REMOVAL_TYPES
from eventstore.records import link_of
from eventstore.upcasting import upcast
from projections.anchors import Anchor
from projections.folding import FoldedTable, PartialTable, failed
from projections.rebuild import Progress, rebuild

__all__ = ["Difference", "Touched", "Verified", "verify"]

_PAGE_EVENTS: Final = 2_000
_PAGE_ROWS: Final = 2_000
_TAIL_EVENTS: Final = 2_000
"""How much of the log may be left for the last snapshot."""
_NAMED_PER_TABLE: Final = 10
"""Differences that are described; all are counted."""


class Touched(NamedTuple):
    """The event that last wrote a row."""

    position: int
    version: int
    type: str
    author: str
    invocation_id: str


class Difference(NamedTuple):
    """Something that is not as the log says.

    `table` is a table's name, or "events" for the log itself, "file", or "anchor". `stored` is what
    the table has and `expected` what the log gives, column by column, None for no row.
    """

    table: str
    key: str
    problem: str
    stored: Mapping[str, object] | None = None
    expected: Mapping[str, object] | None = None
    event: Touched | None = None


@dataclass
class Verified:
    """What a verification looked at and found.

    `drifted` counts the differences by table; `differences` describes the first ones of each.
    `unchecked` names projections whose rows could not be compared, and why.
    """

    path: str
    head: int = 0
    events: int = 0
    streams: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    drifted: dict[str, int] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    unchecked: dict[str, str] = field(default_factory=dict)
    scavenged_since_anchor: int = 0
    fixed: list[str] = field(default_factory=list)
    fixable: bool = True
    """Whether all that differs in the rows of streams and of tables can be made anew."""
    anchor: Anchor | None = None

    @property
    def clean(self) -> bool:
        """Whether nothing differs that was not put right."""
        return all(table in self.fixed for table in self.drifted)

    @property
    def log_is_whole(self) -> bool:
        """Whether the log itself, which nothing can rebuild, is as it was written."""
        return not self.drifted.keys() & {"events", "anchor", "file"}

    def add(self, difference: Difference) -> bool:
        """Counts a difference and keeps it when it is one of the first of its table."""
        table = difference.table
        self.drifted[table] = self.drifted.get(table, 0) + 1
        if self.drifted[table] > _NAMED_PER_TABLE:
            return False
        self.differences.append(difference)
        return True


def verify(
    store: EventStore,
    inline: Sequence[Projection],
    asynchronous: Sequence[Projection] = (),
    *,
    since: int = 0,
    against: Anchor | None = None,
    fix: bool = False,
    progress: Progress = lambda *_: None,
) -> Verified:
    """Recomputes digests, chains, versions, streams and the rows of projections. Blocks.

    With `since` only the events behind that position are read, and the rows that they touched; a
    log that ends before it differs. `against` proves that the log still has the history the anchor
    knows. `fix` makes tables that differ anew, unless the log itself is damaged. Writers go on
    meanwhile.

    Raises:
        MaintenanceRunning: a rebuild, another verification or a vacuum is under way.
        ProjectionFailed, UnknownEvent: the log cannot be folded.
        ValueError: `against` needs the whole log, not what is behind `since`.
    """
    if against is not None and since:
        raise ValueError("an anchor is compared with the whole log: leave out `since`")
    with store.maintaining("verify"), ExitStack() as stack:
        verification = _Verification(store, inline, asynchronous, since, against)
        for folding in verification.foldings:
            stack.enter_context(closing(folding.table))
        verification.run(progress)
    report = verification.report
    if fix and report.drifted and report.log_is_whole and report.fixable:
        _fix(store, verification, inline, asynchronous, progress)
    return report


def _fix(
    store: EventStore,
    verification: _Verification,
    inline: Sequence[Projection],
    asynchronous: Sequence[Projection],
    progress: Progress,
) -> None:
    report = verification.report
    if report.drifted.get("streams", 0):
        store.transact(partial(_put_streams, verification.right_streams, report.head))
        report.fixed.append("streams")
    drifted = [p for p in (*inline, *asynchronous) if p.table.name in report.drifted]
    rebuild(
        store,
        [p for p in drifted if p in inline],
        [p for p in drifted if p in asynchronous],
        progress=progress,
    )
    report.fixed += [p.table.name for p in drifted]


def _put_streams(
    streams: Sequence[StreamFacts], head: int, transaction: MaintenanceTransaction
) -> None:
    """Writes rows of `streams` as the log has them: what is given, and what came behind `head`."""
    for facts in streams:
        stream, live = facts.stream, facts.live
        positions = [p for p in transaction.positions_of([stream]) if p > head]
        for event in transaction.read_positions(positions):
            link = transaction.link_at(stream.id, event.version)
            assert link is not None
            stream = stream._replace(version=event.version, chain=link)
            if event.type in CONVERSATION_TYPES:
                stream = stream._replace(conversation_version=event.version)
            live = live and event.type != EventType.SESSION_DELETED
        transaction.put_stream(facts._replace(stream=stream, live=live))


class _Folding:
    """One projection, its fold, and the position the fold has come to."""

    def __init__(self, projection: Projection, since: int, upto: int | None) -> None:
        self.projection = projection
        self.table = PartialTable(projection.table) if since else FoldedTable(projection.table)
        self.at = since
        self.upto = upto
        """Where the rows stand; None for the head."""

    def fold(self, event: RecordedEvent) -> None:
        """Folds the next event, unless the rows do not have it yet."""
        if event.position <= self.at or (self.upto is not None and event.position > self.upto):
            return
        try:
            self.table.apply(changes_of(self.projection, event))
        except Exception as error:
            raise failed(self.projection, event, error) from error
        self.at = event.position


class _Head(NamedTuple):
    """Where a stream has come to, by its events."""

    version: int
    conversation_version: int
    chain: bytes
    deleted: bool


class _Verification:
    """One run: what it has recomputed so far."""

    def __init__(
        self,
        store: EventStore,
        inline: Sequence[Projection],
        asynchronous: Sequence[Projection],
        since: int,
        against: Anchor | None,
    ) -> None:
        self.report = Verified(store.path)
        self.right_streams: list[StreamFacts] = []
        self._store = store
        self._since = since
        self._against = against
        self._heads: dict[int, _Head] = {}
        self._scavenged: set[int] = set()
        self._damaged: set[int] = set()
        """Positions of events that are not as they were written, and so are not folded."""
        self._misnamed: set[int] = set()
        """Streams whose row does not say whose they are: what their events wrote is not known."""
        self._proved: set[int] = set()
        self._unexplained: list[tuple[int, Projection, Row]] = []
        """Differences in rows: their place in the report, the projection and the key."""
        registered = store.snapshot(lambda s: s.registered())
        self.foldings = [
            _Folding(p, since, None) for p in inline if self._comparable(p, registered, None)
        ]
        for projection in asynchronous:
            if self._comparable(projection, registered, 0):
                checkpoint = registered[projection.name].checkpoint
                self.foldings.append(_Folding(projection, since, checkpoint))
        known = {projection.name for projection in (*inline, *asynchronous)}
        for name in registered.keys() - known:
            self.report.unchecked[name] = "this process does not have its code"

    def _comparable(
        self, projection: Projection, registered: Mapping[str, Registered], checkpoint: int | None
    ) -> bool:
        row = registered.get(projection.name)
        inline = checkpoint is None
        version = None if row is None else row.version
        kept_up_so = row is not None and (row.checkpoint is None) == inline
        built = row is not None and (row.checkpoint or 0) >= 0
        if row is not None and kept_up_so and built and version == projection.version:
            if row.table != projection.table.name:
                problem = f"is noted under the name {row.table!r}"
                self.report.add(Difference(projection.table.name, "", problem))
            return True
        if inline:
            problem = (
                f"was written by version {version} of the projection, not {projection.version}"
            )
            if version == projection.version:
                problem = "is noted as one that is not written with every append"
            self.report.add(Difference(projection.table.name, "", problem))
            return False
        self.report.unchecked[projection.name] = "it has not been built"
        return False

    def run(self, progress: Progress) -> None:
        """Reads the log in pages, then compares in one snapshot."""
        after = self._since
        while True:
            head = self._store.snapshot(lambda s: s.head())
            if head - after <= _TAIL_EVENTS:
                break
            while head - after > _TAIL_EVENTS:
                after = self._store.snapshot(partial(self._page, after, head))
                progress(self.report.events, after, head)
        self._store.snapshot(partial(self._finish, after), whole=True)
        progress(self.report.events, self.report.head, self.report.head)
        self._name_events(progress)

    # The log.

    def _page(self, after: int, upto: int, snapshot: Snapshot) -> int:
        """Checks and folds the next events; returns the position reached."""
        with snapshot.as_it_stands():
            logged = snapshot.read_log(after, upto, _PAGE_EVENTS)
            new = {each.event.stream.id for each in logged} - self._heads.keys()
            facts = snapshot.get_facts(new)
            for each in logged:
                self._check(each, facts, snapshot)
        return logged[-1].event.position if logged else upto

    def _check(
        self, logged: LoggedEvent, facts: Mapping[int, StreamFacts], snapshot: Snapshot
    ) -> None:
        event = logged.event
        self.report.events += 1
        stream_id = event.stream.id
        head = self._heads.get(stream_id)
        if head is None:
            head = self._begin(event, facts.get(stream_id), snapshot)
        problems = []
        if event.version != head.version + 1:
            problems.append(f"comes behind version {head.version}: one is missing")
        for name, stored, expected in (
            ("delta", event.delta, logged.delta_digest),
            ("data", event.data, logged.data_digest),
        ):
            if digest(stored) != expected:
                problems.append(f"has a {name} that does not match its digest")
        if _link_of(logged, head.chain) != logged.chain:
            problems.append("does not fit the hash chain: a field of it, or of one before, differs")
        for problem in problems:
            self._add("events", event.stream, problem, event)
        # From here on by what is stored, so that one damaged event is one difference.
        version = event.version if isinstance(event.version, int) else head.version + 1
        conversation = version if event.type in CONVERSATION_TYPES else head.conversation_version
        deleted = head.deleted or event.type == EventType.SESSION_DELETED
        self._heads[stream_id] = _Head(version, conversation, logged.chain, deleted)
        self._compare_with_anchor(event, logged.chain)
        if problems:
            self._damaged.add(event.position)
        if self._is_to_be_folded(event):
            self._fold(upcast(event))

    def _begin(self, event: RecordedEvent, facts: StreamFacts | None, snapshot: Snapshot) -> _Head:
        """The head of a stream before the first event of it that is read."""
        stream, before = event.stream, 0
        if isinstance(stream.id, int) and isinstance(event.version, int):
            before = event.version - 1
        first = event
        if self._since and before:
            for position in snapshot.positions_of([stream])[:1]:
                (logged,) = snapshot.read_log(position - 1, position, 1)
                first = logged.event
        key, nonce = _identity(first) or (stream.key, facts.nonce if facts else b"")
        if facts is None:
            self.report.add(Difference("streams", f"stream {stream.id}", "has no row"))
            self._misnamed.add(stream.id)
        elif (facts.stream.key, facts.nonce) != (key, nonce):
            self._add("streams", stream, "names another stream than its first event", first)
            self._misnamed.add(stream.id)
        elif not _is_sound(facts):  # which is told where rows are compared
            self._misnamed.add(stream.id)
        if self._misnamed:
            self.report.fixable = False
        if self._since and before:
            link = snapshot.link_at(stream.id, before)
            return _Head(before if link else 0, 0, link or b"", deleted=False)
        return _Head(0, 0, _first_link(key, nonce), deleted=False)

    def _is_to_be_folded(self, event: RecordedEvent) -> bool:
        return event.position not in self._damaged and event.stream.id not in self._misnamed

    def _fold(self, event: RecordedEvent) -> None:
        if event.type in REMOVAL_TYPES:
            self._scavenged |= _removed(event)
        for folding in self.foldings:
            folding.fold(event)

    def _compare_with_anchor(self, event: RecordedEvent, chain: bytes) -> None:
        if self._against is None:
            return
        version, link = self._against.streams.get(event.stream.id, (0, b""))
        if version == event.version:
            self._proved.add(event.stream.id)
            if link != chain:
                self._add("anchor", event.stream, "has another history than the anchor's", event)

    # The comparison.

    def _finish(self, after: int, snapshot: Snapshot) -> None:
        with snapshot.as_it_stands():
            self._compare(after, snapshot)

    def _compare(self, after: int, snapshot: Snapshot) -> None:
        self.report.head = head = snapshot.head()
        if self._since > head:
            # What a check before has seen, if it was one that gave the position, is gone.
            problem = f"end at position {head}, before {self._since}"
            self.report.add(Difference("events", "", problem))
        while after < head:
            after = self._page(after, head, snapshot)
        registered = snapshot.registered()
        for folding in self.foldings:
            if folding.upto is not None:
                self._follow(folding, registered[folding.projection.name], snapshot)
            self._compare_table(folding, snapshot)
        self._compare_streams(snapshot)
        if not self._since:
            for line in snapshot.check_file():
                self.report.add(Difference("file", self.report.path, line))
            if self.report.clean:
                heads = {id_: (head.version, head.chain) for id_, head in self._heads.items()}
                self.report.anchor = Anchor(head, heads)

    def _follow(self, folding: _Folding, row: Registered, snapshot: Snapshot) -> None:
        """Folds what an asynchronous projection did while the log was read."""
        assert row.checkpoint is not None
        if row.checkpoint > self.report.head:
            table = folding.projection.table.name
            self.report.add(
                Difference(table, "", "is noted as written up to a place behind the last event")
            )
        folding.upto = row.checkpoint
        while logged := snapshot.read_log(folding.at, row.checkpoint, _PAGE_EVENTS):
            for each in logged:
                if self._is_to_be_folded(each.event):
                    folding.fold(upcast(each.event))
            folding.at = logged[-1].event.position

    def _compare_table(self, folding: _Folding, snapshot: Snapshot) -> None:
        projection, table = folding.projection, folding.table
        name = projection.table.name
        if snapshot.table_page(projection, None, 1) is None:
            self.report.add(Difference(name, "", "is missing, or lacks a column"))
            return
        if isinstance(table, PartialTable):
            pairs = _touched_pairs(table, projection, snapshot)
        else:
            pairs = _pairs(_stored_rows(projection, snapshot), table.rows(), len(table.table.key))
        count = 0
        try:
            for stored, expected in pairs:
                count += 1
                if stored != expected:
                    self._add_row(projection, stored, expected, snapshot)
        except TypeError:  # in a damaged page a key may be of any type, which has no order
            self.report.add(Difference(name, "", "holds a key that is of another type"))
        self.report.rows[name] = count

    def _add_row(
        self, projection: Projection, stored: Row | None, expected: Row | None, snapshot: Snapshot
    ) -> None:
        row = stored or expected
        assert row is not None
        table = projection.table
        if stored is None:
            problem = "is missing"
        elif expected is None:
            problem = "is in no event of the log"
        else:
            problem = "differs"
        names = (*table.key, *table.columns)
        if self.report.add(
            Difference(
                table.name,
                _row_name(table.key, row, snapshot),
                problem,
                None if stored is None else dict(zip(names, stored, strict=True)),
                None if expected is None else dict(zip(names, expected, strict=True)),
            )
        ):
            key = row[: len(table.key)]
            self._unexplained.append((len(self.report.differences) - 1, projection, key))

    def _compare_streams(self, snapshot: Snapshot) -> None:
        owners: dict[StreamKey, int] = {}
        gone = {} if self._against is None else dict.fromkeys(sorted(self._against.streams))
        after = 0
        while page := snapshot.stream_facts(after, _PAGE_ROWS):
            for facts in page:
                stream = facts.stream
                # They are made before the sessions that refer to them. One of a user who was erased
                # and came back is another stream, made behind the sessions of the first.
                if stream.key.kind is not StreamKind.SESSION:
                    owners[stream.key] = stream.id
                self._compare_stream(facts, owners)
                self._compare_end_with_anchor(facts)
                gone.pop(stream.id, None)
            self.report.streams += len(page)
            after = page[-1].stream.id
        for stream_id in gone.keys() - self._proved:
            self.report.add(Difference("anchor", f"stream {stream_id}", "is gone"))

    def _compare_stream(self, facts: StreamFacts, owners: Mapping[StreamKey, int]) -> None:
        """Compares a row of `streams` with what the events of the stream say."""
        stream, key = facts.stream, facts.stream.key
        if not _is_sound(facts):
            self._add("streams", stream, "holds a value that its column cannot have")
            self.report.fixable = False
            return
        if not facts.nonce and not facts.live:
            return  # scavenged: its last version and link are all that is left
        problems = []
        user: int | None = 0
        app: int | None = 0
        if key.kind in (StreamKind.SESSION, StreamKind.USER):
            app = owners.get(StreamKey(StreamKind.APP, key.app_name))
        if key.kind is StreamKind.SESSION:
            user = owners.get(StreamKey(StreamKind.USER, key.app_name, key.user_id))
        repairable = stream.id not in self._misnamed and None not in (user, app)
        right = stream._replace(user_stream_id=user or 0, app_stream_id=app or 0)
        if (stream.user_stream_id, stream.app_stream_id) != (user, app):
            problems.append("refers to the streams of another user or app")
        head = self._heads.get(stream.id)
        if head is None and not self._since:
            # A user's or an app's stream has no event until something is carried over to it.
            head = _Head(0, 0, first_link(key, facts.nonce), deleted=False)
            if key.kind is StreamKind.SESSION and not stream.version:
                problems.append("has no events")
                repairable = False
        if head is None:
            head = _Head(stream.version, stream.conversation_version, stream.chain, not facts.live)
        if stream.version > head.version and stream.chain != head.chain:
            missing = f"{head.version + 1} to {stream.version}"
            self._add("events", stream, f"has lost its last events, versions {missing}")
            return
        if head.version == 0 and stream.chain != head.chain:
            problems.append("names another stream than the one it was made for")
            repairable = False
        elif (stream.version, stream.chain) != (head.version, head.chain):
            problems.append(f"is not at its last event, which has version {head.version}")
        if not self._since:
            if stream.conversation_version != head.conversation_version:
                last = head.conversation_version
                problems.append(f"is not at its last conversation event, {last}")
            if facts.live == head.deleted:
                problems.append(
                    "is live and has a tombstone" if facts.live else "is ended without a tombstone"
                )
        for problem in problems:
            self._add("streams", stream, problem)
        if problems and repairable:
            right = right._replace(version=head.version, chain=head.chain)
            if not self._since:
                right = right._replace(conversation_version=head.conversation_version)
            live = facts.live if self._since else not head.deleted
            self.right_streams.append(facts._replace(stream=right, live=live))
        elif problems:
            self.report.fixable = False

    def _compare_end_with_anchor(self, facts: StreamFacts) -> None:
        stream = facts.stream
        if self._against is None or stream.id in self._proved:
            return
        version, link = self._against.streams.get(stream.id, (0, b""))
        if not version:
            return
        gone = stream.id in self._scavenged and not facts.nonce and stream.version >= version
        if gone and (stream.version > version or stream.chain == link):
            self.report.scavenged_since_anchor += 1
        else:
            self._add("anchor", stream, f"had version {version}, which is not in the log any more")

    def _add(
        self, table: str, stream: Stream, problem: str, event: RecordedEvent | None = None
    ) -> None:
        touched = None if event is None else _touched(event)
        self.report.add(
            Difference(table, f"{stream.key}, stream {stream.id}", problem, event=touched)
        )

    # Which event it was.

    def _name_events(self, progress: Progress) -> None:
        """Finds the event that last touched each row that is described: a second pass."""
        if not self._unexplained:
            return
        last: dict[tuple[str, object], Touched] = {}
        after, events = self._since, 0
        while page := self._store.snapshot(partial(self._read_again, after)):
            for projection in {projection for _, projection, _ in self._unexplained}:
                wanted = {key for _, p, key in self._unexplained if p is projection}
                _last_touches(projection, wanted, [each.event for each in page], last)
            events, after = events + len(page), page[-1].event.position
            progress(events, after, self.report.head)
        for place, projection, key in self._unexplained:
            touched = last.get((projection.name, key))
            self.report.differences[place] = self.report.differences[place]._replace(event=touched)

    def _read_again(self, after: int, snapshot: Snapshot) -> Sequence[LoggedEvent]:
        with snapshot.as_it_stands():
            return snapshot.read_log(after, self.report.head, _PAGE_EVENTS)


def _last_touches(
    projection: Projection,
    wanted: set[Row],
    events: Iterable[RecordedEvent],
    last: dict[tuple[str, object], Touched],
) -> None:
    for event in events:
        try:
            changes = list(changes_of(projection, upcast(event)))
        except Exception:  # noqa: S112 - whatever a damaged event makes a projection do
            continue  # a damaged event, which has been reported
        for change in changes:
            if isinstance(change, DeleteOwner):
                touched = {key for key in wanted if key[0] == change.owner}
            else:
                touched = wanted & {change.key}
            for key in touched:
                last[projection.name, key] = _touched(event)


def _link_of(logged: LoggedEvent, before: bytes) -> bytes:
    try:
        return link_of(logged, before)
    except (AttributeError, TypeError, ValueError, struct.error):
        return b""  # in a damaged page a field may be of any type


def _first_link(key: StreamKey, nonce: bytes) -> bytes:
    try:
        return first_link(key, nonce)
    except (AttributeError, TypeError, ValueError):
        return b""  # as above


def _is_sound(facts: StreamFacts) -> bool:
    """Whether the columns of a row of `streams` are of their types, as in any sound page."""
    stream, key = facts.stream, facts.stream.key
    numbers = stream.user_stream_id, stream.app_stream_id, stream.version
    try:
        "".join(key).encode()
    except (TypeError, ValueError):
        return False
    return (
        isinstance(key.kind, StreamKind)
        and all(isinstance(n, int) for n in (*numbers, stream.conversation_version))
        and isinstance(stream.chain, bytes)
        and isinstance(facts.nonce, bytes)
    )


def _touched(event: RecordedEvent) -> Touched:
    return Touched(event.position, event.version, event.type, event.author, event.invocation_id)


def _identity(event: RecordedEvent) -> tuple[StreamKey, bytes] | None:
    """The key and nonce that a stream's first event names; None when it cannot be read."""
    try:
        stream = dict(event.payload()["stream"])
        nonce = bytes.fromhex(stream.pop("nonce"))
        key = StreamKey(StreamKind(stream.pop("kind")), **stream)
        "".join(key).encode()
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return key, nonce


def _removed(event: RecordedEvent) -> set[int]:
    """The streams that maintenance says it has removed the events of; none if unreadable."""
    try:
        return set(event.payload()["streams"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return set()


def _stored_rows(projection: Projection, snapshot: Snapshot) -> Iterator[Row]:
    after: Row | None = None
    while page := snapshot.table_page(projection, after, _PAGE_ROWS):
        yield from page
        after = page[-1][: len(projection.table.key)]


def _pairs(
    stored: Iterator[Row], expected: Iterator[Row], width: int
) -> Iterator[tuple[Row | None, Row | None]]:
    """Rows of both sides with the same key, in key order; None where a side has none."""
    left, right = next(stored, None), next(expected, None)
    while left is not None or right is not None:
        if right is None or (left is not None and left[:width] < right[:width]):
            yield left, None
            left = next(stored, None)
        elif left is None or right[:width] < left[:width]:
            yield None, right
            right = next(expected, None)
        else:
            yield left, right
            left, right = next(stored, None), next(expected, None)


def _touched_pairs(
    table: PartialTable, projection: Projection, snapshot: Snapshot
) -> Iterator[tuple[Row | None, Row | None]]:
    """The rows that a fold of the log's end has touched, as stored and as far as they are known."""
    width = len(projection.table.key)
    for row in table.rows():
        stored = snapshot.row(projection, row[:width])
        yield stored, table.known(row, stored)
    for owner in table.gone_owners:
        left = {row[:width] for row in table.owned_rows(owner)}
        for stored in snapshot.owned_rows(projection, [owner]):
            if stored[:width] not in left:
                yield stored, None
    for key in table.gone:
        yield snapshot.row(projection, key), None


def _row_name(key: Iterable[str], row: Row, snapshot: Snapshot) -> str:
    owner = snapshot.get_facts([row[0]]).get(row[0]) if isinstance(row[0], int) else None
    parts = [f"{name} {value!r}" for name, value in list(zip(key, row, strict=False))[1:]]
    name = f"stream {row[0]}" if owner is None else str(owner.stream.key)
    return ", ".join([name, *parts])
