ALTER TABLE bulk.jobs
  ADD COLUMN lease_epoch bigint NOT NULL DEFAULT 0,
  ADD COLUMN lease_session text NOT NULL DEFAULT '',
  ADD COLUMN seal_after timestamptz,
  ADD COLUMN late_batches bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN bulk.jobs.lease_epoch IS
  'Raised by each stream that opens the job: an earlier stream may not acknowledge any more. 0: none has opened it yet.';
COMMENT ON COLUMN bulk.jobs.lease_session IS 'Session of the stream that raised lease_epoch last.';
COMMENT ON COLUMN bulk.jobs.seal_after IS
  'Before this time an earlier stream may still acknowledge what it stored, so no stream seals the job.';
COMMENT ON COLUMN bulk.jobs.late_batches IS 'Batches of the job in bulk.late_batches. None of the counts has their records.';

CREATE TABLE bulk.late_batches (
  create_day     date        NOT NULL,
  job_id         uuid        NOT NULL,
  partition      integer     NOT NULL,
  message_offset bigint      NOT NULL,
  sequence       bigint      NOT NULL,
  records        integer     NOT NULL,
  digest         bytea       NOT NULL,
  code           text        NOT NULL,
  reason         text        NOT NULL,
  sent_time      timestamptz NOT NULL,
  read_time      timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (create_day, job_id, partition, message_offset)
) PARTITION BY RANGE (create_day);
COMMENT ON TABLE bulk.late_batches IS
  'Batches that arrived after their lane''s seal, or differ from what an ended job applied: neither written nor counted.';
COMMENT ON COLUMN bulk.late_batches.message_offset IS
  'Offset in the partition of the records topic, where its records can be read until Kafka deletes them.';
CREATE TABLE bulk.late_batches_other PARTITION OF bulk.late_batches DEFAULT;
