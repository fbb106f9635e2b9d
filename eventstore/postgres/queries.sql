-- Every statement on the log, by name; {s} is the schema. Statements on projection tables are made
-- from their Table (see tables.py). Payloads are selected as varchar: see connection.py.

-- A writing transaction begins with this, behind `set_timeouts`. `own` is a lock of this connection
-- alone: whoever takes it knows that no transaction of a connection that was lost is still under way.
-- The last one says above which position this transaction draws its own: see `settled`. A group looks
-- up single rows, by plans that are made once: also while a table has a page only and reading it whole
-- would be best.
-- name: begin_write
SELECT set_config('idle_in_transaction_session_timeout', $1, true),
       set_config('synchronous_commit',
                  CASE WHEN $2 AND current_setting('synchronous_commit') IN ('off', 'local')
                       THEN 'on' ELSE current_setting('synchronous_commit') END, true),
       set_config('plan_cache_mode', 'force_generic_plan', true),
       set_config('enable_seqscan', 'off', true),
       set_config('enable_hashjoin', 'off', true),
       set_config('enable_mergejoin', 'off', true),
       set_config('jit', 'off', true),
       pg_advisory_xact_lock_shared($3),
       pg_advisory_xact_lock($4),
       pg_advisory_xact_lock_shared($5 + (SELECT last_value - (NOT is_called)::int
                                          FROM {s}.positions));

-- As in `begin_write`. In a long transaction the server does not even hear how large its tables are.
-- name: maintenance_settings
SELECT set_config('lock_timeout', $1, true),
       set_config('statement_timeout', $2, true),
       set_config('synchronous_commit',
                  CASE WHEN $3 AND current_setting('synchronous_commit') IN ('off', 'local')
                       THEN 'on' ELSE current_setting('synchronous_commit') END, true),
       set_config('enable_seqscan', 'off', true),
       set_config('enable_hashjoin', 'off', true),
       set_config('enable_mergejoin', 'off', true),
       set_config('jit', 'off', true);

-- Before a statement that waits: one that sets its own time limit runs under the one before.
-- name: set_timeouts
SELECT set_config('lock_timeout', $1, true), set_config('statement_timeout', $2, true);

-- name: schema_state
SELECT (SELECT version FROM {s}.eventstore),
       (SELECT coalesce(string_agg(name || ' ' || version, ',' ORDER BY name), '')
        FROM {s}.projections WHERE checkpoint IS NULL);

-- name: take_lock
SELECT pg_advisory_xact_lock($1);

-- name: try_lock
SELECT pg_try_advisory_xact_lock($1);

-- name: holds
SELECT 1 FROM pg_locks AS l
WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted AND l.pid = $2
      AND (l.classid::bigint << 32 | l.objid::bigint) = $1;

-- name: who_holds
SELECT a.application_name, coalesce(host(a.client_addr), 'the host of the server')
FROM pg_locks AS l LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND (l.classid::bigint << 32 | l.objid::bigint) = $1
LIMIT 1;

-- The tables of projections, to be locked before a snapshot is taken: a statement finds the table
-- that has the name now, also when rows of it are too young for the snapshot. In the order of their
-- names, in which all lock more of them than one. Not those that the role may not read: they are
-- another program's.
-- name: tables_to_read
SELECT string_agg(format('%I.%I', n.nspname, c.relname), ', ' ORDER BY c.relname)
FROM {s}.projections AS p
JOIN pg_namespace AS n ON n.nspname = '{s}'
JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = p.table_name AND c.relkind IN ('r', 'p')
WHERE has_table_privilege(c.oid, 'SELECT');

-- What is drawn behind this number is drawn later than now.
-- name: last_drawn
SELECT last_value - (NOT is_called)::int FROM {s}.positions;

-- The least of the positions above which transactions under way draw, NULL when there are none. To
-- be asked behind `last_drawn` and before the snapshot: then nothing at or below the lesser of the
-- two can come into the log any more, and the snapshot has all of it.
-- name: settled
SELECT min((l.classid::bigint << 32 | l.objid::bigint) - $1::bigint)
FROM pg_locks AS l
WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND (l.classid::bigint << 32 | l.objid::bigint) BETWEEN $1::bigint AND $1::bigint + $2::bigint;

-- Streams of apps, then those of users. One that is being made by somebody else is waited for.
-- name: ensure_apps
INSERT INTO {s}.streams (kind, app_name, user_id, session_id, user_stream_id, app_stream_id,
                         version, conversation_version, live, nonce, chain)
SELECT 'app', n.app_name, '', '', 0, 0, 0, 0, true, n.nonce, n.chain
FROM unnest($1::text[], $2::bytea[], $3::bytea[]) AS n (app_name, nonce, chain)
WHERE NOT EXISTS (SELECT 1 FROM {s}.streams AS s
                  WHERE s.app_name = n.app_name AND s.kind = 'app' AND s.user_id = ''
                        AND s.session_id = '' AND s.live)
ORDER BY n.app_name
ON CONFLICT (app_name, kind, user_id, session_id) WHERE live DO NOTHING;

-- name: ensure_users
INSERT INTO {s}.streams (kind, app_name, user_id, session_id, user_stream_id, app_stream_id,
                         version, conversation_version, live, nonce, chain)
SELECT 'user', n.app_name, n.user_id, '', 0, a.id, 0, 0, true, n.nonce, n.chain
FROM unnest($1::text[], $2::text[], $3::bytea[], $4::bytea[]) AS n (app_name, user_id, nonce, chain)
JOIN {s}.streams AS a ON a.app_name = n.app_name AND a.kind = 'app' AND a.user_id = ''
                         AND a.session_id = '' AND a.live
WHERE NOT EXISTS (SELECT 1 FROM {s}.streams AS s
                  WHERE s.app_name = n.app_name AND s.kind = 'user' AND s.user_id = n.user_id
                        AND s.session_id = '' AND s.live)
ORDER BY n.app_name, n.user_id
ON CONFLICT (app_name, kind, user_id, session_id) WHERE live DO NOTHING;

-- One total order, app before user before session, so that nobody waits in a circle. FOR UPDATE
-- waits, and then shows the newest row: the heads it returns are the heads.
-- name: lock_streams
SELECT s.id, s.kind, s.app_name, s.user_id, s.session_id,
       s.user_stream_id, s.app_stream_id, s.version, s.conversation_version, s.chain
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[])
     AS k (app_name, kind, user_id, session_id)
JOIN {s}.streams AS s ON s.app_name = k.app_name AND s.kind = k.kind AND s.user_id = k.user_id
                         AND s.session_id = k.session_id AND s.live
ORDER BY CASE s.kind WHEN 'system' THEN 0 WHEN 'app' THEN 1 WHEN 'user' THEN 2 ELSE 3 END, s.id
FOR UPDATE OF s;

-- A session that somebody else is making is waited for; the one that is there is not returned.
-- name: open_streams
INSERT INTO {s}.streams (kind, app_name, user_id, session_id, user_stream_id, app_stream_id,
                         version, conversation_version, live, nonce, chain)
SELECT 'session', n.app_name, n.user_id, n.session_id, u.id, a.id, 0, 0, true, n.nonce, n.chain
FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[], $5::bytea[])
     AS n (app_name, user_id, session_id, nonce, chain)
JOIN {s}.streams AS a ON a.app_name = n.app_name AND a.kind = 'app' AND a.user_id = ''
                         AND a.session_id = '' AND a.live
JOIN {s}.streams AS u ON u.app_name = n.app_name AND u.kind = 'user' AND u.user_id = n.user_id
                         AND u.session_id = '' AND u.live
WHERE NOT EXISTS (SELECT 1 FROM {s}.streams AS s
                  WHERE s.app_name = n.app_name AND s.kind = 'session' AND s.user_id = n.user_id
                        AND s.session_id = n.session_id AND s.live)
ORDER BY n.app_name, n.user_id, n.session_id
ON CONFLICT (app_name, kind, user_id, session_id) WHERE live DO NOTHING
RETURNING id, kind, app_name, user_id, session_id,
          user_stream_id, app_stream_id, version, conversation_version, chain;

-- name: insert_stream
INSERT INTO {s}.streams (kind, app_name, user_id, session_id, user_stream_id, app_stream_id,
                         version, conversation_version, live, nonce, chain)
VALUES ($1, $2, $3, $4, 0, 0, 0, 0, true, $5, $6)
RETURNING id;

-- Which of some events are there already. The limits change nothing, but that each is looked up by
-- itself, whatever the server thinks of the sizes of tables.
-- name: find_events
SELECT n.app_name, n.user_id, n.session_id, n.event_id,
       e.version, e.type, e.encoding, e.delta_digest, e.data_digest
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[])
     AS n (app_name, user_id, session_id, event_id)
CROSS JOIN LATERAL (
  SELECT s.id FROM {s}.streams AS s
  WHERE s.app_name = n.app_name AND s.kind = 'session' AND s.user_id = n.user_id
        AND s.session_id = n.session_id AND s.live
  LIMIT 1
) AS s
CROSS JOIN LATERAL (
  SELECT e.version, e.type, e.encoding, e.delta_digest, e.data_digest FROM {s}.events AS e
  WHERE e.stream_id = s.id AND e.event_id = n.event_id
  LIMIT 1
) AS e;

-- name: draw_positions
SELECT nextval('{s}.positions') FROM generate_series(1, $1);

-- name: insert_events
INSERT INTO {s}.events (position, stream_id, version, event_id, type, schema_version, recorded_at,
                        timestamp, author, invocation_id, codec, encoding, delta_digest,
                        data_digest, chain, delta, data)
SELECT *
FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::text[], $5::text[], $6::bigint[],
            $7::bigint[], $8::float8[], $9::text[], $10::text[], $11::bigint[], $12::bigint[],
            $13::bytea[], $14::bytea[], $15::bytea[], $16::text[], $17::text[]);

-- name: move_heads
UPDATE {s}.streams AS s
SET version = n.version, conversation_version = n.conversation_version, chain = n.chain,
    live = n.live
FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bytea[], $5::boolean[])
     AS n (id, version, conversation_version, chain, live)
WHERE s.id = n.id;

-- Of one transaction: nobody else can have this position, while others may have the same event.
-- name: has_event
SELECT 1 FROM {s}.events WHERE stream_id = $1 AND event_id = $2 AND position = $3;

-- Writes a lock into a row and so into the write-ahead log, for a commit that is to wait for it.
-- name: confirm
SELECT set_config('synchronous_commit',
                  CASE WHEN $1 AND current_setting('synchronous_commit') IN ('off', 'local')
                       THEN 'on' ELSE current_setting('synchronous_commit') END, true)
FROM {s}.streams
WHERE id = $2
FOR UPDATE;

-- name: event_identity
SELECT event_id, timestamp FROM {s}.events WHERE stream_id = $1 AND version = $2;

-- name: previous_conversation
SELECT version
FROM {s}.events
WHERE stream_id = $1 AND version < $2 AND type IN ('session_created', 'adk_event')
ORDER BY version DESC
LIMIT 1;

-- name: find_stream
SELECT id, kind, app_name, user_id, session_id,
       user_stream_id, app_stream_id, version, conversation_version, chain
FROM {s}.streams
WHERE app_name = $1 AND kind = $2 AND user_id = $3 AND session_id = $4 AND live;

-- name: get_stream
SELECT id, kind, app_name, user_id, session_id,
       user_stream_id, app_stream_id, version, conversation_version, chain
FROM {s}.streams
WHERE id = $1;

-- name: get_nonce
SELECT nonce FROM {s}.streams WHERE id = $1;

-- name: sessions_of_app
SELECT id, kind, app_name, user_id, session_id,
       user_stream_id, app_stream_id, version, conversation_version, chain
FROM {s}.streams
WHERE app_name = $1 AND kind = 'session' AND live;

-- name: sessions_of_user
SELECT id, kind, app_name, user_id, session_id,
       user_stream_id, app_stream_id, version, conversation_version, chain
FROM {s}.streams
WHERE app_name = $1 AND kind = 'session' AND user_id = $2 AND live;

-- name: deleted_streams
SELECT id, kind, app_name, user_id, session_id,
       user_stream_id, app_stream_id, version, conversation_version, chain
FROM {s}.streams
WHERE NOT live AND nonce <> '' AND kind = $1
ORDER BY id
LIMIT $2;

-- One step of the index for each app, however many sessions it has.
-- name: apps
WITH RECURSIVE names (app_name) AS (
  SELECT min(app_name) FROM {s}.streams WHERE live
  UNION ALL
  SELECT (SELECT min(s.app_name) FROM {s}.streams AS s WHERE s.live AND s.app_name > n.app_name)
  FROM names AS n WHERE n.app_name IS NOT NULL
)
SELECT s.id, s.kind, s.app_name, s.user_id, s.session_id,
       s.user_stream_id, s.app_stream_id, s.version, s.conversation_version, s.chain
FROM names AS n JOIN {s}.streams AS s
  ON s.app_name = n.app_name AND s.kind = 'app' AND s.user_id = '' AND s.session_id = '' AND s.live
ORDER BY s.app_name;

-- name: find_sessions
SELECT id, kind, app_name, user_id, session_id,
       user_stream_id, app_stream_id, version, conversation_version, chain
FROM {s}.streams
WHERE live AND kind = 'session' AND session_id = $1
      AND ($2::text IS NULL OR app_name = $2) AND ($3::text IS NULL OR user_id = $3)
ORDER BY app_name, user_id;

-- What is erased is asked for here: what one row says must be so by the rows that it refers to, and
-- a session is the user's by either.
-- name: streams_of_user
SELECT t.id, t.kind, t.app_name, t.user_id, t.session_id,
       t.user_stream_id, t.app_stream_id, t.version, t.conversation_version, t.chain,
       t.user_id = $1 AND a.kind = 'app' AND a.app_name = t.app_name
       AND (t.kind = 'user'
            OR t.kind = 'session' AND u.kind = 'user' AND u.user_id = $1 AND u.app_name = t.app_name),
       t.live, t.nonce
FROM {s}.streams AS t
LEFT JOIN {s}.streams AS u ON u.id = t.user_stream_id
LEFT JOIN {s}.streams AS a ON a.id = t.app_stream_id
WHERE t.nonce <> ''
      AND (t.user_id = $1 AND t.kind IN ('session', 'user') AND ($2::text IS NULL OR t.app_name = $2)
           OR t.user_stream_id IN (SELECT o.id FROM {s}.streams AS o
                                   WHERE o.user_id = $1 AND o.kind = 'user'
                                         AND ($2::text IS NULL OR o.app_name = $2)))
ORDER BY t.id;

-- name: count_by_app
SELECT app_name,
       count(*) FILTER (WHERE kind = 'session' AND live), count(*) FILTER (WHERE kind = 'user' AND live),
       count(*) FILTER (WHERE NOT live), sum(version)::bigint
FROM {s}.streams
WHERE nonce <> '' AND kind <> 'system'
GROUP BY app_name
ORDER BY app_name;

-- name: largest_streams
SELECT id, kind, app_name, user_id, session_id,
       user_stream_id, app_stream_id, version, conversation_version, chain
FROM {s}.streams
WHERE live AND kind = 'session'
ORDER BY version DESC, id
LIMIT $1;

-- name: last_positions
SELECT position FROM {s}.events WHERE position <= $1 ORDER BY position DESC LIMIT $2;

-- name: last_positions_of
SELECT e.position
FROM {s}.events AS e JOIN {s}.streams AS s ON s.id = e.stream_id
WHERE e.position <= $1 AND s.nonce <> '' AND ($3::text IS NULL OR s.app_name = $3)
      AND ($4::text IS NULL OR s.user_id = $4) AND ($5::text IS NULL OR s.session_id = $5)
ORDER BY e.position DESC
LIMIT $2;

-- name: next_recorded_at
SELECT position, recorded_at FROM {s}.events WHERE position >= $1 ORDER BY position LIMIT 1;

-- name: positions_carried_over
SELECT position FROM {s}.events WHERE type = 'carried_over' ORDER BY position;

-- name: content_sizes
SELECT position, stream_id, coalesce(octet_length(delta), 0) + coalesce(octet_length(data), 0)
FROM {s}.events
WHERE position > $1
ORDER BY position
LIMIT $2;

-- name: event_version
SELECT version FROM {s}.events WHERE stream_id = $1 AND event_id = $2;

-- As they were elsewhere.
-- name: import_stream
INSERT INTO {s}.streams (id, kind, app_name, user_id, session_id, user_stream_id, app_stream_id,
                         version, conversation_version, live, nonce, chain)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12);

-- A stream that is not live stays it.
-- name: move_on
UPDATE {s}.streams AS s
SET version = n.version, conversation_version = n.conversation_version, chain = n.chain
FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bytea[])
     AS n (id, version, conversation_version, chain)
WHERE s.id = n.id;

-- Which of some events are there already. The limit is there for what it is in `find_events`.
-- name: events_with_ids
SELECT n.stream_id, n.event_id
FROM unnest($1::bigint[], $2::text[]) AS n (stream_id, event_id)
CROSS JOIN LATERAL (
  SELECT 1 FROM {s}.events AS e
  WHERE e.stream_id = n.stream_id AND e.event_id = n.event_id
  LIMIT 1
) AS e;

-- name: positions_taken
SELECT position FROM {s}.events WHERE position = ANY ($1::bigint[]);

-- name: replace_stream
UPDATE {s}.streams SET user_stream_id = $1, app_stream_id = $2, nonce = $3, chain = $4
WHERE id = $5;

-- name: next_stream
SELECT nextval(pg_get_serial_sequence('{s}.streams', 'id'));

-- No number at or below this one is given out from now on.
-- name: skip_streams
SELECT setval(pg_get_serial_sequence('{s}.streams', 'id'),
              greatest($1, (SELECT max(id) FROM {s}.streams)));

-- name: skip_positions
SELECT setval('{s}.positions', greatest($1, (SELECT last_value FROM {s}.positions)));

-- name: leftovers
SELECT regexp_replace(tablename, '^(shadow|retired)_', '')
FROM pg_tables
WHERE schemaname = $1 AND (tablename LIKE 'shadow\_%' OR tablename LIKE 'retired\_%');

-- name: table_sizes
SELECT c.relname, pg_total_relation_size(c.oid)
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relkind = 'r';

-- Of one stream, by its id.
-- name: read_stream
SELECT position, version, event_id, type, schema_version, recorded_at, timestamp,
       author, invocation_id, encoding, delta::varchar, data::varchar,
       delta_digest, data_digest, codec
FROM {s}.events
WHERE stream_id = $1 AND version > $2
ORDER BY version;

-- The same of the live stream with a key: asked for together with the stream, in one round trip.
-- name: load_all
SELECT position, version, event_id, type, schema_version, recorded_at, timestamp,
       author, invocation_id, encoding, delta::varchar, data::varchar,
       delta_digest, data_digest, codec
FROM {s}.events
WHERE stream_id = (SELECT id FROM {s}.streams
                   WHERE app_name = $1 AND kind = $2 AND user_id = $3 AND session_id = $4 AND live)
ORDER BY version;

-- The last so many conversation events, and whatever lies between them.
-- name: load_tail
WITH stream AS MATERIALIZED (
  SELECT id FROM {s}.streams
  WHERE app_name = $1 AND kind = $2 AND user_id = $3 AND session_id = $4 AND live
)
SELECT position, version, event_id, type, schema_version, recorded_at, timestamp,
       author, invocation_id, encoding, delta::varchar, data::varchar,
       delta_digest, data_digest, codec
FROM {s}.events
WHERE stream_id = (SELECT id FROM stream)
      AND version >= coalesce((SELECT t.version FROM {s}.events AS t
                               WHERE t.stream_id = (SELECT id FROM stream) AND t.type = 'adk_event'
                               ORDER BY t.version DESC
                               OFFSET $5 - 1 LIMIT 1), 1)
ORDER BY version;

-- name: load_since
SELECT position, version, event_id, type, schema_version, recorded_at, timestamp,
       author, invocation_id, encoding, delta::varchar, data::varchar,
       delta_digest, data_digest, codec
FROM {s}.events
WHERE stream_id = (SELECT id FROM {s}.streams
                   WHERE app_name = $1 AND kind = $2 AND user_id = $3 AND session_id = $4 AND live)
      AND type = 'adk_event' AND timestamp >= $5
ORDER BY version DESC
LIMIT $6;

-- Whole events in the order of the log.
-- name: read_all
SELECT stream_id,
       position, version, event_id, type, schema_version, recorded_at, timestamp, author,
       invocation_id, encoding, delta::varchar, data::varchar,
       delta_digest, data_digest, codec, chain
FROM {s}.events
WHERE position > $1 AND position <= $2
ORDER BY position
LIMIT $3;

-- name: read_positions
SELECT stream_id,
       position, version, event_id, type, schema_version, recorded_at, timestamp, author,
       invocation_id, encoding, delta::varchar, data::varchar,
       delta_digest, data_digest, codec, chain
FROM {s}.events
WHERE position = ANY ($1::bigint[])
ORDER BY position;

-- name: delta_bytes
SELECT coalesce(sum(octet_length(delta)), 0)::bigint
FROM {s}.events
WHERE position > $1 AND position <= $2;

-- What folds of the deltas need, and no payload. The fourth column marks the usual events.
-- name: read_deltas
SELECT position, stream_id, timestamp,
       encoding = 1 AND (type = 'adk_event' AND schema_version = $3
                         OR type = 'session_created' AND schema_version = $4),
       type = 'session_created', delta::varchar, delta_digest
FROM {s}.events
WHERE position > $1 AND position <= $2
ORDER BY position;

-- name: positions_of_streams
SELECT position FROM {s}.events WHERE stream_id = ANY ($1::bigint[]) ORDER BY position;

-- name: get_streams
SELECT id, kind, app_name, user_id, session_id,
       user_stream_id, app_stream_id, version, conversation_version, chain
FROM {s}.streams
WHERE id = ANY ($1::bigint[]);

-- The streams whose events can have written rows of an app, deleted sessions included.
-- name: streams_of_app
SELECT id, kind, app_name, user_id, session_id,
       user_stream_id, app_stream_id, version, conversation_version, chain
FROM {s}.streams
WHERE app_name = $1 AND (live OR nonce <> '');

-- name: streams_from
SELECT id, kind, app_name, user_id, session_id,
       user_stream_id, app_stream_id, version, conversation_version, chain, live, nonce
FROM {s}.streams
WHERE id > $1
ORDER BY id
LIMIT $2;

-- name: get_facts
SELECT id, kind, app_name, user_id, session_id,
       user_stream_id, app_stream_id, version, conversation_version, chain, live, nonce
FROM {s}.streams
WHERE id = ANY ($1::bigint[]);

-- name: link_at
SELECT chain FROM {s}.events WHERE stream_id = $1 AND version = $2;

-- name: head
SELECT coalesce(max(position), 0) FROM {s}.events WHERE position <= $1;

-- name: count_events
SELECT count(*), coalesce(max(position), 0) FROM {s}.events;

-- name: codecs
SELECT id, fingerprint FROM {s}.codecs;

-- name: insert_codec
INSERT INTO {s}.codecs (fingerprint) VALUES ($1) ON CONFLICT (fingerprint) DO NOTHING;

-- name: begin_maintenance
INSERT INTO {s}.maintenance (id, reason) VALUES (1, $1);

-- name: end_maintenance
DELETE FROM {s}.maintenance;

-- name: delete_events
DELETE FROM {s}.events WHERE stream_id = $1;

-- name: forget_stream
UPDATE {s}.streams
SET app_name = '', user_id = '', session_id = '', nonce = '', user_stream_id = 0, app_stream_id = 0
WHERE id = $1;

-- name: put_stream
UPDATE {s}.streams
SET user_stream_id = $1, app_stream_id = $2, version = $3, conversation_version = $4, live = $5,
    chain = $6
WHERE id = $7;

-- name: registered_projections
SELECT name, version, table_name, checkpoint, failed_at, failure
FROM {s}.projections
ORDER BY name;

-- name: register_projection
INSERT INTO {s}.projections (name, version, table_name, checkpoint) VALUES ($1, $2, $3, $4)
ON CONFLICT (name) DO UPDATE
SET version = excluded.version, table_name = excluded.table_name, checkpoint = excluded.checkpoint,
    failed_at = NULL, failure = NULL;

-- name: unregister_projection
DELETE FROM {s}.projections WHERE name = $1 RETURNING table_name;

-- name: lock_checkpoint
SELECT 1 FROM {s}.projections WHERE name = $1 FOR UPDATE;

-- name: move_checkpoint
UPDATE {s}.projections SET checkpoint = $1, failed_at = $2, failure = $3
WHERE name = $4 AND version = $5 AND checkpoint = $6;

-- The tables that rows are removed from, with the files, of which each gets another when it is written
-- anew, and whether this role may do that: others are passed over with no more than a warning.
-- name: files_of_log
SELECT format('{s}.%I', c.relname), c.relfilenode::bigint,
       CASE WHEN current_setting('server_version_num')::int >= 170000
            THEN has_table_privilege(c.oid, 'MAINTAIN')
            ELSE pg_has_role(c.relowner, 'USAGE') END
       OR (SELECT pg_has_role(datdba, 'USAGE') FROM pg_database WHERE datname = current_database())
FROM pg_class AS c LEFT JOIN pg_inherits AS i ON i.inhrelid = c.oid
WHERE c.relkind = 'r' AND c.relnamespace = '{s}'::regnamespace
      AND (c.relname IN ('events', 'streams') OR i.inhparent = '{s}.events'::regclass
           OR c.relname IN (SELECT table_name FROM {s}.projections))
ORDER BY c.relname;

-- name: next_transaction
SELECT pg_snapshot_xmax(pg_current_snapshot())::xid::text;

-- For whom the server keeps rows that were removed before this transaction: others that are open, prepared
-- ones, replicas that say what is read there. A role may not see since when others are open.
-- name: keepers
SELECT l.virtualtransaction FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid
WHERE l.locktype = 'virtualxid' AND a.datname = current_database() AND a.usesysid IS NOT NULL
      AND l.pid NOT IN (pg_backend_pid(), $2)
UNION ALL SELECT gid FROM pg_prepared_xacts WHERE database = current_database()
UNION ALL SELECT slot_name FROM pg_replication_slots WHERE age(xmin) > age($1::text::xid)
UNION ALL SELECT application_name FROM pg_stat_replication WHERE age(backend_xmin) > age($1::text::xid);

-- What the server itself knows to be wrong: indexes that are not whole, pages that failed their sum.
-- name: check_files
SELECT 'index ' || c.relname || ' is not valid'
FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
     JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND NOT (i.indisvalid AND i.indisready)
UNION ALL
SELECT 'pages of the database failed their checksum: ' || checksum_failures
FROM pg_stat_database
WHERE datname = current_database() AND checksum_failures > 0;

-- name: size
SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relkind IN ('r', 'S', 'm');
