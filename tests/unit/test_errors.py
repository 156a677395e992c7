from __future__ import annotations

import pytest
from google.rpc import error_details_pb2

from bulkgrpc import errors, limits, rpc_status, settings


def _details(refusal: errors.Refusal) -> dict[str, object]:
    kinds = (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo)
    found: dict[str, object] = {}
    for detail in rpc_status.to_status(refusal).details:
        for kind in kinds:
            message = kind()
            if detail.Unpack(message):
                found[kind.__name__] = message
    return found


def test_a_refusal_names_reason_field_and_retry() -> None:
    refusal = errors.Invalid(errors.Reason.INVALID_FIELD, "key too long", field="header.idempotency_key", limit="128")
    details = _details(refusal)
    assert set(details) == {"ErrorInfo", "BadRequest"}
    info = details["ErrorInfo"]
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert (info.domain, info.reason, dict(info.metadata)) == ("bulkgrpc", "INVALID_FIELD", {"limit": "128"})


def test_what_passes_by_itself_carries_retry_info() -> None:
    details = _details(errors.Unavailable(errors.Reason.DRAINING, "draining", retry_after_s=0.25))
    retry = details["RetryInfo"]
    assert isinstance(retry, error_details_pb2.RetryInfo)
    assert retry.retry_delay.ToTimedelta().total_seconds() == 0.25


def test_each_class_has_a_code_of_its_own() -> None:
    codes = [cls.code for cls in errors.Refusal.__subclasses__()]
    assert len(set(codes)) == len(codes)
    assert {code.value for code in errors.Code} == {code.value for code in codes}


def test_every_code_is_the_one_of_grpc_with_its_name() -> None:
    for cls in errors.Refusal.__subclasses__():
        refusal = cls(errors.Reason.INVALID_FIELD, "x")
        number, _ = rpc_status.grpc_code(refusal).value
        assert (number, rpc_status.grpc_code(refusal).name) == (refusal.code.value, refusal.code.name)


def test_limits_that_do_not_fit_are_named() -> None:
    with pytest.raises(limits.LimitError, match="batch_bytes_max"):
        limits.check_limits(batch_bytes_max=limits.KAFKA_MESSAGE_BYTES_MAX)


def test_a_wrong_setting_stops_the_process_naming_its_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BULKGRPC_CHUNK_ROWS_MAX", "many")
    with pytest.raises(SystemExit) as stop:
        settings.load(settings.WorkerSettings)
    assert stop.value.code == 2
    assert "BULKGRPC_CHUNK_ROWS_MAX" in capsys.readouterr().err


def test_settings_that_do_not_fit_each_other_stop_the_process(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        settings.load(settings.ServerSettings, batch_bytes_max=limits.KAFKA_MESSAGE_BYTES_MAX)
    assert "error: BULKGRPC_BATCH_BYTES_MAX: batch_bytes_max 4194304 + " in capsys.readouterr().err
