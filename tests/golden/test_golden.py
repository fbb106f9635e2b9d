"""What earlier versions stored is folded, proved and read by this one. See make.py."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest
from google.adk.events import Event
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from adk_adapter import DatabaseSessionService, codec
from eventstore import EventType, RecordedEvent, open_store
from eventstore.upcasting import CURRENT
from projections import BUILT_IN, rebuild, verify
from tests.golden.make import FOLDED, FOLDER, LOG, Talk, dump, make, rows

FOLDERS: Final = sorted(
    (path for path in FOLDER.glob("v*") if path.is_dir()), key=lambda path: int(path.name[1:])
)
SAME_MODELS: Final = codec.FINGERPRINT in (FOLDERS[-1] / "codecs.jsonl").read_text()
every_version = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    with (folder / f"{name}.jsonl").open(encoding="ascii") as file:
        return [json.loads(line) for line in file]


def restore(folder: Path, path: Path) -> None:
    """Puts the log of a folder into a new database, row by row as it is stored."""
    open_store(path, BUILT_IN).close()
    with closing(sqlite3.connect(path)) as connection, connection:
        for table in LOG:
            for row in lines(folder, table):
                values = [
                    bytes.fromhex(value["hex"]) if isinstance(value, dict) else value
                    for value in row.values()
                ]
                connection.execute(
                    f"INSERT OR IGNORE INTO {table} ({', '.join(row)}) "
                    f"VALUES ({', '.join('?' for _ in row)})",
                    values,
                )


def text(value: Any) -> str:
    """Compared as text: NaN is itself there, and 1 is not True."""
    return json.dumps(value, sort_keys=True)


@every_version
def test_what_is_stored_is_proved_and_folds_to_the_same_rows(folder: Path, database: Path) -> None:
    restore(folder, database)
    with closing(open_store(database, BUILT_IN)) as store:
        # Nothing but the tables differs, which have nothing yet.
        assert verify(store, BUILT_IN).drifted == {
            name: len(lines(folder, name)) for name in ("state", "sessions")
        }
        rebuild(store, BUILT_IN, (Talk(),))
        report = verify(store, BUILT_IN, (Talk(),))
        assert (report.clean, report.unchecked) == (True, {})
        assert report.events == len(lines(folder, "events"))
        # One fold reads whole events, the other the deltas.
        rebuild(store, BUILT_IN)
    with closing(sqlite3.connect(database)) as connection:
        for table, order in FOLDED.items():
            expected = lines(folder, table)
            # A newer version of a projection may have more columns.
            known = [
                {name: row[name] for name in line}
                for row, line in zip(rows(connection, table, order), expected, strict=True)
            ]
            assert text(known) == text(expected)


@every_version
async def test_sessions_that_are_stored_are_loaded(folder: Path, database: Path) -> None:
    restore(folder, database)
    with closing(open_store(database, BUILT_IN)) as store:
        rebuild(store, BUILT_IN)
    decoded = {
        line["event"]["id"]: line["event"]
        for line in lines(folder, "decoded")  # the second life of a session comes last
    }
    async with DatabaseSessionService(database) as service:
        for expected in lines(folder, "loaded"):
            session = await service.get_session(*expected["key"])
            assert session is not None
            assert text(session.state) == text(expected["state"])
            assert session.last_update_time == expected["last_update_time"]
            assert [event.id for event in session.events] == expected["events"]
            for event in session.events:
                assert_same(event, decoded[event.id])
            # And one can go on with them.
            await service.append_event(session, Event(author="user"))
        assert (await service.verify()).clean


def events_of(folder: Path, database: Path) -> list[RecordedEvent]:
    restore(folder, database)
    with closing(open_store(database, BUILT_IN)) as store:
        return list(store.snapshot(lambda s: s.read_all(0, s.head(), 10_000)))


@every_version
@pytest.mark.parametrize("written_by", ["these models", "others"])
def test_events_are_decoded_whichever_models_wrote_them(
    folder: Path, database: Path, written_by: str
) -> None:
    fingerprint = codec.FINGERPRINT if written_by == "these models" else "others"
    expected = {line["position"]: line["event"] for line in lines(folder, "decoded")}
    stored = [e for e in events_of(folder, database) if e.type == EventType.ADK_EVENT]
    assert {event.position for event in stored} == expected.keys()
    for event in stored:
        decoded = codec.decode_event(event._replace(codec=fingerprint))
        assert_same(decoded, expected[event.position])


def assert_same(event: Event, expected: dict[str, Any]) -> None:
    _assert_same(event, dump(event), expected)


def _assert_same(value: Any, dumped: Any, expected: Any) -> None:
    """Alike in every field that the installed models know; the others have their defaults."""
    if isinstance(value, BaseModel) and isinstance(expected, dict):
        for name, field in type(value).model_fields.items():
            alias = field.alias or name
            inner = getattr(value, name)
            if alias in expected:
                _assert_same(inner, dumped[alias], expected[alias])
            elif inner is not None:  # a field that is newer than what is stored
                default = field.get_default(call_default_factory=True, validated_data={})
                assert inner == (None if default is PydanticUndefined else default)
    elif isinstance(value, list) and any(isinstance(item, BaseModel) for item in value):
        assert len(value) == len(expected)
        for inner in zip(value, dumped, expected, strict=True):
            _assert_same(*inner)
    elif isinstance(value, dict) and any(isinstance(item, BaseModel) for item in value.values()):
        assert value.keys() == expected.keys()
        for key, item in value.items():
            _assert_same(item, dumped[key], expected[key])
    else:
        assert text(dumped) == text(expected)


# The newest folder is about this version.


def test_every_type_has_its_current_version_in_the_newest_folder() -> None:
    stored = {(line["type"], line["schema_version"]) for line in lines(FOLDERS[-1], "events")}
    assert stored >= CURRENT.items()


def test_what_is_written_today_is_what_the_newest_folder_says(tmp_path: Path) -> None:
    """Else a new one is due: `python -m tests.golden.make`, with the next number."""
    make(tmp_path / "now")
    assert _written(tmp_path / "now") == _written(FOLDERS[-1])


def _written(folder: Path) -> list[Any]:
    written = []
    for line in lines(folder, "events"):
        data = None if line["data"] is None else json.loads(line["data"])
        if line["type"] != EventType.ADK_EVENT:
            data = data and sorted(data)  # ids and nonces are of no interest here
        elif not SAME_MODELS:
            data = None  # of another ADK, which has other fields
        written.append(
            [line["type"], line["schema_version"], line["encoding"], line["delta"], data]
        )
    return written


def test_a_folder_is_never_written_again() -> None:
    with pytest.raises(FileExistsError):
        make(FOLDERS[-1])
