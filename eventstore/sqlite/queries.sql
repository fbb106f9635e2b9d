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

-- The payload stays unread: folds need the delta only.
-- name: read_all
SELECT stream_id,
       position, version, event_id, type, schema_version, recorded_at, timestamp, author,
       invocation_id, encoding, CAST(delta AS BLOB), NULL,
       delta_digest, data_digest, 0
FROM events
WHERE position > ?
ORDER BY position
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

-- name: count_events
SELECT count(*), coalesce(max(position), 0) FROM events;

-- name: active_projections
SELECT name, version FROM projections ORDER BY name;

-- name: activate_projection
INSERT INTO projections (name, version) VALUES (?, ?)
ON CONFLICT (name) DO UPDATE SET version = excluded.version;
