"""What loading an event is made of, and what a copy of a made one would cost.

    python -m benchmarks.loading

Microseconds of each event, the best of some passes over a session of a thousand, on one thread.
"""

from __future__ import annotations

import copy
import gc
import pickle
import sqlite3
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from google.adk.events import Event

from adk_adapter.codec import decode_event
from adk_adapter.constructors import construct_event
from benchmarks.prefill import APP, NAMED_USER, Shape, prefill
from eventstore import EventType, StreamKey, StreamKind
from eventstore.chain import digest
from eventstore.encoding import decode
from eventstore.sqlite.queries import QUERIES
from eventstore.sqlite.transaction import ReadTransaction

EVENTS = 1_000
PASSES = 15


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.sqlite3"
        prefill(path, sessions=0, events=0, named={"one": Shape(EVENTS)})
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            for what, function in stages(connection).items():
                print(f"{what:58}{best_us(function):6.1f}")


def stages(connection: sqlite3.Connection) -> dict[str, Callable[[], object]]:
    """What is measured: each a function over all events of the session."""
    transaction = ReadTransaction(connection, {})
    stream = transaction.require_stream(StreamKey(StreamKind.SESSION, APP, NAMED_USER, "one"))
    select = QUERIES["read_stream_forward"]
    rows = connection.execute(select, (stream.id, 0)).fetchall()
    recorded = [e for e in transaction.read(stream) if e.type == EventType.ADK_EVENT]
    texts = [(event.data or b"", event.delta or b"null") for event in recorded]
    plain = [decode(data, 1) for data, _ in texts]
    events = [decode_event(event) for event in recorded]
    pickled = [pickle.dumps(event) for event in events]
    return {
        "fetching the row": lambda: connection.execute(select, (stream.id, 0)).fetchall(),
        "its two digests": lambda: [(digest(row[10]), digest(row[11])) for row in rows],
        "an unread event, all in all": lambda: transaction.read(stream),
        "its JSON": lambda: [(decode(data, 1), decode(delta, 1)) for data, delta in texts],
        "its objects, from constructors": lambda: [construct_event(each) for each in plain],
        "all that the first look makes": lambda: [decode_event(event) for event in recorded],
        "model_validate_json instead": lambda: [Event.model_validate_json(d) for d, _ in texts],
        "deepcopy of the event, as a cache would have to hand it out": lambda: [
            copy.deepcopy(event) for event in events
        ],
        "unpickling it": lambda: [pickle.loads(each) for each in pickled],
    }


def best_us(function: Callable[[], object]) -> float:
    """Microseconds of each event, without garbage collections."""
    best = float("inf")
    gc.disable()
    for _ in range(PASSES):
        start = time.thread_time()
        result = function()
        best = min(best, time.thread_time() - start)
        del result
    gc.enable()
    return best / EVENTS * 1e6


if __name__ == "__main__":
    main()
