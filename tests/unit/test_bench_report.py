import json
from io import StringIO

from rich.console import Console
from rich.table import Table

from bulkgrpc.bench import contest, report
from bulkgrpc.bench.machine import Machine
from bulkgrpc.bench.model import Latency, Load, MemoryLoad, MemoryResults, Quantiles, Rate, Resident, Results, Round

MACHINE = Machine(2, "Some CPU", 23.5, "Linux 6", "3.11", "18.6", "4.2.2", 0.1)
SLOW = Round(Rate(1000, 1.0), Rate(1000, 2.0), Rate(1000, 4.0))
FAST = Round(Rate(1000, 1.0), Rate(1000, 1.25), Rate(1000, 2.0))
LATENCY = Latency(Quantiles(4.0, 9.0, 200), Quantiles(9.0, 20.0, 200))
RESULTS = Results(Load.of(1000, 100, 2, 3, 200), (SLOW, FAST, FAST), LATENCY)


def _text(table: Table) -> str:
    output = StringIO()
    Console(file=output, width=200).print(table)
    return output.getvalue()


def test_a_ratio_is_the_median_of_the_rounds_and_is_told_with_its_spread() -> None:
    text = _text(report.throughput_table(RESULTS))

    assert RESULTS.drain_ratio == 0.8
    assert "0.80" in text
    assert "0.50, 0.80" in text
    assert "no" not in [word for line in text.splitlines() for word in line.split()]


def test_a_missed_target_is_shown() -> None:
    missed = Results(RESULTS.load, (SLOW,), LATENCY)

    assert report.throughput_document(MACHINE, missed)["targets_met"] == {
        "drain_ratio": False,
        "whole_ratio": False,
        "visible_p50_ms": True,
    }
    assert " no " in _text(report.throughput_table(missed))


def test_the_documents_are_json_with_the_machine() -> None:
    server = Resident("server", 200.0, 210.0, 250.0, 300.0)
    memory = MemoryResults(MemoryLoad(10**9, 200, 250_000), 10**9, 10**6, 10.0, 20.0, (server,))

    for document in (report.throughput_document(MACHINE, RESULTS), report.memory_document(MACHINE, memory)):
        assert json.loads(json.dumps(document))["machine"]["cpu"] == "Some CPU"
    assert "250 MB" in _text(report.memory_table(memory))
    assert "2 cores of Some CPU" in report.machine_line(MACHINE)


def test_a_contestants_ratio_is_to_the_one_next_to_it_in_the_same_round() -> None:
    everyone = contest.contestants()
    half = {item.name: Rate(1000, 1.0 if item.by == "copy" else 2.0) for item in everyone}
    results = contest.ContestResults(RESULTS.load, everyone, (half, half))
    text, document = _text(report.contest_table(results)), report.contest_document(MACHINE, results)

    by_name = {item["name"]: item for item in json.loads(json.dumps(document))["contestants"]}
    assert (by_name[contest.NEW]["ratio"], by_name[contest.NEW]["met"]) == (0.5, False)
    assert by_name["update: all keys there"]["ratio"] == 1.0
    assert contest.UPDATE_BY_HAND in text
    assert {item.next_to for item in everyone} <= by_name.keys()
