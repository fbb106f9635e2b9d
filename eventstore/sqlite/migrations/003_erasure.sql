-- What is left of a stream whose events were removed says no more than that there was one: neither
-- whose it was nor in which app.
UPDATE streams SET user_stream_id = 0, app_stream_id = 0 WHERE live = 0 AND nonce = x'';
