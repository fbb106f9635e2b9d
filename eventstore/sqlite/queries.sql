-- Every statement on the log, by name. Statements on projection tables are made from their Table
-- (see tables.py).

-- An index says which row it is, and damage in it must not lead to somebody else's: the last column
-- is 1 when the row itself says that it is the one, and belongs to the streams of this user and app.
-- name: find_stream
SELECT i.id, t.user_stream_id, t.app_stream_id, t.version, t.conversation_version, t.chain,
       t.app_name = ?1 AND t.kind = ?2 AND t.user_id = ?3 AND t.session_id = ?4
       AND (?2 <> 'session' OR (u.kind = 'user' AND u.user_id = ?3 AND u.app_name = ?1))
       AND (?2 IN ('app', 'system') OR (a.kind = 'app' AND a.app_name = ?1))
FROM streams AS i
LEFT JOIN streams AS t ON t.id = i.id
LEFT JOIN streams AS u ON u.id = t.user_stream_id
LEFT JOIN streams AS a ON a.id = t.app_stream_id
WHERE i.app_name = ?1 AND i.kind = ?2 AND i.user_id = ?3 AND i.session_id = ?4 AND i.live = 1;

-- name: get_stream
SELECT id, kind, app_name, user_id, session_id,
       user_stream_id, app_stream_id, version, conversation_version, chain
FROM streams
WHERE id = ?;

-- name: get_nonce
SELECT nonce FROM streams WHERE id = ?;

-- name: sessions_of_app
SELECT i.id, t.kind, t.app_name, t.user_id, t.session_id,
       t.user_stream_id, t.app_stream_id, t.version, t.conversation_version, t.chain,
       t.app_name = i.app_name AND t.kind = i.kind AND t.user_id = i.user_id
       AND t.session_id = i.session_id
       AND u.kind = 'user' AND u.user_id = t.user_id AND u.app_name = t.app_name
       AND a.kind = 'app' AND a.app_name = t.app_name
FROM streams AS i
LEFT JOIN streams AS t ON t.id = i.id
LEFT JOIN streams AS u ON u.id = t.user_stream_id
LEFT JOIN streams AS a ON a.id = t.app_stream_id
WHERE i.app_name = ? AND i.kind = 'session' AND i.live = 1;

-- name: sessions_of_user
SELECT i.id, t.kind, t.app_name, t.user_id, t.session_id,
       t.user_stream_id, t.app_stream_id, t.version, t.conversation_version, t.chain,
       t.app_name = i.app_name AND t.kind = i.kind AND t.user_id = i.user_id
       AND t.session_id = i.session_id
       AND u.kind = 'user' AND u.user_id = t.user_id AND u.app_name = t.app_name
       AND a.kind = 'app' AND a.app_name = t.app_name
FROM streams AS i
LEFT JOIN streams AS t ON t.id = i.id
LEFT JOIN streams AS u ON u.id = t.user_stream_id
LEFT JOIN streams AS a ON a.id = t.app_stream_id
WHERE i.app_name = ? AND i.kind = 'session' AND i.user_id = ? AND i.live = 1;

-- A user's stream comes last: its tombstone says that what its sessions wrote into it is gone. What
-- the index says is not believed, for their events are going to be removed.
-- name: deleted_streams
SELECT t.id, t.kind, t.app_name, t.user_id, t.session_id,
       t.user_stream_id, t.app_stream_id, t.version, t.conversation_version, t.chain
FROM streams AS i JOIN streams AS t ON t.id = i.id AND +t.live = 0
WHERE i.live = 0 AND i.nonce <> x'' AND t.kind = ?
ORDER BY i.id
LIMIT ?;

-- One step of the index for each app, however many sessions it has.
-- name: apps
WITH RECURSIVE names (app_name) AS (
  SELECT min(app_name) FROM streams WHERE live = 1
  UNION ALL
  SELECT (SELECT min(s.app_name) FROM streams AS s WHERE s.live = 1 AND s.app_name > n.app_name)
  FROM names AS n WHERE n.app_name IS NOT NULL
)
SELECT i.id, t.kind, t.app_name, t.user_id, t.session_id,
       t.user_stream_id, t.app_stream_id, t.version, t.conversation_version, t.chain,
       t.app_name = n.app_name AND t.kind = 'app'
FROM names AS n
JOIN streams AS i
  ON i.app_name = n.app_name AND i.kind = 'app' AND i.user_id = '' AND i.session_id = ''
     AND i.live = 1
LEFT JOIN streams AS t ON t.id = i.id
ORDER BY n.app_name;

-- It looks at all streams, so it need not believe an index. The same below.
-- name: find_sessions
SELECT id, kind, app_name, user_id, session_id,
       user_stream_id, app_stream_id, version, conversation_version, chain
FROM streams NOT INDEXED
WHERE live = 1 AND kind = 'session' AND session_id = ?1
      AND (?2 IS NULL OR app_name = ?2) AND (?3 IS NULL OR user_id = ?3)
ORDER BY app_name, user_id;

-- What is erased is asked for here: what one row says must be so by the rows that it refers to, and
-- a session is the user's by either.
-- name: streams_of_user
SELECT t.id, t.kind, t.app_name, t.user_id, t.session_id,
       t.user_stream_id, t.app_stream_id, t.version, t.conversation_version, t.chain,
       t.user_id = ?1 AND a.kind = 'app' AND a.app_name = t.app_name
       AND (t.kind = 'user'
            OR t.kind = 'session' AND u.kind = 'user' AND u.user_id = ?1 AND u.app_name = t.app_name),
       t.live, t.nonce
FROM streams AS t NOT INDEXED
LEFT JOIN streams AS u ON u.id = t.user_stream_id
LEFT JOIN streams AS a ON a.id = t.app_stream_id
WHERE t.nonce <> x''
      AND (t.user_id = ?1 AND t.kind IN ('session', 'user') AND (?2 IS NULL OR t.app_name = ?2)
           OR t.user_stream_id IN (SELECT id FROM streams NOT INDEXED
                                   WHERE user_id = ?1 AND kind = 'user'
                                         AND (?2 IS NULL OR app_name = ?2)))
ORDER BY t.id;

-- name: count_by_app
SELECT app_name,
       sum(kind = 'session' AND live), sum(kind = 'user' AND live), sum(NOT live), sum(version)
FROM streams
WHERE nonce <> x'' AND kind <> 'system'
GROUP BY app_name
ORDER BY app_name;

-- name: largest_streams
SELECT id, kind, app_name, user_id, session_id,
       user_stream_id, app_stream_id, version, conversation_version, chain
FROM streams NOT INDEXED
WHERE live = 1 AND kind = 'session'
ORDER BY version DESC, id
LIMIT ?;

-- name: insert_stream
INSERT INTO streams (kind, app_name, user_id, session_id, user_stream_id, app_stream_id,
                     version, conversation_version, live, nonce, chain)
VALUES (?, ?, ?, ?, ?, ?, 0, 0, 1, ?, ?);

-- As they were elsewhere. A NULL stands for the next number.
-- name: import_stream
INSERT INTO streams (id, kind, app_name, user_id, session_id, user_stream_id, app_stream_id,
                     version, conversation_version, live, nonce, chain)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: replace_stream
UPDATE streams SET user_stream_id = ?, app_stream_id = ?, nonce = ?, chain = ? WHERE id = ?;

-- name: import_event
INSERT INTO events (position, stream_id, version, event_id, type, schema_version, recorded_at,
                    timestamp, author, invocation_id, codec, encoding, delta_digest, data_digest,
                    chain, delta, data)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: move_head
UPDATE streams SET version = ?, conversation_version = ?, chain = ? WHERE id = ?;

-- name: close_stream
UPDATE streams SET live = 0 WHERE id = ?;

-- name: forget_stream
UPDATE streams
SET app_name = '', user_id = '', session_id = '', nonce = x'', user_stream_id = 0, app_stream_id = 0
WHERE id = ?;

-- name: insert_event
INSERT INTO events (stream_id, version, event_id, type, schema_version, recorded_at, timestamp,
                    author, invocation_id, codec, encoding, delta_digest, data_digest, chain,
                    delta, data)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: find_event
SELECT version, type, encoding, delta_digest, data_digest
FROM events
WHERE stream_id = ? AND event_id = ?;

-- name: event_identity
SELECT event_id, timestamp FROM events WHERE stream_id = ? AND version = ?;

-- name: previous_conversation
SELECT version
FROM events
WHERE stream_id = ? AND version < ? AND type IN ('session_created', 'adk_event')
ORDER BY version DESC
LIMIT 1;

-- The events of a stream are found by an index, and an event that does not itself say that it is of
-- this stream and version is none of them: then it is missing, which is noticed.
-- name: read_stream_forward
SELECT e.position, e.version, e.event_id, e.type, e.schema_version, e.recorded_at, e.timestamp,
       e.author, e.invocation_id, e.encoding, CAST(e.delta AS BLOB), CAST(e.data AS BLOB),
       e.delta_digest, e.data_digest, e.codec
FROM events AS i CROSS JOIN events AS e ON e.position = i.position
WHERE i.stream_id = ? AND i.version > ? AND e.stream_id = i.stream_id AND e.version = i.version
ORDER BY i.version;

-- name: read_stream_backward
SELECT e.position, e.version, e.event_id, e.type, e.schema_version, e.recorded_at, e.timestamp,
       e.author, e.invocation_id, e.encoding, CAST(e.delta AS BLOB), CAST(e.data AS BLOB),
       e.delta_digest, e.data_digest, e.codec
FROM events AS i CROSS JOIN events AS e ON e.position = i.position
WHERE i.stream_id = ? AND i.version < ? AND e.stream_id = i.stream_id AND e.version = i.version
ORDER BY i.version DESC
LIMIT ?;

-- name: read_stream_page
SELECT e.position, e.version, e.event_id, e.type, e.schema_version, e.recorded_at, e.timestamp,
       e.author, e.invocation_id, e.encoding, CAST(e.delta AS BLOB), CAST(e.data AS BLOB),
       e.delta_digest, e.data_digest, e.codec
FROM events AS i CROSS JOIN events AS e ON e.position = i.position
WHERE i.stream_id = ? AND i.version > ? AND e.stream_id = i.stream_id AND e.version = i.version
ORDER BY i.version
LIMIT ?;

-- name: read_conversation_since
SELECT e.position, e.version, e.event_id, e.type, e.schema_version, e.recorded_at, e.timestamp,
       e.author, e.invocation_id, e.encoding, CAST(e.delta AS BLOB), CAST(e.data AS BLOB),
       e.delta_digest, e.data_digest, e.codec
FROM events AS i CROSS JOIN events AS e ON e.position = i.position
WHERE i.stream_id = ? AND e.type = 'adk_event' AND e.timestamp >= ?
      AND e.stream_id = i.stream_id AND e.version = i.version
ORDER BY i.version DESC
LIMIT ?;

-- What can be read of a damaged log, asked for in pieces. First by the index, then without it.
-- name: event_at
SELECT e.position, e.version, e.event_id, e.type, e.schema_version, e.recorded_at, e.timestamp,
       e.author, e.invocation_id, e.encoding, CAST(e.delta AS BLOB), CAST(e.data AS BLOB),
       e.delta_digest, e.data_digest, e.codec
FROM events AS i CROSS JOIN events AS e ON e.position = i.position
WHERE i.stream_id = ? AND i.version = ? AND e.stream_id = i.stream_id AND e.version = i.version;

-- name: event_in_log
SELECT position, version, event_id, type, schema_version, recorded_at, timestamp,
       author, invocation_id, encoding, CAST(delta AS BLOB), CAST(data AS BLOB),
       delta_digest, data_digest, codec
FROM events NOT INDEXED
WHERE position BETWEEN ? AND ? AND stream_id = ?;

-- Whole events in the order of the log.
-- name: read_all
SELECT stream_id,
       position, version, event_id, type, schema_version, recorded_at, timestamp, author,
       invocation_id, encoding, CAST(delta AS BLOB), CAST(data AS BLOB),
       delta_digest, data_digest, codec, chain
FROM events
WHERE position > ? AND position <= ?
ORDER BY position
LIMIT ?;

-- name: read_positions
SELECT stream_id,
       position, version, event_id, type, schema_version, recorded_at, timestamp, author,
       invocation_id, encoding, CAST(delta AS BLOB), CAST(data AS BLOB),
       delta_digest, data_digest, codec, chain
FROM events
WHERE position IN (SELECT value FROM json_each(?))
ORDER BY position;

-- What folds of the deltas need, and no payload: reading is most of the work of a rebuild. All in one
-- row, for while SQLite makes a row it needs no interpreter, and between two it does: another thread
-- may keep it for 5 ms each time. Of each stream its id, whether it is a session's, whose, position and
-- time of its last event, and the time of its first if that is here; then the positions of its events,
-- and their deltas, one on a line: 'null' where there is none, nothing where the event is not plain
-- (see StreamDeltas). No JSON has a raw control character, so one stands between the streams.
--
-- Times are counted in 2^-30 s, an integer, for no text of a float is sure to be read as the same one;
-- '' stands for one that is no such count. `timestamp` is from the row that has the maximum
-- (https://sqlite.org/lang_select.html#bareagg).
-- name: read_deltas
SELECT json_group_array(json_array(
         e.stream_id, s.kind = 'session', coalesce(s.user_stream_id, 0), coalesce(s.app_stream_id, 0),
         e.last,
         iif(CAST(e.timestamp * 1073741824.0 AS INTEGER) / 1073741824.0 = e.timestamp,
             CAST(e.timestamp * 1073741824.0 AS INTEGER), ''),
         CASE WHEN CAST(e.created * 1073741824.0 AS INTEGER) / 1073741824.0 = e.created
              THEN CAST(e.created * 1073741824.0 AS INTEGER)
              WHEN e.created IS NOT NULL THEN '' END)),
       '[' || coalesce(group_concat(e.positions), '') || ']',
       CAST(group_concat(e.deltas, char(30)) AS BLOB),
       CAST(group_concat(e.digests, '') AS BLOB)
FROM (
  SELECT stream_id, max(position) AS last, timestamp,
         sum(CASE WHEN type = 'session_created' THEN timestamp END) AS created,
         '[' || group_concat(position) || ']' AS positions,
         group_concat(
           CASE WHEN encoding = 1 AND (type = 'adk_event' AND schema_version = ?3
                                       OR type = 'session_created' AND schema_version = ?4)
                THEN coalesce(delta, 'null') ELSE '' END, char(10)) AS deltas,
         group_concat(
           CASE WHEN encoding = 1 AND (type = 'adk_event' AND schema_version = ?3
                                       OR type = 'session_created' AND schema_version = ?4)
                THEN delta_digest END, '') AS digests
  FROM events NOT INDEXED
  WHERE position > ?1 AND position <= ?2
  GROUP BY stream_id
) AS e LEFT JOIN streams AS s ON s.id = e.stream_id;

-- name: time_of_event
SELECT timestamp FROM events WHERE position = ?;

-- name: time_of_first
SELECT timestamp FROM events WHERE stream_id = ? AND type = 'session_created';

-- Answered from the index alone.
-- name: positions_of_stream
SELECT position FROM events WHERE stream_id = ?;

-- name: get_streams
SELECT id, kind, app_name, user_id, session_id,
       user_stream_id, app_stream_id, version, conversation_version, chain
FROM streams
WHERE id IN (SELECT value FROM json_each(?));

-- The streams whose events can have written rows of an app, deleted sessions included.
-- name: streams_of_app
SELECT id, kind, app_name, user_id, session_id,
       user_stream_id, app_stream_id, version, conversation_version, chain
FROM streams NOT INDEXED
WHERE app_name = ?1 AND nonce <> x'';

-- name: streams_from
SELECT id, kind, app_name, user_id, session_id,
       user_stream_id, app_stream_id, version, conversation_version, chain, live, nonce
FROM streams
WHERE id > ?
ORDER BY id
LIMIT ?;

-- name: delete_events
DELETE FROM events WHERE stream_id = ?;

-- name: find_codec
SELECT id FROM codecs WHERE fingerprint = ?;

-- name: codecs
SELECT id, fingerprint FROM codecs;

-- name: insert_codec
INSERT INTO codecs (fingerprint) VALUES (?);

-- name: begin_maintenance
INSERT INTO maintenance (id, reason) VALUES (1, ?);

-- name: end_maintenance
DELETE FROM maintenance;

-- name: head
SELECT coalesce(max(position), 0) FROM events;

-- name: last_positions
SELECT position FROM events ORDER BY position DESC LIMIT ?;

-- name: streams_named
SELECT id
FROM streams
WHERE nonce <> x'' AND (?1 IS NULL OR app_name = ?1) AND (?2 IS NULL OR user_id = ?2)
      AND (?3 IS NULL OR session_id = ?3)
LIMIT ?4;

-- name: last_positions_of_stream
SELECT position FROM events WHERE stream_id = ? ORDER BY version DESC LIMIT ?;

-- name: last_positions_of
SELECT e.position
FROM events AS e CROSS JOIN streams AS s ON s.id = e.stream_id
WHERE (?2 IS NULL OR s.app_name = ?2) AND (?3 IS NULL OR s.user_id = ?3)
      AND (?4 IS NULL OR s.session_id = ?4)
ORDER BY e.position DESC
LIMIT ?1;

-- name: next_recorded_at
SELECT position, recorded_at FROM events WHERE position >= ? ORDER BY position LIMIT 1;

-- name: positions_carried_over
SELECT position FROM events WHERE type = 'carried_over' ORDER BY position;

-- name: content_sizes
SELECT position, stream_id,
       coalesce(length(CAST(delta AS BLOB)), 0) + coalesce(length(CAST(data AS BLOB)), 0)
FROM events
WHERE position > ?
ORDER BY position
LIMIT ?;

-- name: count_events
SELECT count(*), coalesce(max(position), 0) FROM events;

-- name: put_stream
UPDATE streams
SET user_stream_id = ?, app_stream_id = ?, version = ?, conversation_version = ?, live = ?,
    chain = ?
WHERE id = ?;

-- name: get_facts
SELECT id, kind, app_name, user_id, session_id,
       user_stream_id, app_stream_id, version, conversation_version, chain, live, nonce
FROM streams
WHERE id IN (SELECT value FROM json_each(?));

-- name: link_at
SELECT chain FROM events WHERE stream_id = ? AND version = ?;

-- Goes through every page of the file.
-- name: table_sizes
SELECT s.tbl_name, sum(d.pgsize)
FROM (SELECT name, sum(pgsize) AS pgsize FROM dbstat GROUP BY name) AS d
JOIN (SELECT name, tbl_name FROM sqlite_schema UNION ALL SELECT 'sqlite_schema', 'sqlite_schema')
  AS s ON s.name = d.name
GROUP BY s.tbl_name
ORDER BY sum(d.pgsize) DESC, s.tbl_name;

-- name: find_table
SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?;

-- name: integrity_check
SELECT * FROM pragma_integrity_check;

-- In a damaged page, a number that is none is no version that anybody has, and no place to go on
-- from: then the projection is to be made anew.
-- name: registered_projections
SELECT name, iif(typeof(version) = 'integer', version, 0),
       iif(typeof(table_name) = 'text', table_name, ''),
       iif(typeof(checkpoint) IN ('integer', 'null'), checkpoint, -1),
       iif(typeof(failed_at) = 'integer', failed_at, NULL), failure
FROM projections
ORDER BY name;

-- name: register_projection
INSERT INTO projections (name, version, table_name, checkpoint) VALUES (?, ?, ?, ?)
ON CONFLICT (name) DO UPDATE
SET version = excluded.version, table_name = excluded.table_name, checkpoint = excluded.checkpoint,
    failed_at = NULL, failure = NULL;

-- name: unregister_projection
DELETE FROM projections WHERE name = ? RETURNING table_name;

-- name: move_checkpoint
UPDATE projections SET checkpoint = ?, failed_at = ?, failure = ?
WHERE name = ? AND version = ? AND checkpoint = ?;
