"""The ingest session: open, check, append, acknowledge, seal, replay, and the view of a job.

It knows no transport and no driver. Front doors (`bulkgrpc.server.grpc`) call it; stores implement its `ports`.
"""
