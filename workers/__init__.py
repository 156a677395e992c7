"""The worker process: life cycle, threads, poll loop and wiring. The decisions are in `bulkgrpc.consume`.

process.py      starts and stops: settings, adapters, signals, threads
poller.py       the poll loop: fetch, assemble, submit to the writer, commit what it applied
partitions.py   acquires partitions from the ledger, releases them, stops those whose logs do not match it, joins the
                group again if they stall
topic_watch.py  the thread that compares the topic and its partitions with the ledger
intake.py       fetched messages, until each is in a chunk
writer.py       decodes each chunk on one thread, after its dead letters are stored; writes it on another until it is
                applied, replayed or fenced
express.py      the express path: a thread that applies what waits in Kafka behind hot tenants
drain.py        the drain: three threads apply parked messages
apply.py        three threads that apply the staged rows of atomic jobs
ledger_watch.py  the thread that beats, and notices that PostgreSQL came back older
rounds.py       a thread that works in rounds, as those of apply.py and drain.py do
maintenance.py  the maintenance thread

A chunk moves downward: Poller.step → Intake.fill (assembly) → WriterThread → prepare (decode) → ChunkWriter.write
(transaction). Its result comes back once, through the writer's queue.
"""
