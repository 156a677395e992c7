CREATE TABLE bulk.heartbeats (
  topic     text        PRIMARY KEY,
  beat      bigint      NOT NULL,
  beat_time timestamptz NOT NULL,
  moved_at  bigint      NOT NULL DEFAULT 0
) WITH (fillfactor = 50);
COMMENT ON TABLE bulk.heartbeats IS
  'A number that workers raise every few seconds and store in Kafka too: a ledger with a lower one than Kafka has came back older.';
COMMENT ON COLUMN bulk.heartbeats.moved_at IS
  'the beat at which an operator last moved offsets: what Kafka had before it says nothing about them; 0: never';

CREATE TABLE bulk.restores (
  notice_time   timestamptz NOT NULL DEFAULT clock_timestamp(),
  topic         text        NOT NULL,
  ledger_time   timestamptz,
  ledger        text        NOT NULL,
  known_time    timestamptz,
  known         text        NOT NULL,
  partitions    integer[]   NOT NULL,
  next_offsets  bigint[]    NOT NULL,
  known_offsets bigint[]    NOT NULL
);
COMMENT ON TABLE bulk.restores IS
  'When workers noticed that the ledger was older than what they had applied, and by how much. Their notes: one by each.';
COMMENT ON COLUMN bulk.restores.ledger_time IS
  'the last heartbeat that the ledger had: what was done after it, up to known_time, may be gone';

-- pg_control_system() may be revoked: then the identifier is not known.
CREATE FUNCTION bulk.database_position() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  identifier text := 'not known';
BEGIN
  BEGIN
    SELECT system_identifier::text INTO identifier FROM pg_control_system();
  EXCEPTION WHEN insufficient_privilege THEN
    NULL;
  END;
  IF pg_is_in_recovery() THEN
    RETURN format('system %s, a standby', identifier);
  END IF;
  RETURN format('system %s, timeline %s, LSN %s', identifier,
                ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int, pg_current_wal_lsn());
END $$;
COMMENT ON FUNCTION bulk.database_position() IS
  'The database, its timeline and its position in the write-ahead log, for people: to find the backup or the server that has it.';

ALTER TABLE bulk.datasets ADD COLUMN schema_digest bytea NOT NULL DEFAULT '';
COMMENT ON COLUMN bulk.datasets.schema_digest IS
  'Digest of the definition, computed when it was registered: a registry that was restored may give the number of a version to another one. Empty: registered by a release before.';
