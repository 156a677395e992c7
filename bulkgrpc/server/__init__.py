"""The ingest server: gRPC streams in, Kafka out. Thin services around a transport-independent core, `stream`."""
