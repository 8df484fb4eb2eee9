"""What the fetches of one process share, so that they do not stand in each other's way."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgecdn.cache.catalog import Catalog
from edgecdn.cache.publish import WrittenTrees
from edgecdn.rooms import Rooms
from edgecdn.transfer.arrivals import Arrivals

__all__ = ["Together"]


@dataclass(frozen=True, slots=True)
class Together:
    """Made once by an agent. `catalog`: one that is open already, and stays so (None: each fetch opens it)."""

    rooms: Rooms = field(default_factory=Rooms)
    arrivals: Arrivals = field(default_factory=Arrivals)
    trees: WrittenTrees = field(default_factory=WrittenTrees)
    catalog: Catalog | None = None
