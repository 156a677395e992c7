-- Only an owner can create and drop partitions; the role of the workers owns none. It names every object with its schema.
ALTER FUNCTION bulk.maintain_days(date, integer) SECURITY DEFINER SET search_path = pg_catalog, pg_temp;
REVOKE EXECUTE ON FUNCTION bulk.maintain_days(date, integer) FROM PUBLIC;

-- A row and not an advisory lock of a session: a connection pooler gives a session to many clients.
CREATE TABLE bulk.maintenance_lease (
  one         boolean     PRIMARY KEY DEFAULT true CHECK (one),
  holder      uuid        NOT NULL,
  expire_time timestamptz NOT NULL
);
COMMENT ON TABLE bulk.maintenance_lease IS 'The worker that is the maintenance leader, until expire_time.';
