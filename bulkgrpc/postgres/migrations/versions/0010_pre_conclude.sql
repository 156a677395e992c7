-- What ends the transaction of a chunk. In PL/pgSQL, so that a session plans each statement once although all of them are
-- sent in one message. Each takes its rows as one JSON array: arrays of columns cost the caller more. Null: no rows.
CREATE FUNCTION bulk.advance_offsets(of_topic text, rows json) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF rows IS NOT NULL THEN
    UPDATE bulk.offsets o
    SET next_offset = v.to_offset
    FROM json_to_recordset(rows) AS v (partition integer, to_offset bigint)
    WHERE o.topic = of_topic AND o.partition = v.partition;
  END IF;
END $$;
COMMENT ON FUNCTION bulk.advance_offsets(text, json) IS 'Advances partitions to the end of the chunk.';

CREATE FUNCTION bulk.advance_lanes(rows json) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF rows IS NOT NULL THEN
    INSERT INTO bulk.lanes (create_day, job_id, lane, next_sequence, sealed)
    SELECT v.create_day, v.job_id, v.lane, v.next_sequence, v.sealed
    FROM json_to_recordset(rows)
      AS v (create_day date, job_id uuid, lane integer, next_sequence bigint, sealed boolean)
    ON CONFLICT (create_day, job_id, lane)
    DO UPDATE SET next_sequence = excluded.next_sequence, sealed = excluded.sealed;
  END IF;
END $$;
COMMENT ON FUNCTION bulk.advance_lanes(json) IS 'Sets lanes to their positions after the chunk.';

CREATE FUNCTION bulk.add_batches(rows json) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF rows IS NOT NULL THEN
    INSERT INTO bulk.batches (create_day, job_id, sequence, digest)
    SELECT v.create_day, v.job_id, v.sequence, decode(v.digest, 'hex')
    FROM json_to_recordset(rows) AS v (create_day date, job_id uuid, sequence bigint, digest text);
  END IF;
END $$;
COMMENT ON FUNCTION bulk.add_batches(json) IS 'Stores the digests of the batches that the chunk takes, in hexadecimal.';

CREATE FUNCTION bulk.add_counts(rows json) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF rows IS NOT NULL THEN
    UPDATE bulk.jobs j
    SET accepted = j.accepted + v.accepted,
        written = j.written + v.written,
        duplicate = j.duplicate + v.duplicate,
        rejected = j.rejected + v.rejected,
        expired = j.expired + v.expired,
        skipped = j.skipped + v.skipped,
        staged = j.staged + v.accepted - v.written - v.duplicate - v.rejected - v.expired - v.skipped,
        state = coalesce(v.state, j.state),
        failure_reason = CASE WHEN v.failure_reason = '' THEN j.failure_reason ELSE v.failure_reason END,
        lost = j.lost OR v.lost,
        seal_time = coalesce(j.seal_time, v.seal_time),
        end_time = coalesce(j.end_time, CASE WHEN v.state >= 3 THEN clock_timestamp() END),
        update_time = clock_timestamp()
    FROM json_to_recordset(rows)
      AS v (create_day date, job_id uuid, accepted bigint, written bigint, duplicate bigint, rejected bigint,
            expired bigint, skipped bigint, state smallint, seal_time timestamptz, failure_reason text, lost boolean)
    WHERE j.create_day = v.create_day AND j.job_id = v.job_id;
  END IF;
END $$;
COMMENT ON FUNCTION bulk.add_counts(json) IS
  'Adds what the chunk did to the counts of each job. state: the job''s next one, null to leave its state as it is now; a server may have marked it sealed since the chunk read it.';
