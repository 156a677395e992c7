"""The `bulkgrpc` command line."""
