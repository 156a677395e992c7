"""The benchmark: throughput, latency and memory, each next to a bare COPY of the same rows in the same run.

model.py      what is measured, and the figures
readings.py   sensor readings as batches; orders.py wide orders; trades.py large trades for the memory run
ground.py     the stack, a database and topics of the benchmark's own
programs.py   server and workers as processes; child.py processes that run a function of ours
watch.py      waits for jobs and counts rows
bare.py drain.py whole.py latency.py memory.py   a measurement each; suite.py one after the other
scratch.py    a copy of somebody's table for `tune`; curve.py which size is worth it
contest.py    who is measured side by side in `bench policies`; policies.py measures them
machine.py    what it ran on; report.py tables and JSON
"""
