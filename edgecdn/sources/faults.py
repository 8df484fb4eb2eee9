"""How a source can fail a request, told apart by what must follow. Pure; no I/O."""

from __future__ import annotations

__all__ = ["Broken", "Busy", "Denied", "Misbehaved", "Missing", "NoRanges", "SourceFault", "WrongPiece"]


class SourceFault(Exception):
    """Root of a source's failures; the text is a sentence fragment for logs and users."""


class Missing(SourceFault):
    """It does not have this file (404, or other bytes under that name). Do not ask it again."""


class Denied(SourceFault):
    """It has it and this user may not read it (401, 403). Do not ask it again."""

    def __init__(self, reason: str, *, gated: bool = False) -> None:
        super().__init__(reason)
        self.gated = gated


class Busy(SourceFault):
    """It asks to be left alone for a while (429, 503): `retry_after_s` seconds, None when it did not say."""

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class Broken(SourceFault):
    """The connection or the server failed: reset, stall, short body, 5xx. Try again, later and later."""


class Misbehaved(SourceFault):
    """It answered something that is not the data asked for. Nothing of it was used; a few of these end its use."""


class NoRanges(SourceFault):
    """It gives this file only whole (200 to a Range request). Ask it for all or not at all."""


class WrongPiece(Misbehaved):
    """It gave a piece that is not what it said itself to have: its copy of that file is damaged, or it lies."""
