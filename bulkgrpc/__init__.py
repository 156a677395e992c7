"""Bulk ingest over gRPC: Protobuf record batches through Kafka into PostgreSQL, exactly once."""
