"""Page sizes and page tokens. A token is opaque to clients: base64 of the position where the last page ended. Pure."""

from __future__ import annotations

import base64
import binascii
import re
import uuid

from bulkgrpc import limits
from bulkgrpc.errors import Invalid, Reason
from bulkgrpc.ingest.ports import JobPosition, RejectionPosition
from bulkgrpc.model import Job, from_us, is_dataset, to_us

_POSITION = re.compile(r"([0-9]{1,18})/([0-9]{1,9})/([0-9]{1,18})")


def page_size(requested: int) -> int:
    """Return the size of a page, the default for 0. Raises Invalid for a size out of range."""
    if not 0 <= requested <= limits.PAGE_SIZE_MAX:
        raise Invalid(
            Reason.INVALID_FIELD, f"page_size {requested} is not within 0 to {limits.PAGE_SIZE_MAX}", field="page_size"
        )
    return requested or limits.PAGE_SIZE_DEFAULT


def token_after_job(job: Job) -> str:
    """Return the token of the page after a job."""
    return _encode(f"{to_us(job.create_time)}/{job.spec.key.job_id}")


def job_page_start(token: str) -> JobPosition | None:
    """Parse a token of `token_after_job`; None for the first page. Raises Invalid."""
    if not token:
        return None
    time_us, _, job_id = _decode(token).partition("/")
    try:
        return JobPosition(from_us(int(time_us)), uuid.UUID(job_id))
    except (ValueError, OverflowError) as error:
        raise _invalid() from error


def token_after_rejection(position: RejectionPosition) -> str:
    """Return the token of the page after a rejection."""
    return _encode(f"{position.sequence}/{position.record_index}/{position.rejection_id}")


def rejection_page_start(token: str) -> RejectionPosition:
    """Parse a token of `token_after_rejection`; the position before all for the first page. Raises Invalid."""
    if not token:
        return RejectionPosition()
    numbers = _POSITION.fullmatch(_decode(token))
    if numbers is None:
        raise _invalid()
    return RejectionPosition(*map(int, numbers.groups()))


def token_after_version(version: int) -> str:
    """Return the token of the page after a version of a dataset."""
    return _encode(str(version))


def version_page_start(token: str) -> int:
    """Parse a token of `token_after_version`; 0 for the first page. Raises Invalid."""
    if not token:
        return 0
    text = _decode(token)
    if re.fullmatch(r"[1-9][0-9]{0,8}", text) is None:
        raise _invalid()
    return int(text)


def token_after_dataset(name: str) -> str:
    """Return the token of the page after a dataset."""
    return _encode(name)


def dataset_page_start(token: str) -> str:
    """Parse a token of `token_after_dataset`; "" for the first page. Raises Invalid."""
    if not token:
        return ""
    name = _decode(token)
    if not is_dataset(name):
        raise _invalid()
    return name


def token_after_page(page: int) -> str:
    """Return the token of the part of a table that begins at a page."""
    return _encode(str(page))


def revert_page_start(token: str) -> int:
    """Parse a token of `token_after_page`; 0 for the first part. Raises Invalid."""
    if not token:
        return 0
    text = _decode(token)
    # PostgreSQL numbers the pages of a table with 32 bits.
    if re.fullmatch(r"[1-9][0-9]{0,9}", text) is None or int(text) >= 2**32:
        raise _invalid()
    return int(text)


def _encode(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode()


def _decode(token: str) -> str:
    try:
        return base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise _invalid() from error


def _invalid() -> Invalid:
    return Invalid(
        Reason.INVALID_FIELD,
        "page_token is invalid: send next_page_token unchanged",
        field="page_token",
    )
