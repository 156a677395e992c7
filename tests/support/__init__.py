"""What several test modules share: example datasets, batches, waiting for events."""
