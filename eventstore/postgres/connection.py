"""Connections to the server, and the typed errors for what the driver raises."""

from __future__ import annotations

import asyncio
import inspect
import os
import socket
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

import psycopg
from psycopg.adapt import Loader
from psycopg.pq import Format, TransactionStatus
from psycopg.types.numeric import FloatBinaryDumper, Int8, Int8BinaryDumper
from psycopg.types.string import StrBinaryDumper

from eventstore.errors import (
    EventStoreError,
    InvalidIdentifier,
    PathUnusable,
    SchemaAltered,
    ServerUnavailable,
    StorageFailed,
    StoreBusy,
    TimedOut,
    ValueNotStorable,
)
from eventstore.location import is_server, resolve
from eventstore.postgres.address import Address, parse_url
from eventstore.postgres.arrays import register

__all__ = [
    "Connect",
    "Connection",
    "Connector",
    "is_broken",
    "is_lost",
    "leads_to_standby",
    "sever",
    "translate",
]

Connection = psycopg.Connection[tuple[Any, ...]]

Connect = Callable[[], "str | Awaitable[str]"]
"""Returns the URL to connect with, each time a connection is made: for passwords that expire."""

_OLDEST_SERVER: Final = 140000
_PREPARED_AFTER: Final = 2
_LOST_STATES: Final = ("08", "57P")


class _IntegerDumper(Int8BinaryDumper):
    """Every int as a bigint: else a statement is prepared anew for each size of a number."""

    def dump(self, obj: int) -> bytes:
        return obj.to_bytes(8, "big", signed=True)

    def upgrade(self, obj: int, format: object) -> _IntegerDumper:  # noqa: A002 - psycopg's name
        return self

    def get_key(self, obj: int, format: object) -> type:  # noqa: A002
        return int


class _PayloadLoader(Loader):
    """Text as it is stored. Payloads are selected as varchar, which no other column is."""

    format = Format.BINARY

    def load(self, data: object) -> bytes:
        return bytes(data)  # type: ignore[call-overload,no-any-return]


class Connector:
    """Makes connections to one address."""

    def __init__(self, address: Address, connect: Connect | None = None) -> None:
        self.address = address
        self._connect = connect

    def open(self) -> Connection:
        """A new connection in autocommit mode.

        Raises:
            ServerUnavailable, PathUnusable: see eventstore.errors.
        """
        address = self.address
        url = address.url if self._connect is None else self._url(self._connect)
        try:
            connection: Connection = psycopg.connect(
                url,
                autocommit=True,
                # Whatever a role's settings or the environment say.
                client_encoding="utf8",
                cursor_factory=psycopg.RawCursor,
                # Which is shown to whoever finds maintenance under way.
                fallback_application_name=f"adk-eventstore process {os.getpid()}",
                prepare_threshold=_PREPARED_AFTER,
            )
        except psycopg.OperationalError as error:
            raise _unavailable(address, error, url) from None
        except (psycopg.Error, ValueError, UnicodeError):
            raise PathUnusable(
                address.shown, "has a URL that PostgreSQL's library cannot read", _REMEDY
            ) from None
        try:
            self._prepare(connection)
        except psycopg.Error as error:
            connection.close()
            raise translate(address, error) from None
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: Connection) -> None:
        adapters = connection.adapters
        adapters.register_dumper(int, _IntegerDumper)
        adapters.register_dumper(Int8, _IntegerDumper)
        adapters.register_dumper(float, FloatBinaryDumper)
        adapters.register_dumper(str, StrBinaryDumper)
        adapters.register_loader("varchar", _PayloadLoader)
        register(connection)
        info = connection.info
        if info.server_version < _OLDEST_SERVER:
            raise PathUnusable(
                self.address.shown,
                f"is PostgreSQL {info.server_version // 10_000}",
                "PostgreSQL 14 or newer is needed.",
            )
        row = connection.execute(
            "SELECT pg_backend_pid(), current_setting('server_encoding')", binary=True
        ).fetchone()
        assert row is not None
        if row[1] != "UTF8":
            raise PathUnusable(
                self.address.shown,
                f"has the encoding {row[1]}",
                "Make a database with the encoding UTF8.",
            )
        if row[0] != info.backend_pid:
            # A pooler stands in between: the next transaction may run on another backend, which
            # does not know what was prepared on this one.
            connection.prepare_threshold = None

    def _url(self, connect: Connect) -> str:
        """What the user's function says; a coroutine is run in a thread of its own."""
        try:
            url: Any = connect()
            if inspect.isawaitable(url):
                url = _run(url)
        except EventStoreError:
            raise
        except (Exception, asyncio.CancelledError) as error:
            raise ServerUnavailable(
                self.address.shown,
                f"is not available (connect() raised {type(error).__name__})",
                "Nothing of this request was stored. See that whatever connect() asks for the URL "
                "answers, then try again.",
            ) from error
        resolved = resolve(url)
        if not is_server(resolved):
            raise PathUnusable("what connect() returned", "is no postgresql: URL", _REMEDY)
        return parse_url(resolved, self.address.schema).url


def _run(awaitable: Awaitable[str]) -> str:
    found: list[str] = []
    failed: list[BaseException] = []

    async def wait() -> str:
        return await awaitable

    def work() -> None:
        try:
            found.append(asyncio.run(wait()))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work, name="eventstore-connect", daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return found[0]


_REMEDY: Final = "Write it as postgresql://user@host:5432/database, special characters as %XX."


def is_broken(connection: Connection) -> bool:
    """Whether nothing more can be done with a connection."""
    return connection.closed or connection.pgconn.transaction_status == TransactionStatus.UNKNOWN


def is_lost(error: BaseException, connection: Connection | None) -> bool:
    """Whether an error is about the connection or the server, not about what was asked."""
    if isinstance(error, ServerUnavailable):
        return True
    if not isinstance(error, psycopg.Error):
        return False
    state = error.sqlstate or ""
    if state.startswith(_LOST_STATES) or _is_read_only(error):
        return True
    return connection is None or is_broken(connection)


def _is_read_only(error: psycopg.Error) -> bool:
    """Whether the server takes no writes: it is a standby now."""
    if error.sqlstate == "25006":
        return True
    # To a standby a transaction that writes is a feature it does not have, like many others; what
    # refuses it is the check of a setting.
    return error.sqlstate == "0A000" and error.diag.source_function == "call_bool_check_hook"


def leads_to_standby(connection: Connection) -> bool:
    """Whether the server says that it follows another one: what is read there may be old."""
    return connection.info.parameter_status("in_hot_standby") == "on"


def sever(connection: Connection) -> None:
    """Cuts a connection that another thread waits on: the wait ends with an error."""
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as end:
        end.shutdown(socket.SHUT_RDWR)


def _unavailable(address: Address, error: psycopg.Error, url: str = "") -> ServerUnavailable:
    """The error for a server that cannot be reached, without any password."""
    lines = str(error).strip().splitlines()
    reason = lines[0].strip() if lines and not error.sqlstate else type(error).__name__
    if error.sqlstate and error.diag.message_primary:
        reason = error.diag.message_primary
    for secret in _secrets(url or address.url):
        reason = reason.replace(secret, "***")
    return ServerUnavailable(
        address.shown,
        f"is not available ({reason})",
        "Nothing of this request was stored. See that the server runs, has this database, takes "
        "connections from here and lets this user in, then try again.",
    )


def _secrets(url: str) -> list[str]:
    try:
        found = psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.Error:
        return []
    return [str(found[name]) for name in ("password", "sslpassword") if found.get(name)]


def translate(address: Address, error: BaseException) -> BaseException:
    """The typed error for one of the driver's; all others come back as they are.

    Never with the driver's text, which may hold content.
    """
    if not isinstance(error, psycopg.Error):
        return error
    state = error.sqlstate or ""
    shown = address.shown
    if _is_read_only(error):
        return ServerUnavailable(
            shown, "is read-only: a standby?", "Add target_session_attrs=read-write to the URL."
        )
    match state:
        case "55P03":
            return StoreBusy(shown, address.lock_timeout_s, "another transaction")
        case "40P01" | "40001":
            return StoreBusy(shown, 0.0, "other transactions that wait for each other")
        case "57014":
            return TimedOut(shown, address.statement_timeout_s)
        case "25P03" | "25P04":  # it took longer than a transaction of the role may, or idled
            return _unavailable(address, error)
        case "53100":
            return StorageFailed(shown, "the server's disk is full")
        case "54000":
            return InvalidIdentifier("an id or state key", "is too long for an index of PostgreSQL")
        case "42501":
            return PathUnusable(
                shown,
                "lets this role do less than it needs",
                "Grant it what docs/postgresql.md says. What makes tables anew or removes events, "
                "and an import of a whole log, is for the role that owns the schema.",
            )
    kind = state[:2]
    if kind in ("53", "58", "XX"):
        return StorageFailed(shown, f"the server failed ({state})")
    if kind in ("08", "28", "3D", "57") or (
        not state and isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    ):
        return _unavailable(address, error)
    if kind == "22" or isinstance(error, psycopg.DataError):
        return ValueNotStorable("the request", "PostgreSQL cannot hold a value of it")
    return SchemaAltered(
        shown,
        f"does not answer as a database of this package does ({state or type(error).__name__})",
        "Find out what is wrong: adk-eventstore verify.",
    )
