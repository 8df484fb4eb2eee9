"""What the plugin asks of the agent: `POST /edgecdn/v1/ensure`, again and again until the file is placed.

Each is answered at once. The plugin is a module of the standard library only and speaks plain JSON; this is the
agent's side of it. A field that one side does not know is passed over.
"""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["ENSURE", "Ensure", "Ensured", "State"]

ENSURE = "/edgecdn/v1/ensure"

State = Literal["placed", "coming", "absent", "denied", "failed", "pass", "later"]
"""`placed`: it is in the cache. `coming`: ask again. `absent`, `denied`: the hub says so, and the gateway tells it in
the hub's words. `failed`: it could not be had. `pass`: nobody here can say; the caller asks the hub itself. `later`:
the agent is starting or stopping; the one that is there in a second may say more."""


class Ensure(msgspec.Struct, frozen=True):
    """A file that a client is about to load, and the cache (absolute) it will look in.

    `path` empty: all files a fetch takes (`all_formats`: really all), with no hub asked. `stored_as`: the name under
    which the client keeps the repo, where that is an older one. `token`: the caller's.
    """

    type: str
    repo: str
    revision: str
    path: str
    cache_dir: str
    token: str | None = None
    stored_as: str = ""
    all_formats: bool = False

    def __repr__(self) -> str:
        return f"Ensure({self.type}, {self.repo}, {self.revision}, {self.path}, {self.cache_dir})"


class Ensured(msgspec.Struct, frozen=True, omit_defaults=True):
    """How it stands. `integrity`: what came is not what the hub says it is, and nothing must be loaded."""

    state: State
    done_bytes: int = 0
    total_bytes: int = 0
    commit: str = ""
    etag: str = ""
    error: str = ""
    remedy: str = ""
    integrity: bool = False
