"""The rig of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.rig import Rig, rig
from tests.conftest import new_data_dir


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A service to be hurt, of the module's own."""
    with rig(new_data_dir(), tmp_path_factory.mktemp("chaos")) as made:
        yield made
