"""`bulkgrpc load --on-bad-row`: bad rows become rejections of the job, and the others are loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.service_values import Command, Parts

pytest_plugins = ["tests.integration.service_parts"]

AT = "2024-05-01T12:00:00Z"
DATASET = ("--dataset", "sensor_readings")
REJECT = (*DATASET, "--on-bad-row", "reject")


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    """100,000 rows, in three blocks; five of them are bad."""
    rows = [f"s{number},{number}.5,{AT}" for number in range(1, 100_001)]
    rows[16], rows[60_000], rows[60_001] = f"s17,warm,{AT}", f"s60001,1,noon,{AT}", "s60002,1"
    rows[99_998], rows[99_999] = f's99999,"1"2,{AT}', f"s100000,1e400,{AT}"
    path = tmp_path / "s.csv"
    path.write_text("sensor_id,value,sampled_at\n" + "\n".join(rows) + "\n")
    return path


BAD = {
    17: "column value: 'warm' is not a number (double)",
    60_001: "line 60,002: it has too many cells",
    60_002: "line 60,003: it has too few cells",
    99_999: "line 100,000: text follows a closing quote",
    100_000: "column value: '1e400' is not a number (double)",
}


def counts(job: dict[str, Any]) -> tuple[int, int]:
    return job["counts"]["written"], job["counts"]["rejected"]


def test_bad_rows_are_in_the_report_with_number_reason_and_text_and_the_others_in_the_table(
    csv: Path, command: Command, parts: Parts, tenant: str
) -> None:
    result = command("load", csv, *REJECT, "--json")
    assert result.exit_code == 3, result.output
    job = json.loads(result.stdout)["job"]
    assert (job["state"], *counts(job)) == ("PARTIALLY_SUCCEEDED", 99_995, 5)
    assert parts.rows("SELECT count(*) FROM sensor_readings WHERE tenant = %s", tenant) == [(99_995,)]
    found = command.json_lines("jobs", "rejections", job["name"])
    assert {one["code"] for one in found} == {"MALFORMED_RECORD"}
    reasons = [one["reason"] for one in found]
    assert len(reasons) == len(BAD)
    for number, reason in BAD.items():
        assert any(one.startswith(f"s.csv: row {number:,}: {reason}") for one in reasons), (number, reasons)
    assert any('"value": "warm"' in one for one in reasons)
    assert [one["field"] for one in found if "warm" in one["reason"]] == ["value"]


def test_rejected_rows_are_written_to_a_file_with_their_reasons(csv: Path, command: Command, tmp_path: Path) -> None:
    job = json.loads(command("load", csv, *REJECT, "--json").stdout)["job"]
    out = tmp_path / "rejected.jsonl"
    command.json("jobs", "rejections", job["name"], "--out", out)
    documents = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(documents) == len(BAD)
    assert all(document["_reason"].startswith("s.csv: row ") for document in documents)


def test_an_atomic_job_with_a_bad_row_writes_nothing(csv: Path, command: Command, parts: Parts, tenant: str) -> None:
    result = command("load", csv, *REJECT, "--atomic", "--json")
    assert result.exit_code == 4
    assert parts.rows("SELECT count(*) FROM sensor_readings WHERE tenant = %s", tenant) == [(0,)]


def test_a_dry_run_says_what_would_be_rejected_and_submits_nothing(csv: Path, command: Command) -> None:
    result = command("load", csv, *REJECT, "--dry-run", "--json")
    report = json.loads(result.stdout)
    assert (result.exit_code, report["rows"], report["rejected"], report["submitted"]) == (3, 100_000, 5, False)
    assert sorted(row["row"] for row in report["rejections"]) == sorted(BAD)
    lines = command("load", csv, *REJECT, "--dry-run").stdout
    assert "5 of 100,000 rows would be rejected. Nothing was submitted." in lines
    stopped = command("load", csv, *DATASET, "--dry-run")
    assert stopped.exit_code == 1
    assert command.json_lines("jobs", "list") == []


def test_a_load_without_the_option_stops_at_the_first_bad_row(csv: Path, command: Command) -> None:
    result = command("load", csv, *DATASET)
    assert result.exit_code == 1
    assert "nothing was submitted" in result.stderr


def test_bad_rows_of_two_files_have_the_names_of_their_files(command: Command, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(
            json.dumps({"sensor_id": name, "value": 1, "sampled_at": AT}) + "\n{broken\n"
        )
    result = command("load", tmp_path, *REJECT, "--json")
    job = json.loads(result.stdout)["job"]
    assert counts(job) == (2, 2)
    reasons = sorted(one["reason"] for one in command.json_lines("jobs", "rejections", job["name"]))
    assert [reason.partition(": not")[0] for reason in reasons] == ["a.jsonl: row 2", "b.jsonl: row 2"]
