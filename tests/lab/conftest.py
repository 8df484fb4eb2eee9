"""Every test here is on a lab of network namespaces; without root each is skipped, and says so."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.lab.namespaces import unavailable
from tests.lab.network import Network
from tests.lab.world import World

_HERE = Path(__file__).parent
_MEMORY = Path("/dev/shm")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs root."""
    reason = unavailable()
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.root)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def network() -> Iterator[Network]:
    """A switch without machines."""
    with Network() as made:
        yield made


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A lab without machines; ends with the oracle. Its disks are memory where there is some: several share one."""
    with tempfile.TemporaryDirectory(prefix="edgecdn-lab-", dir=_MEMORY if _MEMORY.is_dir() else tmp_path) as folder:
        async with World(Path(folder)) as made:
            yield made
