"""Every error the store raises, named after the situation.

    EventStoreError
    |-- StreamNotFound            no live stream has this key
    |-- StreamExists              a live stream has this key already
    |-- WrongExpectedVersion      somebody else appended first
    |-- EventIdConflict           this event id is stored with other content
    |-- InvalidInput              (also a ValueError) the request cannot be stored
    |   |-- InvalidIdentifier     an id or key the databases cannot hold, or too long
    |   |-- ValueNotStorable      a value no JSON can hold, or too deep or too large
    |   `-- InvalidProjection     a projection whose parts no database can hold
    |-- StoreClosed               used after close()
    |-- StoreBusy                 another process held the file past the deadline
    |-- StorageFailed             the disk is full or failing; nothing was stored
    |-- TimedOut                  the server did not finish within the deadline; nothing was stored
    |-- OutcomeUnknown            may or may not be stored; retry with the same event
    |-- CorruptEvent              a stored event does not match its digest or version
    |-- CorruptRow                a row of a projection cannot be read
    |-- UnknownEvent              an event's type or schema version is newer than this package
    |-- ProjectionMissing         a projection the database relies on is absent or differs
    |-- ProjectionFailed          a projection raised, or made a change that cannot be stored
    |-- MaintenanceRunning        another rebuild, verification or vacuum is under way
    |-- NotOnThisDatabase         something that another kind of database does, or another program
    `-- StoreUnusable             the path cannot be used as a store
        |-- PathUnusable          missing, unwritable, a directory, a network file system
        |-- ServerUnavailable     the server cannot be reached, or refuses this user
        |-- NotADatabase          the file is not SQLite
        |-- ForeignDatabase       the file belongs to another program
        |-- SchemaTooNew          written by a newer version of this package
        |-- SchemaAltered         our tables, triggers or views were changed
        |-- DatabaseReplaced      the file was removed or replaced while open
        `-- DatabaseInUse         a file that somebody has open cannot be replaced

Each carries its facts as attributes and ends its message with the remedy.
Messages name ids and sizes, never the content of an event or a state value.
"""

from __future__ import annotations

__all__ = [
    "CorruptEvent",
    "CorruptRow",
    "DatabaseInUse",
    "DatabaseReplaced",
    "EventIdConflict",
    "EventStoreError",
    "ForeignDatabase",
    "InvalidIdentifier",
    "InvalidInput",
    "InvalidProjection",
    "MaintenanceRunning",
    "NotADatabase",
    "NotOnThisDatabase",
    "OutcomeUnknown",
    "PathUnusable",
    "ProjectionFailed",
    "ProjectionMissing",
    "SchemaAltered",
    "SchemaTooNew",
    "ServerUnavailable",
    "StorageFailed",
    "StoreBusy",
    "StoreClosed",
    "StoreUnusable",
    "StreamExists",
    "StreamNotFound",
    "TimedOut",
    "UnknownEvent",
    "ValueNotStorable",
    "WrongExpectedVersion",
]


class EventStoreError(Exception):
    """Base of every error this package raises on purpose."""

    exit_code = 2
    """What a command exits with when this error ends it: 2, "could not run"."""

    def __reduce__(self) -> tuple[object, ...]:
        # Copied and pickled by its facts; the default would call __init__ with the message.
        return _restore, (type(self), self.args, self.__dict__)


def _restore(
    kind: type[EventStoreError], arguments: tuple[object, ...], facts: dict[str, object]
) -> EventStoreError:
    error = kind.__new__(kind, *arguments)
    error.args = arguments
    error.__dict__.update(facts)
    return error


class StreamNotFound(EventStoreError):
    """No live stream has this key: it was never created, or it was deleted."""

    def __init__(self, stream: str, remedy: str = "Create it first.") -> None:
        super().__init__(f"{stream} does not exist. {remedy}")
        self.stream = stream


class StreamExists(EventStoreError):
    """A live stream has this key already; nothing of the refused request was stored."""

    def __init__(self, stream: str) -> None:
        super().__init__(f"{stream} already exists. Load it, or choose another id.")
        self.stream = stream


class WrongExpectedVersion(EventStoreError):
    """Somebody else appended to the stream since the caller read it."""

    def __init__(self, stream: str, expected: str, actual: str) -> None:
        super().__init__(
            f"{stream} has moved on: expected version {expected}, actual version {actual}. "
            "Load it again and redo the change on what is there now."
        )
        self.stream = stream
        self.expected = expected
        self.actual = actual


class EventIdConflict(EventStoreError):
    """The stream holds an event with this id and other content."""

    def __init__(self, stream: str, event_id: str, version: int) -> None:
        super().__init__(
            f"{stream} already holds event {event_id!r} at version {version} with other content. "
            "Give the new event an id of its own."
        )
        self.stream = stream
        self.event_id = event_id
        self.version = version


class InvalidInput(EventStoreError, ValueError):
    """The request cannot be stored as it stands; nothing was written."""


class InvalidIdentifier(InvalidInput):
    """An id or state key that is no string, holds NUL or a lone surrogate, or is too long."""

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(f"{what} {reason}. Pass a str of Unicode text without NUL.")
        self.what = what
        self.reason = reason


class ValueNotStorable(InvalidInput):
    """A value that JSON cannot hold, or that exceeds a limit."""

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(f"{what} cannot be stored: {reason}.")
        self.what = what
        self.reason = reason


class InvalidProjection(InvalidInput):
    """A projection whose name, version, table or views no database can hold."""

    def __init__(self, projection: str, reason: str) -> None:
        super().__init__(f"Projection {projection} {reason}. Mend its definition.")
        self.projection = projection
        self.reason = reason


class StoreClosed(EventStoreError):
    """The store was closed; open a new one to go on."""

    def __init__(self, path: str) -> None:
        super().__init__(f"The store on {path} is closed. Open a new one to go on.")
        self.path = path


class StoreBusy(EventStoreError):
    """Another process held the write lock past the deadline; nothing was stored."""

    def __init__(self, path: str, waited_s: float, holder: str) -> None:
        super().__init__(
            f"{path} was busy for {waited_s:.0f} s: the write lock is held by {holder}. "
            "Nothing was stored. End that process or wait for it, then try again."
        )
        self.path = path
        self.waited_s = waited_s
        self.holder = holder


class StorageFailed(EventStoreError):
    """The disk refused a read or a write; nothing of the request was stored."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(
            f"{path}: {reason}. Nothing of this request was stored. "
            "Free space or mend the disk, then try again."
        )
        self.path = path
        self.reason = reason


class TimedOut(EventStoreError):
    """The server did not finish a statement within the deadline; nothing was stored."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__(
            f"{path}: the server did not finish within {timeout_s:g} s. Nothing of this request "
            "was stored. See what keeps the server busy, or allow more time: ?statement_timeout=60"
        )
        self.path = path
        self.timeout_s = timeout_s


class OutcomeUnknown(EventStoreError):
    """The request may or may not be stored; a retry with the same event is safe."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(
            f"{path}: {reason}. Whether the request was stored could not be found out. "
            "Append the same event again: it is stored once, whichever happened."
        )
        self.path = path
        self.reason = reason


class CorruptEvent(EventStoreError):
    """A stored event that is not what was written: named, never served."""

    def __init__(self, stream: str, version: int, position: int, reason: str) -> None:
        super().__init__(
            f"{stream}: event at version {version}, position {position}: {reason}. "
            "Restore the file from a backup, or save the rest: adk-eventstore recover."
        )
        self.stream = stream
        self.version = version
        self.position = position
        self.reason = reason


class CorruptRow(EventStoreError):
    """A row that cannot be read; the log can make one of a projection anew."""

    def __init__(self, table: str, reason: str, remedy: str = "Run: rebuild-projections") -> None:
        super().__init__(f"A row of {table} {reason}. {remedy}")
        self.table = table
        self.reason = reason


class UnknownEvent(EventStoreError):
    """An event of a type or schema version that this version of the package does not know."""

    def __init__(self, stream: str, position: int, type_: str, schema_version: int) -> None:
        super().__init__(
            f"{stream}: event at position {position} has type {type_!r} in schema version "
            f"{schema_version}, which this version cannot read. Upgrade adk-eventstore."
        )
        self.stream = stream
        self.position = position
        self.type = type_
        self.schema_version = schema_version


class ProjectionFailed(EventStoreError):
    """A projection raised, or made a change that its table cannot hold."""

    def __init__(self, projection: str, position: int, reason: str) -> None:
        super().__init__(
            f"Projection {projection!r} failed at position {position}: {reason}. "
            "Mend the projection; raise its version when rows it wrote have to change."
        )
        self.projection = projection
        self.position = position
        self.reason = reason


class MaintenanceRunning(EventStoreError):
    """Another rebuild, verification or vacuum of this database is under way."""

    def __init__(self, path: str, operation: str, holder: str) -> None:
        super().__init__(
            f"{path}: cannot {operation} while {holder} rebuilds, verifies or cleans it up. "
            "Wait for it to end, then try again."
        )
        self.path = path
        self.operation = operation
        self.holder = holder


class NotOnThisDatabase(EventStoreError):
    """Something this kind of database does not do through this package."""

    def __init__(self, path: str, operation: str, remedy: str) -> None:
        super().__init__(f"{path}: cannot {operation} a database of this kind. {remedy}")
        self.path = path
        self.operation = operation
        self.remedy = remedy


class ProjectionMissing(EventStoreError):
    """A projection is absent, of another version, or lacks a row it must have."""

    def __init__(self, projection: str, reason: str, remedy: str) -> None:
        super().__init__(f"Projection {projection!r}: {reason}. {remedy}")
        self.projection = projection
        self.reason = reason


class StoreUnusable(EventStoreError):
    """The path cannot be used as a store."""

    def __init__(self, path: str, reason: str, remedy: str) -> None:
        super().__init__(f"{path} {reason}. {remedy}")
        self.path = path
        self.reason = reason


class PathUnusable(StoreUnusable):
    """The path is missing, not writable, a directory, or on a network file system."""


class ServerUnavailable(StoreUnusable):
    """The server cannot be reached, or refuses this user; nothing of the request was stored."""


class NotADatabase(StoreUnusable):
    """The file is not a SQLite database, or it is damaged beyond opening."""


class ForeignDatabase(StoreUnusable):
    """The file is a database of another program."""


class SchemaTooNew(StoreUnusable):
    """The database was written by a newer version of this package."""


class SchemaAltered(StoreUnusable):
    """Tables, triggers or views of the store were changed by another program."""


class DatabaseReplaced(StoreUnusable):
    """The file was removed or replaced while it was open."""


class DatabaseInUse(StoreUnusable):
    """A file cannot be replaced or read as it stands, for somebody has it open."""
