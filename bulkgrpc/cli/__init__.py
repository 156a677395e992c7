"""The `bulkgrpc` command."""
