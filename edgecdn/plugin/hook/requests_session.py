"""huggingface_hub 0.x (requests): sessions with an adapter that asks the agent first."""

from __future__ import annotations

from edgecdn.plugin.hook.agent import ANSWER_S, Asked
from edgecdn.plugin.hook.guide import guide
from edgecdn.plugin.hook.library import below_endpoint, endpoint, is_offline
from edgecdn.plugin.hook.offline import before_refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["register_requests"]


def register_requests(http: Any) -> None:
    """Have the library make its sessions with our adapter for the endpoint. A user's own factory stays."""
    stock = http._default_backend_factory
    adapter = _adapter_class(http.requests)

    def session() -> Any:
        made = stock()
        prefix = endpoint() + "/"
        made.mount(prefix, adapter(made.get_adapter(prefix)))
        return made

    if http._GLOBAL_BACKEND_FACTORY is stock:
        http.configure_http_backend(session)


def _adapter_class(requests: Any) -> Any:
    import importlib

    urllib3: Any = importlib.import_module("urllib3")

    class Adapter(requests.adapters.HTTPAdapter):  # type: ignore[misc]
        """Asks the agent, and where that has no answer the stock adapter."""

        def __init__(self, stock: Any) -> None:
            super().__init__()
            self._stock = stock

        def send(self, request: Any, stream: bool = False, timeout: Any = None, **more: Any) -> Any:
            before_refusal(request.url)
            answer = None if is_offline() else guide.ask(_asked_by_session(request, timeout))
            if answer is None:
                return self._stock.send(request, stream=stream, timeout=timeout, **more)
            raw = urllib3.HTTPResponse(
                body=answer.body,
                headers=urllib3.HTTPHeaderDict(answer.headers),
                status=answer.status,
                reason=answer.reason,
                preload_content=False,
                request_method=request.method,
            )
            return self.build_response(request, raw)

    return Adapter


def _asked_by_session(request: Any, timeout: Any) -> Asked:
    headers = [(str(name), str(value)) for name, value in request.headers.items()]
    body = request.body.encode() if isinstance(request.body, str) else request.body
    read_s = (timeout[1] if isinstance(timeout, tuple) else timeout) or ANSWER_S
    if not isinstance(body, (bytes, type(None))):
        return Asked("UPLOAD", "", headers)  # a stream: none of ours
    return Asked(request.method, below_endpoint(request.url) or "", headers, body or b"", read_s)
