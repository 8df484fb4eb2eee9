"""EDGECDN_DISABLE: the user's switch, for the hook and for `edgecdn env` and `run` alike."""

from __future__ import annotations

from collections.abc import Mapping

from edgecdn.plugin.hook.finder import NOT_SET

__all__ = ["is_switched_off"]


def is_switched_off(environ: Mapping[str, str]) -> bool:
    """Whether tools are to go without edgecdn."""
    return environ.get("EDGECDN_DISABLE", "").strip().lower() not in NOT_SET
