"""The ingest server's process: life cycle and wiring. Its front doors map a transport to `bulkgrpc.ingest`."""
