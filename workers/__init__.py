"""The worker process: life-cycle, poll loop and wiring. Every decision lies in `bulkgrpc`.

process.py   starts and stops: settings, signals, the two threads
poller.py    owns the consumer: poll → chunk → decode, then hands over and commits what was written
writer.py    owns the connection: write → commit, again and again until PostgreSQL has it
ownership.py which partitions are ours, under which epoch, and where they stand
"""
