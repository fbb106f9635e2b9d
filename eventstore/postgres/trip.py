"""Statements that are sent together and answered together: one round trip.

psycopg's own pipelines send each statement by itself, and take longer to prepare and to send one
than the server takes to execute it. A group that is committed is a dozen of them.
"""

from __future__ import annotations

import selectors
from collections.abc import Sequence
from itertools import count
from types import TracebackType
from typing import Any, Final

import psycopg
from psycopg.adapt import Transformer
from psycopg.pq import ExecStatus

from eventstore.postgres.arrays import Array
from eventstore.postgres.connection import Connection

__all__ = ["Answer", "Trip"]

_INT8: Final = 20
_BOOL: Final = 16
_BYTEA: Final = 17
_TEXT: Final = 25
_BINARY: Final = 1
_numbers: Final = count(1)
_PREPARED_MAX: Final = 256
"""How many statements a connection keeps prepared: far more than there are, unless projections of
a user's add to columns in ever new combinations."""
_Selector: Final = getattr(selectors, "PollSelector", selectors.SelectSelector)
_FINE: Final = {ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK}


class Answer:
    """What a statement gave, once the trip is over."""

    def __init__(self) -> None:
        self.rows: list[tuple[Any, ...]] = []

    def fetchone(self) -> tuple[Any, ...] | None:
        """The first row."""
        return self.rows[0] if self.rows else None

    def fetchall(self) -> list[tuple[Any, ...]]:
        """All rows."""
        return self.rows


class Trip:
    """Collects statements while its block lasts, and makes the trip at its end.

    `prepared` are the statements this connection knows, by their SQL; None where it keeps none, for
    a pooler is in between. An error of one statement is raised by the block; those behind it were
    not executed.
    """

    def __init__(self, connection: Connection, prepared: dict[str, bytes] | None) -> None:
        self._connection = connection
        self._prepared = prepared
        self._asked: list[tuple[str, list[int], list[bytes], Answer]] = []
        self.failed: str | None = None
        """The SQL of the statement whose error the block raised."""

    def execute(
        self,
        sql: str,
        parameters: Sequence[Any] = (),
        *,
        binary: bool = True,
    ) -> Answer:
        """Puts a statement behind the others."""
        answer = Answer()
        types, values = [], []
        for value in parameters:
            kind, data = _dumped(value)
            types.append(kind)
            values.append(data)
        self._asked.append((sql, types, values, answer))
        return answer

    def __enter__(self) -> Trip:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None and self._asked:
            self._go()

    def _go(self) -> None:
        pgconn = self._connection.pgconn
        pgconn.enter_pipeline_mode()
        expected: list[tuple[str, bytes, Answer | None]] = []
        for sql, types, values, answer in self._asked:
            formats = [_BINARY] * len(values)
            known = self._prepared
            if known is None or (sql not in known and len(known) >= _PREPARED_MAX):
                pgconn.send_query_params(sql.encode(), values, types, formats, _BINARY)
            else:
                name = known.get(sql)
                if name is None:
                    name = b"eventstore_%d" % next(_numbers)
                    pgconn.send_prepare(name, sql.encode(), types)
                    expected.append((sql, name, None))
                pgconn.send_query_prepared(name, values, formats, _BINARY)
            expected.append((sql, b"", answer))
        pgconn.pipeline_sync()
        failed = None
        for sql, name, asked in expected:
            result = self._next()
            if result.status not in _FINE:
                if failed is None:
                    failed, self.failed = result, sql
            elif asked is None:
                assert self._prepared is not None
                self._prepared[sql] = name
            elif result.status == ExecStatus.TUPLES_OK and result.ntuples:
                loader = Transformer(self._connection)
                loader.set_pgresult(result)
                asked.rows = loader.load_rows(0, result.ntuples, tuple)
        while self._next().status != ExecStatus.PIPELINE_SYNC:
            continue
        pgconn.exit_pipeline_mode()
        if failed is not None:
            raise psycopg.errors.error_from_result(failed, self._connection.info.encoding)

    def _next(self) -> Any:
        """The next result, waited for."""
        pgconn = self._connection.pgconn
        while True:
            while pgconn.flush() or pgconn.is_busy():
                self._wait()
            result = pgconn.get_result()
            if result is not None:
                return result  # None stands between the results of two statements

    def _wait(self) -> None:
        pgconn = self._connection.pgconn
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if pgconn.flush() else 0)
        with _Selector() as selector:
            selector.register(pgconn.socket, wanted)
            for _, what in selector.select():
                if what & selectors.EVENT_READ:
                    pgconn.consume_input()


def _dumped(value: Any) -> tuple[int, bytes]:
    """A parameter's type and its bytes, in PostgreSQL's binary format."""
    if isinstance(value, Array):
        return value.oid, value.data
    if isinstance(value, bool):
        return _BOOL, b"\x01" if value else b"\x00"
    if isinstance(value, int):
        return _INT8, value.to_bytes(8, "big", signed=True)
    if isinstance(value, str):
        return _TEXT, value.encode()
    assert isinstance(value, bytes), type(value)
    return _BYTEA, value
