CREATE TABLE bulk.topics (
  topic       text        PRIMARY KEY,
  topic_id    uuid        NOT NULL,
  record_time timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE bulk.topics IS
  'Ledger: the ID that Kafka gave the topic whose offsets bulk.offsets has. A topic of the same name with another ID is another topic.';

CREATE TABLE bulk.partition_logs (
  topic      text    NOT NULL,
  partition  integer NOT NULL,
  log_start  bigint,
  log_end    bigint,
  stop_cause text,
  lost_from  bigint,
  lost_to    bigint,
  stop_time  timestamptz,
  PRIMARY KEY (topic, partition),
  CHECK ((stop_cause IS NULL) = (stop_time IS NULL) AND (stop_cause IS NULL) = (lost_from IS NULL))
) WITH (fillfactor = 50);
-- Not columns of bulk.offsets: a chunk locks those rows for its whole transaction.
COMMENT ON TABLE bulk.partition_logs IS
  'Ledger: the first and the next offset of each partition of Kafka when workers last looked, and why no worker applies it.';
COMMENT ON COLUMN bulk.partition_logs.stop_cause IS
  'topic_missing, topic_replaced, messages_deleted or log_truncated; null: the partition is applied';
COMMENT ON COLUMN bulk.partition_logs.lost_to IS
  'the end, exclusive, of the offsets that are lost; null: not known';
