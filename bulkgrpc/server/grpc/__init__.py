"""The gRPC front door: it maps RPCs to the ingest session and its refusals to statuses."""
