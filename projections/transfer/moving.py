"""Export, import and copy: a log goes by, is proved, and is written where it is to be."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, TypeVar

from eventstore import (
    CorruptEvent,
    EventIdConflict,
    EventStore,
    EventStoreError,
    EventType,
    LoggedEvent,
    MaintenanceTransaction,
    PathUnusable,
    Projection,
    Snapshot,
    Stream,
    StreamFacts,
    StreamKey,
    StreamKind,
    open_store,
    pending_migrations,
    put_in_place,
)
from eventstore.chain import first_link
from eventstore.location import resolve
from projections.anchors import Anchor
from projections.backup import CopyDamaged
from projections.files import (
    give_name,
    new_file_beside,
    private_file,
    usable_file,
    usable_target,
)
from projections.kept import KeptKeys
from projections.rebuild import Progress
from projections.transfer.portable import BEGINNING, Reader, Writer
from projections.transfer.proof import Proof
from projections.transfer.scope import WHOLE, Part, StoredLog
from projections.verify import Verified, verify

__all__ = [
    "Exists",
    "NotEmpty",
    "Taken",
    "TargetDamaged",
    "copy_log",
    "export_log",
    "import_log",
    "is_export",
    "is_there",
]

_EVENTS_PER_TRANSACTION: Final = 2_000
_BYTES_PER_TRANSACTION: Final = 16 * 1024 * 1024
_CARRIED_OVER: Final = (
    "Asynchronous projections do not have what its events carry over. Make them anew: "
    "rebuild-projections --projection NAME"
)
_DELETED_HERE: Final = (
    "Some were deleted here since, and are not brought back: run adk-eventstore vacuum, then "
    "import an export of their app, user or session."
)
T = TypeVar("T")


class NotEmpty(EventStoreError):
    """A whole log can only be put where there is none."""

    def __init__(self, path: str) -> None:
        super().__init__(
            f"{path} has events of its own, and a whole log keeps its positions. Name a new "
            "database, or export an app, a user or a session and import that: "
            "adk-eventstore export --app NAME."
        )
        self.path = path


class Exists(EventStoreError):
    """What is to be taken in has a name that something else has here."""

    def __init__(self, stream: str) -> None:
        super().__init__(
            f"{stream} is there already, with another history. Nothing was kept. "
            "Delete it first, or take in something else."
        )
        self.stream = stream


class TargetDamaged(EventStoreError):
    """A log was taken, all of it, into a database that does not verify."""

    def __init__(self, path: str, verified: Verified) -> None:
        drifted = ", ".join(f"{count} in {table}" for table, count in verified.drifted.items())
        super().__init__(
            f"{path} has taken all of it, and does not verify: {drifted}. "
            "Find out what is wrong: adk-eventstore verify"
        )
        self.path = path
        self.verified = verified


@dataclass
class Taken:
    """What was exported, imported or copied, and to where.

    `there` counts the streams that the target had already. `keys_kept` are keys of users and apps
    that an old session would have changed. `root` is the root of the anchor of a whole log, the
    same on both sides.
    """

    source: str
    target: str
    part: Part
    streams: int = 0
    events: int = 0
    there: int = 0
    keys_kept: int = 0
    size_bytes: int = 0
    root: str | None = None
    notes: tuple[str, ...] = ()


class _Given(NamedTuple):
    """A log that is read from its beginning."""

    part: Part
    streams: Iterable[StreamFacts]
    events: Iterable[LoggedEvent]
    damaged: Callable[[str], EventStoreError]


# Out of a store.


def export_log(
    store: EventStore,
    target: str | os.PathLike[str],
    part: Part = WHOLE,
    *,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress = lambda *_: None,
) -> Taken:
    """Writes a log, or a part of it, to a file of JSON Lines. Blocks.

    It is of one moment, while others write, and proved while it is read. The file has its name
    only once it is whole; its owner alone may read it.

    Raises:
        StreamNotFound: there is nothing of this part.
        CorruptEvent: the log is damaged.
        PathUnusable: the file exists and `overwrite` was not given, or its folder is read-only.
        StorageFailed: the disk is full or failing.
    """
    path = usable_file(target, overwrite=overwrite)
    done = Taken(store.path, str(path), part)
    with nullcontext(path) if dry_run else new_file_beside(path) as copy:

        def write(given: _Given) -> None:
            nowhere = Path(os.devnull)
            with nowhere.open("wb") if dry_run else private_file(copy, path) as file:
                writer = Writer(file, part)
                proof = Proof(given.damaged, whole=part.whole)
                for facts in given.streams:
                    proof.begin(facts)
                    writer.write_stream(facts)
                for logged in given.events:
                    proof.check(logged)
                    writer.write_event(logged)
                proof.finish()
                writer.end()
                done.streams, done.events = writer.streams, writer.events
                done.size_bytes = writer.size_bytes
                done.root = _root(given, proof)

        _reading(store, part, write, progress, _Stop())
        if not dry_run:
            give_name(copy, path)
    return done


class _Stop:
    """Ends work on another thread, once nobody waits for it any more."""

    def __init__(self) -> None:
        self._said = threading.Event()

    @contextmanager
    def at_interrupt(self) -> Iterator[None]:
        """Whoever waits inside may be interrupted."""
        try:
            yield
        except BaseException:
            self._said.set()
            raise

    def look(self) -> None:
        """Raises when work is to end."""
        if self._said.is_set():
            raise InterruptedError


def _reading(
    store: EventStore,
    part: Part,
    function: Callable[[_Given], T],
    progress: Progress,
    stop: _Stop,
) -> T:
    """Runs a function over a log as one snapshot shows it."""

    def damaged(reason: str) -> EventStoreError:
        return CorruptEvent(store.path, 0, 0, reason)

    def run(snapshot: Snapshot) -> T:
        log = StoredLog(snapshot, part, stop.look)

        def events() -> Iterator[LoggedEvent]:
            for count, (position, logged) in enumerate(log.read_events(), 1):
                yield logged
                if count % _EVENTS_PER_TRANSACTION == 0:
                    progress(count, position, max(position, log.head))

        return function(_Given(part, log.read_streams(), events(), damaged))

    with stop.at_interrupt():
        return store.snapshot(run)


def _root(given: _Given, proof: Proof) -> str | None:
    return Anchor(proof.head, proof.heads).root if given.part.whole else None


# Into a store.


def is_there(target: str | os.PathLike[str] | None) -> bool:
    """Whether a store has been made where a target says: a file, or a schema on a server."""
    if _on_server(target):
        return pending_migrations(target)[0] > 0
    return Path(os.path.realpath(resolve(target))).exists()


def _is_shared(target: str | os.PathLike[str] | None) -> bool:
    """Whether others may be using a target: it is on a server, or a file that is there."""
    return _on_server(target) or is_there(target)


def _on_server(target: str | os.PathLike[str] | None) -> bool:
    return "://" in resolve(target)


def is_export(path: str | os.PathLike[str]) -> bool:
    """Whether a file, which must be no database, begins as an export does."""
    try:
        with Path(path).open("rb") as file:
            return file.read(len(BEGINNING)) == BEGINNING
    except OSError as error:
        raise PathUnusable(str(path), f"cannot be read: {error.strerror}", "Name a file.") from None


def import_log(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str] | None,
    inline: Sequence[Projection],
    *,
    dry_run: bool = False,
    progress: Progress = lambda *_: None,
) -> Taken:
    """Takes an export into a database, all of it or nothing. Blocks.

    The file is proved line by line, and nothing of one that is not whole is kept. A whole log goes
    into a new database, or one without events; a part into any, where it gets new positions, in one
    transaction while others wait. What is there already is not taken again.

    Raises:
        ExportDamaged: the file is not what was written.
        NotEmpty, Exists: see there.
        TargetDamaged: all of it was taken, into a database that does not verify.
        PathUnusable: the source cannot be read, or the target not be written.
    """
    path = Path(source)
    with _open(path) as file:
        size = os.fstat(file.fileno()).st_size
    stop = _Stop()

    def read(function: Callable[[_Given], T]) -> T:
        with _open(path) as file:
            reader = Reader(file, str(path))

            def events() -> Iterator[LoggedEvent]:
                for count, logged in enumerate(reader.read_events(), 1):
                    yield logged
                    stop.look()
                    if count % _EVENTS_PER_TRANSACTION == 0:
                        progress(count, file.tell(), size)

            return function(_Given(reader.part, reader.read_streams(), events(), reader.damaged))

    proof = None
    part = read(lambda given: given.part)
    done = Taken(str(path), "", part, size_bytes=size)
    # What becomes a new file is proved while it is written, and thrown away when it is not whole.
    if dry_run or _is_shared(target):
        proof, done.streams, done.events = read(_prove)
    _put(read, proof, done, target, inline, stop, dry_run=dry_run)
    return done


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise PathUnusable(str(path), f"cannot be read: {error.strerror}", "Name a file.") from None


def copy_log(
    store: EventStore,
    target: str | os.PathLike[str],
    inline: Sequence[Projection],
    *,
    dry_run: bool = False,
    progress: Progress = lambda *_: None,
) -> Taken:
    """Copies a whole log into a new database, event by event, while others write. Blocks.

    Positions, versions, digests and links are kept; tables are made anew from the log. The source
    is proved while it is read and the copy verified, and both have the same root.

    Raises:
        NotEmpty: the target has events.
        CorruptEvent: the source is damaged.
        CopyDamaged: the copy does not verify.
    """
    done = Taken(store.path, "", WHOLE)
    stop = _Stop()

    def read(function: Callable[[_Given], T]) -> T:
        return _reading(store, done.part, function, progress, stop)

    # Two readings are of two moments: the copy is of the second one.
    if dry_run:
        _, done.streams, done.events = read(_prove)
    _put(read, None, done, target, inline, stop, dry_run=dry_run)
    return done


def _prove(given: _Given) -> tuple[Proof, int, int]:
    """Reads a log to its end; counts its streams and events."""
    proof = Proof(given.damaged, whole=given.part.whole)
    streams = events = 0
    for facts in given.streams:
        proof.begin(facts)
        streams += 1
    for logged in given.events:
        proof.check(logged)
        events += 1
    proof.finish()
    return proof, streams, events


_Read = Callable[[Callable[[_Given], Any]], Any]


def _put(
    read: _Read,
    proof: Proof | None,
    done: Taken,
    target: str | os.PathLike[str] | None,
    inline: Sequence[Projection],
    stop: _Stop,
    *,
    dry_run: bool,
) -> None:
    """Writes a log to a new file, which gets its name when it is whole, or to a store."""
    done.target = resolve(target)
    if dry_run and not is_there(target):
        return
    if _is_shared(target):
        store = open_store(target, inline)
        try:
            done.target = store.path
            _put_into(read, proof, done, store, inline, stop, dry_run=dry_run)
        finally:
            store.close()
        return
    path = usable_target(target, overwrite=False)
    with new_file_beside(path) as copy:
        store = open_store(copy, inline)
        try:
            writing = _Writing(done)
            read(partial(writing.in_steps, store))
            verified = verify(store, inline)
            anchor = verified.anchor
            # Both sides have the same root, or else it is no copy.
            if anchor is None or (done.part.whole and anchor.root != done.root):
                raise CopyDamaged(str(path), verified)
        finally:
            store.close()
        done.size_bytes = done.size_bytes or copy.stat().st_size
        usable_target(target, overwrite=False)  # another one may have come meanwhile
        put_in_place(str(copy), str(path))


def _put_into(
    read: _Read,
    proof: Proof | None,
    done: Taken,
    store: EventStore,
    inline: Sequence[Projection],
    stop: _Stop,
    *,
    dry_run: bool,
) -> None:
    if done.part.whole:
        empty = store.snapshot(lambda s: not s.stream_facts(0, 1))
        if not empty:
            if proof is None or not store.snapshot(partial(_has_all, proof.heads)):
                raise NotEmpty(store.path)
            done.there, done.streams, done.events = done.streams, 0, 0
            if store.snapshot(partial(_has_ended_one, proof.heads)):
                done.notes = (_DELETED_HERE,)
            return
    if dry_run:
        return
    before = store.snapshot(lambda s: s.head())
    writing = _Writing(done)
    with store.maintaining("take a log into it"), stop.at_interrupt():
        store.transact(lambda transaction: read(partial(writing.at_once, transaction)))
    verified = verify(store, inline, since=before)
    if not verified.clean:
        raise TargetDamaged(store.path, verified)


def _has_all(heads: Mapping[int, tuple[int, bytes]], snapshot: Snapshot) -> bool:
    return all(snapshot.link_at(n, version) == link for n, (version, link) in heads.items())


def _has_ended_one(heads: Mapping[int, tuple[int, bytes]], snapshot: Snapshot) -> bool:
    """Whether one of some streams has been deleted since they had these heads."""
    return any(
        not facts.live and facts.stream.version > heads[number][0]
        for number, facts in snapshot.get_facts(list(heads)).items()
    )


class _Writing:
    """Writes a log, once."""

    def __init__(self, done: Taken) -> None:
        self._done = done

    def in_steps(self, store: EventStore, given: _Given) -> None:
        """Into a store that nobody else has, in many transactions."""
        log = _Log(given, self._done)
        while page := list(islice(given.streams, _EVENTS_PER_TRANSACTION)):
            store.transact(partial(log.write_streams, page))
        for events in _pages(given.events):
            store.transact(partial(log.write_events, events))
        log.finish()

    def at_once(self, transaction: MaintenanceTransaction, given: _Given) -> None:
        """Into a store that others use."""
        log = _Log(given, self._done)
        log.write_streams(given.streams, transaction)
        kept = KeptKeys(transaction, log.written)
        log.write_events(given.events, transaction, kept)
        log.finish()
        log.close_deleted(transaction)
        self._done.keys_kept = kept.restore()


def _pages(events: Iterable[LoggedEvent]) -> Iterator[list[LoggedEvent]]:
    """Events by the page, few where they are large."""
    page: list[LoggedEvent] = []
    size = 0
    for logged in events:
        page.append(logged)
        size += len(logged.event.delta or b"") + len(logged.event.data or b"")
        if len(page) == _EVENTS_PER_TRANSACTION or size > _BYTES_PER_TRANSACTION:
            yield page
            page, size = [], 0
    if page:
        yield page


class _Log:
    """A log that is being written: where each of its streams is here."""

    def __init__(self, given: _Given, done: Taken) -> None:
        self._given = given
        self._proof = Proof(given.damaged, whole=given.part.whole)
        self._done = done
        self._here: dict[int, Stream] = {}
        self._ends: dict[int, StreamFacts] = {}
        """Streams that were here and live, and are deleted in the log."""
        self._by_nonce: dict[bytes, StreamFacts] | None = None
        self.written: dict[int, int] = {}
        """Streams whose own history the log has, by their ids here, each with its last version."""
        done.streams = done.events = done.there = 0

    def write_streams(
        self, streams: Iterable[StreamFacts], transaction: MaintenanceTransaction
    ) -> None:
        """Makes streams, before any events."""
        for facts in streams:
            self._proof.begin(facts)
            self._write_stream(facts, transaction)

    def _write_stream(self, facts: StreamFacts, transaction: MaintenanceTransaction) -> None:
        stream = facts.stream
        start = stream
        if facts.nonce:
            link = first_link(stream.key, facts.nonce)
            start = stream._replace(version=0, conversation_version=0, chain=link)
        if self._given.part.whole:
            here = transaction.import_stream(facts._replace(stream=start))
        elif (there := self._there(facts, transaction)) is not None:
            here = there.stream
            self._done.there += 1
            self._done.streams -= 1
            if there.live and not facts.live:
                self._ends[stream.id] = facts
            elif facts.live and not there.live:
                self._note(_DELETED_HERE)
        else:
            key = stream.key
            app_id = user_id = 0
            if key.kind in (StreamKind.SESSION, StreamKind.USER):
                app = StreamKey(StreamKind.APP, key.app_name)
                app_id = self._owner(stream.app_stream_id, app, transaction)
            if key.kind is StreamKind.SESSION:
                user = StreamKey(StreamKind.USER, key.app_name, key.user_id)
                user_id = self._owner(stream.user_stream_id, user, transaction)
            start = start._replace(id=0, app_stream_id=app_id, user_stream_id=user_id)
            if facts.live and (other := transaction.find_stream(key)) and other.version:
                raise Exists(str(key))
            here = transaction.import_stream(facts._replace(stream=start))
        self._here[stream.id] = here
        self.written[here.id] = stream.version
        self._done.streams += 1

    def _owner(self, number: int, key: StreamKey, transaction: MaintenanceTransaction) -> int:
        """The stream here that another belongs to."""
        return self._here[number].id if number else transaction.ensure_stream(key).id

    def _there(self, facts: StreamFacts, snapshot: Snapshot) -> StreamFacts | None:
        """The very same stream, when an earlier import or this one's origin has put it here."""
        if self._by_nonce is None:
            assert self._given.part.app_name is not None
            ids = [stream.id for stream in snapshot.streams_of_app(self._given.part.app_name)]
            found = snapshot.get_facts(ids).values()
            self._by_nonce = {each.nonce: each for each in found}
        return self._by_nonce.get(facts.nonce)

    def write_events(
        self,
        events: Iterable[LoggedEvent],
        transaction: MaintenanceTransaction,
        kept: KeptKeys | None = None,
    ) -> None:
        """Writes events behind each other."""
        try:
            for logged in events:
                self._proof.check(logged)
                self._write_event(logged, transaction, kept)
            transaction.flush()
        except EventIdConflict:
            reason = "an event has an id that another one of its stream has"
            raise self._given.damaged(reason) from None

    def _write_event(
        self, logged: LoggedEvent, transaction: MaintenanceTransaction, kept: KeptKeys | None
    ) -> None:
        event = logged.event
        here = self._here[event.stream.id]
        if event.version <= here.version:
            if transaction.link_at(here.id, event.version) != logged.chain:
                raise Exists(str(here.key))
            return
        if kept is not None:
            kept.expect(here, event.delta, event.encoding)
        self._here[event.stream.id] = transaction.import_event(here, logged, event.position)
        self._done.events += 1
        if event.type == EventType.CARRIED_OVER and not self._given.part.whole:
            self._note(_CARRIED_OVER)

    def _note(self, note: str) -> None:
        if note not in self._done.notes:
            self._done.notes = (*self._done.notes, note)

    def close_deleted(self, transaction: MaintenanceTransaction) -> None:
        """Ends streams that were live here and have got their tombstone."""
        for number, facts in self._ends.items():
            transaction.put_stream(facts._replace(stream=self._here[number], live=False))

    def finish(self) -> None:
        """Asserts that the log was whole."""
        self._proof.finish()
        self._done.root = _root(self._given, self._proof)
