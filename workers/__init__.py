"""The worker process: life-cycle, poll loop and wiring. Every decision lies in `bulkgrpc`."""
