-- The log. `events` is the only source of truth; `streams` and `codecs` are indexes over it that
-- can be made again, and projections own their tables themselves.

-- A live stream is one that was created and not deleted since. Deleting sets live = 0, so the same
-- ids may be used again by a new row; scavenging then blanks the ids and the nonce, and leaves the
-- last version and chain link, which prove what the stream was.
CREATE TABLE streams (
  id                   INTEGER PRIMARY KEY AUTOINCREMENT,
  kind                 TEXT    NOT NULL CHECK (kind IN ('session', 'user', 'app', 'system')),
  app_name             TEXT    NOT NULL,
  user_id              TEXT    NOT NULL,
  session_id           TEXT    NOT NULL,
  user_stream_id       INTEGER NOT NULL,
  app_stream_id        INTEGER NOT NULL,
  version              INTEGER NOT NULL,
  conversation_version INTEGER NOT NULL,
  live                 INTEGER NOT NULL CHECK (live IN (0, 1)),
  nonce                BLOB    NOT NULL,
  chain                BLOB    NOT NULL
) STRICT;

CREATE UNIQUE INDEX streams_live ON streams (app_name, kind, user_id, session_id) WHERE live = 1;
CREATE INDEX streams_deleted ON streams (id) WHERE live = 0 AND nonce <> x'';

-- Which models wrote a payload.
CREATE TABLE codecs (
  id          INTEGER PRIMARY KEY,
  fingerprint TEXT    NOT NULL UNIQUE
) STRICT;

INSERT INTO codecs (id, fingerprint) VALUES (0, '');

-- AUTOINCREMENT: without it the position of a removed last event would be given out again.
CREATE TABLE events (
  position       INTEGER PRIMARY KEY AUTOINCREMENT,
  stream_id      INTEGER NOT NULL REFERENCES streams (id),
  version        INTEGER NOT NULL,
  event_id       TEXT    NOT NULL,
  type           TEXT    NOT NULL,
  schema_version INTEGER NOT NULL,
  recorded_at    INTEGER NOT NULL,
  timestamp      REAL    NOT NULL,
  author         TEXT    NOT NULL,
  invocation_id  TEXT    NOT NULL,
  codec          INTEGER NOT NULL REFERENCES codecs (id),
  encoding       INTEGER NOT NULL,
  delta_digest   BLOB,
  data_digest    BLOB,
  chain          BLOB    NOT NULL,
  delta          TEXT,
  data           TEXT,
  UNIQUE (stream_id, version),
  UNIQUE (stream_id, event_id)
) STRICT;

-- Holds a row only inside a maintenance transaction, which logs itself.
CREATE TABLE maintenance (
  id     INTEGER PRIMARY KEY CHECK (id = 1),
  reason TEXT NOT NULL
) STRICT;

CREATE TRIGGER events_no_update BEFORE UPDATE ON events
WHEN NOT EXISTS (SELECT 1 FROM maintenance)
BEGIN
  SELECT RAISE(ABORT, 'events are append-only: UPDATE refused');
END;

CREATE TRIGGER events_no_delete BEFORE DELETE ON events
WHEN NOT EXISTS (SELECT 1 FROM maintenance)
BEGIN
  SELECT RAISE(ABORT, 'events are append-only: DELETE refused');
END;

-- INSERT OR REPLACE removes the row in its way without firing a DELETE trigger.
CREATE TRIGGER events_no_replace BEFORE INSERT ON events
WHEN EXISTS (SELECT 1 FROM events WHERE stream_id = NEW.stream_id AND version = NEW.version)
  OR EXISTS (SELECT 1 FROM events WHERE stream_id = NEW.stream_id AND event_id = NEW.event_id)
  OR EXISTS (SELECT 1 FROM events WHERE position = NEW.position)
BEGIN
  SELECT RAISE(ABORT, 'events are append-only: this position, version or event id exists');
END;

-- The projections whose rows are written with every append. A process that does not know one of
-- them must not write.
CREATE TABLE projections (
  name    TEXT    PRIMARY KEY,
  version INTEGER NOT NULL
) STRICT;

-- The log for people. An out-of-range timestamp has no text form and is shown as its number.
CREATE VIEW adk_events AS
SELECT e.position AS id,
       s.app_name,
       s.user_id,
       s.session_id,
       e.version,
       e.type,
       e.author,
       e.invocation_id,
       coalesce(strftime('%Y-%m-%d %H:%M:%f', e.timestamp, 'unixepoch'), e.timestamp) AS timestamp,
       e.event_id,
       e.delta AS state_delta,
       e.data
FROM events AS e JOIN streams AS s ON s.id = e.stream_id;
