import json
from io import StringIO

from rich.console import Console
from rich.table import Table

from bulkgrpc.bench import policy_cases, report
from bulkgrpc.bench.machine import Machine
from bulkgrpc.bench.model import Latency, Load, MemoryLoad, MemoryResults, Quantiles, Rate, Resident, Results, Round
from bulkgrpc.bench.noisy_cases import Case, NoisyCase, NoisyLoad, NoisyResults

MACHINE = Machine(2, "Some CPU", 23.5, "Linux 6", "3.11", "18.6", "4.2.2", 0.1)
SLOW = Round(Rate(1000, 1.0, 0.001), Rate(1000, 2.0, 0.002), Rate(1000, 4.0, 0.004))
FAST = Round(Rate(1000, 1.0, 0.001), Rate(1000, 1.25, 0.00125), Rate(1000, 2.0, 0.003))
LATENCY = Latency(Quantiles(4.0, 9.0, 200), Quantiles(9.0, 20.0, 200))
RESULTS = Results(Load.of(1000, 100, 2, 3, 200), (SLOW, FAST, FAST), LATENCY)


def _text(table: Table, width: int = 200) -> str:
    output = StringIO()
    Console(file=output, width=width).print(table)
    return output.getvalue()


def test_a_ratio_is_the_median_of_the_rounds_and_is_shown_with_its_spread() -> None:
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


def test_cpu_time_is_the_median_of_the_rounds_in_table_and_document() -> None:
    document = json.loads(json.dumps(report.throughput_document(MACHINE, RESULTS)))

    assert [item["whole_cpu_s_per_million_rows"] for item in document["rounds"]] == [4.0, 3.0, 3.0]
    assert [item["drain_cpu_s_per_million_rows"] for item in document["rounds"]] == [2.0, 1.25, 1.25]
    lines = _text(report.throughput_table(RESULTS)).splitlines()
    (whole,) = (line for line in lines if line.startswith("whole path"))
    assert whole.split("│")[-1].strip() == "3.00"


def _policy_results() -> policy_cases.PolicyResults:
    cases = policy_cases.cases()
    rates = {case.name: Rate(1000, 1.0 if case.writer == "copy" else 2.0, 0.01) for case in cases}
    return policy_cases.PolicyResults(RESULTS.load, cases, (rates, rates))


def test_a_cases_ratio_is_to_its_baseline_in_the_same_round() -> None:
    results = _policy_results()
    text, document = _text(report.policies_table(results)), report.policies_document(MACHINE, results)

    by_name = {item["name"]: item for item in json.loads(json.dumps(document))["cases"]}
    assert (by_name[policy_cases.NEW]["ratio"], by_name[policy_cases.NEW]["met"]) == (0.5, False)
    assert by_name["update: all keys exist"]["ratio"] == 1.0
    assert policy_cases.UPDATE_BY_HAND in text
    assert {case.baseline for case in results.cases} <= by_name.keys()


def _noisy_results() -> NoisyResults:
    slow = Quantiles(11_234.5, 22_345.6, 200)
    return NoisyResults(NoisyLoad(20.0), tuple(NoisyCase(which, slow, 1_234_567.0, 1.95) for which in Case))


def test_the_document_of_the_noisy_tenant_has_every_case_with_its_ratios() -> None:
    document = json.loads(json.dumps(report.noisy_document(MACHINE, _noisy_results())))

    assert [item["name"] for item in document["cases"]] == [which.value for which in Case]
    assert {(item["p50_ratio"], item["p99_ratio"]) for item in document["cases"]} == {(1.0, 1.0)}
    assert document["cases"][0]["visible"]["p99_ms"] == 22_345.6


def test_every_table_fits_80_columns_and_cuts_no_word() -> None:
    rate = Rate(1_000_000, 0.9, 3.5)
    results = Results(Load.of(1_000_000, 1000, 2, 3, 200), (Round(rate, rate, rate),), LATENCY)
    memory = MemoryResults(
        MemoryLoad(10**9, 200, 250_000), 10**9, 10**6, 100.0, 200.0, (Resident("worker 2", 200.0, 210.0, 250.0, 300.0),)
    )
    for table in (
        report.throughput_table(results),
        report.latency_table(results),
        report.memory_table(memory),
        report.policies_table(_policy_results()),
        report.noisy_table(_noisy_results()),
    ):
        narrow = _text(table, 80)
        assert "…" not in narrow.replace("INSERT … ON", "")
        assert max(map(len, narrow.splitlines())) <= 80
        words, all_words = (
            {word for word in text.split() if "━" not in word and "─" not in word} for text in (narrow, _text(table))
        )
        assert words == all_words, "no word is split between two lines"
