-- Every statement on the log, by name. Statements on projection tables are made from their Table
-- (see tables.py).

-- name: find_stream
SELECT id, user_stream_id, app_stream_id, version, conversation_version, chain
FROM streams
WHERE app_name = ? AND kind = ? AND user_id = ? AND session_id = ? AND live = 1;

-- name: get_stream
SELECT id, kind, app_name, user_id, session_id,
       user_stream_id, app_stream_id, version, conversation_version, chain
FROM streams
WHERE id = ?;

-- name: get_nonce
SELECT nonce FROM streams WHERE id = ?;

-- name: sessions_of_app
SELECT id, kind, app_name, user_id, session_id,
       user_stream_id, app_stream_id, version, conversation_version, chain
FROM streams
WHERE app_name = ? AND kind = 'session' AND live = 1;

-- name: sessions_of_user
SELECT id, kind, app_name, user_id, session_id,
       user_stream_id, app_stream_id, version, conversation_version, chain
FROM streams
WHERE app_name = ? AND kind = 'session' AND user_id = ? AND live = 1;

-- name: deleted_streams
SELECT id, kind, app_name, user_id, session_id,
       user_stream_id, app_stream_id, version, conversation_version, chain
FROM streams
WHERE live = 0 AND nonce <> x''
ORDER BY id
LIMIT ?;

-- name: insert_stream
INSERT INTO streams (kind, app_name, user_id, session_id, user_stream_id, app_stream_id,
                     version, conversation_version, live, nonce, chain)
VALUES (?, ?, ?, ?, ?, ?, 0, 0, 1, ?, ?);

-- name: move_head
UPDATE streams SET version = ?, conversation_version = ?, chain = ? WHERE id = ?;

-- name: close_stream
UPDATE streams SET live = 0 WHERE id = ?;

-- name: forget_stream
UPDATE streams SET app_name = '', user_id = '', session_id = '', nonce = x'' WHERE id = ?;

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

-- name: read_stream_forward
SELECT position, version, event_id, type, schema_version, recorded_at, timestamp, author,
       invocation_id, encoding, CAST(delta AS BLOB), CAST(data AS BLOB),
       delta_digest, data_digest, codec
FROM events
WHERE stream_id = ? AND version > ?
ORDER BY version;

-- name: read_stream_backward
SELECT position, version, event_id, type, schema_version, recorded_at, timestamp, author,
       invocation_id, encoding, CAST(delta AS BLOB), CAST(data AS BLOB),
       delta_digest, data_digest, codec
FROM events
WHERE stream_id = ? AND version < ?
ORDER BY version DESC
LIMIT ?;

-- name: read_conversation_since
SELECT position, version, event_id, type, schema_version, recorded_at, timestamp, author,
       invocation_id, encoding, CAST(delta AS BLOB), CAST(data AS BLOB),
       delta_digest, data_digest, codec
FROM events
WHERE stream_id = ? AND type = 'adk_event' AND timestamp >= ?
ORDER BY version DESC
LIMIT ?;

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

-- What folds of the deltas need, and no payload: reading is most of the work of a rebuild. The last
-- column marks what is no usual event, so that type, encoding and version need not be fetched.
-- name: read_deltas
SELECT position, stream_id, timestamp, CAST(delta AS BLOB), delta_digest,
       CASE WHEN type = 'adk_event' AND encoding = 1 AND schema_version = ?4 THEN NULL ELSE 1 END
FROM events
WHERE position > ?1 AND position <= ?2
ORDER BY position
LIMIT ?3;

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
FROM streams
WHERE app_name = ?1 AND live = 1
UNION ALL
SELECT id, kind, app_name, user_id, session_id,
       user_stream_id, app_stream_id, version, conversation_version, chain
FROM streams
WHERE app_name = ?1 AND live = 0 AND nonce <> x'';

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

-- name: integrity_check
SELECT * FROM pragma_integrity_check;

-- name: registered_projections
SELECT name, version, table_name, checkpoint, failed_at, failure FROM projections ORDER BY name;

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
