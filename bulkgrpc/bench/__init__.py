"""The benchmark: throughput, latency, CPU time and memory, each next to a bare COPY of the same rows in the same run.

model.py                the loads, and the figures that a run produces
readings.py             sensor readings as batches; wide_orders.py wide orders; trades.py large trades
environment.py          the stack, the benchmark's own database, a topic for each measurement
service_processes.py    server and workers as processes; spawned.py functions of ours in their own processes
observe.py              waits for jobs and checks exact counts
cpu.py                  CPU time of processes and their children
bare_copy.py drain.py whole_path.py latency.py memory.py   one measurement each; suite.py runs them in rounds
policy_cases.py         the cases of `bench policies`; policies.py measures them
noisy_cases.py          the cases of `bench noisy`; noisy.py measures them; burn.py takes CPU time beside them
chunk_size.py           which chunk size `tune` recommends
machine.py              the machine that a run used; report.py tables and JSON
"""
