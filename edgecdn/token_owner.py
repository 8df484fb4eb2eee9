"""Which hub the user's token belongs to, and how a token is known without being kept. Pure.

A token opens the user's private repos to whoever holds it, so it goes to one hub: the one the
settings name, else huggingface.co, else the first hub unless that is known to be somebody else's
mirror of huggingface.co.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from urllib.parse import urlsplit

__all__ = ["token_key", "token_owner"]

_HUB_HOSTS = frozenset({"huggingface.co", "hf.co", "www.huggingface.co"})
_MIRROR_HOSTS = frozenset({"hf-mirror.com", "www.hf-mirror.com", "modelscope.cn", "www.modelscope.cn"})
"""Public mirrors run by others: a token for huggingface.co is none of their business."""


def token_owner(endpoints: Sequence[str], named: str) -> str | None:
    """The endpoint the token is for; None when it is for none of them."""
    if named:
        return named if named in endpoints else None
    for endpoint in endpoints:
        if urlsplit(endpoint).hostname in _HUB_HOSTS:
            return endpoint
    first = endpoints[0]
    return None if urlsplit(first).hostname in _MIRROR_HOSTS else first


def token_key(token: str | None) -> str:
    """Whose token it is, by its hash; empty for who has none. What is remembered for a caller goes by this."""
    return "" if token is None else hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
