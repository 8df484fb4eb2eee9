"""ModelScope's form of an answer: `{Code, Success, Message, RequestId, Data}`, for errors with the status too."""

from __future__ import annotations

import math
from typing import Any

import msgspec
from aiohttp import web

from edgecdn_agent.gateway.errors import NoAnswer

__all__ = ["data_of", "error_answer", "is_success", "no_answer", "success_body"]

_OK = 200


class _Envelope(msgspec.Struct):
    Code: Any = _OK
    Success: Any = True
    Data: msgspec.Raw = msgspec.Raw(b"null")


def success_body(data: Any) -> bytes:
    """The body of an answer that was found."""
    return msgspec.json.encode({"Code": _OK, "Success": True, "Message": "success", "RequestId": "", "Data": data})


def error_answer(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    """An error as ModelScope says it; older clients show the reason only, newer ones the message."""
    body = {"Code": status, "Success": False, "Message": message, "RequestId": "", "Data": None}
    reason = " ".join(message.encode("ascii", "replace").decode().split())[:200]
    return web.Response(
        status=status,
        reason=reason,
        body=msgspec.json.encode(body),
        content_type="application/json",
        headers={"Cache-Control": "no-store", **(headers or {})},
    )


def no_answer(error: NoAnswer) -> web.Response:
    """503: clients try a few times."""
    wait = {} if error.retry_after_s is None else {"Retry-After": str(math.ceil(error.retry_after_s))}
    return error_answer(503, str(error), wait)


def is_success(body: bytes) -> bool | None:
    """Whether an answer with status 200 says it was found; None: it is no answer of ModelScope at all."""
    try:
        envelope = msgspec.json.decode(body, type=_Envelope)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    return envelope.Success is not False and envelope.Code in (_OK, str(_OK), None)


def data_of(body: bytes) -> Any:
    """What was found, as an object: empty where it is anything else."""
    try:
        data = msgspec.json.decode(msgspec.json.decode(body, type=_Envelope).Data)
    except (msgspec.DecodeError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
