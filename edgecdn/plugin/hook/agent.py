"""The way to the agent of this user: found by what it leaves in its home, asked over loopback."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

__all__ = [
    "DEFAULT_HUB",
    "Agent",
    "Answer",
    "Asked",
    "IntegrityError",
    "Unusable",
    "find_agent",
    "home_dir",
    "lock_holder",
    "polled",
    "send",
]

DEFAULT_HUB = "https://huggingface.co"

CONNECT_S = 0.5
SILENCE_S = 0.95
"""An agent answers each poll at once: one that says nothing for so long is hung, and a second is all it may cost."""

LOOK_S = 0.45
"""While it waits for a hub, the agent is asked this often whether it lives."""

ANSWER_S = 30.0
"""An agent that lives but has no answer of the hub by then is not waited for."""

WELL_S = 0.1
"""One that was found hung is asked so shortly before it is used again: a hung one costs a process its second once."""

MOST_BYTES = 1 << 20
HOP_HEADERS = frozenset(
    ("host", "connection", "keep-alive", "transfer-encoding", "proxy-authorization", "proxy-connection", "te")
)
"""Headers of one connection: they are not passed on."""


class IntegrityError(OSError):
    """The bytes of a file are not what the hub says they are: nothing is loaded then."""


class Unusable(Exception):
    """The agent answered what no agent of this version answers."""


class Agent:
    """Where the agent answers, the token it answers to, and what it says of itself in `run.json`."""

    def __init__(self, host: str, port: int, token: str, run: dict[str, Any]) -> None:
        self.host, self.port, self.token = host, port, token
        self.netloc = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.pid = str(run.get("pid") or "")
        self.cache_dir = str(run.get("cache_dir") or "")
        self.hubs = [str(hub).rstrip("/") for hub in run.get("hub_endpoints") or ()]
        self.offline_lan = run.get("offline_lan") is True

    def serves(self, endpoint: str) -> bool:
        """Whether it asks this hub, so that it can stand in front of it."""
        return endpoint.rstrip("/") in self.hubs

    def is_gateway(self, endpoint: str) -> bool:
        """Whether this is where an agent serves tools itself: `edgecdn env` and `edgecdn run` have set it."""
        set_by_us = (f"http://{self.netloc}", os.environ.get("EDGECDN_ENV_URL"), "http://127.0.0.1:8377")
        return endpoint.rstrip("/") in set_by_us

    def remedy(self, endpoint: str) -> str:
        """What a user can do who wants this hub served, too."""
        hubs = " ".join([endpoint, *self.hubs])
        return (
            f"let the agent ask it (`edgecdn config set hub.endpoints {hubs}`, then `edgecdn agent stop`, "
            f"`edgecdn agent start`){', or `unset HF_ENDPOINT`' if os.environ.get('HF_ENDPOINT') else ''}"
        )


def home_dir() -> str:
    """The folder of the user's agent."""
    return os.path.expanduser(os.environ.get("EDGECDN_HOME") or "~/.local/share/edgecdn")


def find_agent(home: str) -> Agent | None:
    """The agent that serves `home`; None where none does (one that was killed leaves its `run.json`)."""
    import json

    try:
        run = json.loads(_read_own(os.path.join(home, "run.json")))
        token = _read_own(os.path.join(home, "api-token")).decode("ascii").strip()
        host, _, port = run["listeners"]["local"].rpartition(":")
        host = host.strip("[]")
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
        there = bool(token) and lock_holder(home) is not None
        return Agent(host, int(port), token, run) if there else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError):
        return None


def _read_own(path: str) -> bytes:
    """A small file that this user (or root) wrote: nobody else says where tokens are sent."""
    import stat

    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        seen = os.fstat(fd)
        if not stat.S_ISREG(seen.st_mode) or seen.st_uid not in (os.getuid(), 0):
            raise OSError(f"{path} is not a file of this user")
        return file.read(MOST_BYTES)


def lock_holder(home: str) -> str | None:
    """The process that holds the home; None where none lives: the kernel frees the lock however it died."""
    import fcntl

    try:
        fd = os.open(os.path.join(home, "agent.lock"), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.read(fd, 20).decode("ascii", "replace").strip()
    finally:
        os.close(fd)
    return None


class Asked:
    """A request as a library made it. `target`: path and query below the endpoint, as written; `read_s`: its limit."""

    def __init__(
        self, method: str, target: str, headers: Sequence[tuple[str, str]], body: bytes = b"", read_s: float = ANSWER_S
    ) -> None:
        self.method, self.target, self.body, self.read_s = method, target, body, read_s
        self.headers = [pair for pair in headers if pair[0].lower() not in HOP_HEADERS | {"content-length"}]

    @property
    def token(self) -> str | None:
        """The token of whoever asks."""
        given = (value for name, value in self.headers if name.lower() == "authorization")
        return next((value[7:] for value in given if value[:7].lower() == "bearer "), None)


class Answer:
    """What the agent answered. `body` is read by the library; then `close`."""

    def __init__(self, headers: list[tuple[str, str]], body: Any, connection: Any) -> None:
        self.status: int = body.status
        self.reason: str = body.reason
        self.headers, self.body, self._connection = headers, body, connection

    def header(self, *names: str) -> str:
        """The first of these headers (lower case) that is there; else nothing."""
        there = {name.lower(): value for name, value in self.headers}
        return next((there[name] for name in names if there.get(name)), "")

    def chunks(self) -> Iterator[bytes]:
        """The body as it comes. Raises OSError and HTTPException, also where it ends early."""
        import http.client

        while True:
            chunk = self.body.read1(MOST_BYTES)
            if not chunk:
                break
            yield chunk
        if self.body.length:
            raise http.client.IncompleteRead(b"", self.body.length)

    def close(self) -> None:
        """Let the agent go."""
        self.body.close()
        self._connection.close()


def send(agent: Agent, asked: Asked) -> Answer:
    """Ask the agent what a hub may have to answer; its own address in the answer stays. Raises as `polled`."""
    connection = _begun(agent, asked, ())
    try:
        _await_answer(connection.sock, agent, min(ANSWER_S, asked.read_s))
        connection.sock.settimeout(asked.read_s)
        return _answered(connection)
    except BaseException:
        connection.close()
        raise


def is_well(agent: Agent) -> bool:
    """Whether the agent answers at once."""
    try:
        _probe(agent, WELL_S)
    except OSError:
        return False
    return True


def polled(agent: Agent, message: dict[str, Any]) -> dict[str, Any]:
    """How it stands with what is to be placed. Raises OSError and HTTPException where the agent is gone or hung.

    IntegrityError; Unusable for an answer that is none.
    """
    import json

    asked = Asked("POST", "/edgecdn/v1/ensure", [], json.dumps(message).encode())
    connection = _begun(
        agent, asked, (("Authorization", f"Bearer {agent.token}"), ("Content-Type", "application/json"))
    )
    try:
        answer = _answered(connection)
        if answer.status != 200:
            raise Unusable(f"it answers {answer.status}: perhaps it is of another version")
        told = json.loads(answer.body.read(MOST_BYTES))
    finally:
        connection.close()
    if not isinstance(told, dict) or "state" not in told:
        raise Unusable("its answer is none")
    if told["state"] == "failed" and told.get("integrity"):
        raise IntegrityError(" ".join(str(told.get(name) or "") for name in ("error", "remedy")).strip())
    return told


def _begun(agent: Agent, asked: Asked, own: Sequence[tuple[str, str]]) -> Any:
    """A connection with the request on its way."""
    import http.client

    connection = http.client.HTTPConnection(agent.host, agent.port, timeout=CONNECT_S)
    try:
        connection.connect()
        connection.sock.settimeout(SILENCE_S)
        connection.putrequest(asked.method, asked.target, skip_host=True, skip_accept_encoding=True)
        length = [("Content-Length", str(len(asked.body)))] if asked.method == "POST" else []
        for name, value in (("Host", agent.netloc), ("Connection", "close"), *length, *own, *asked.headers):
            connection.putheader(name, value)
        connection.endheaders(asked.body or None)
    except BaseException:
        connection.close()
        raise
    return connection


def _answered(connection: Any) -> Answer:
    body = connection.getresponse()
    pairs = [(name, value) for name, value in body.getheaders() if name.lower() not in HOP_HEADERS]
    return Answer(pairs, body, connection)


def _await_answer(sock: Any, agent: Agent, limit_s: float) -> None:
    """Until the answer begins. The agent may wait for a hub: while it does, it has to show that it lives."""
    import socket
    import time

    deadline = time.monotonic() + limit_s
    sock.settimeout(LOOK_S)
    while not _has_begun(sock):
        if time.monotonic() > deadline:
            raise socket.timeout(f"it has no answer in {limit_s:.0f} s")
        _probe(agent, LOOK_S)


def _probe(agent: Agent, limit_s: float) -> None:
    """Raises OSError where the agent does not show that it lives."""
    import socket

    with socket.create_connection((agent.host, agent.port), timeout=limit_s) as probe:
        probe.sendall(f"GET /healthz HTTP/1.0\r\nHost: {agent.netloc}\r\n\r\n".encode())
        if not probe.recv(1):
            raise OSError("it closes connections")


def _has_begun(sock: Any) -> bool:
    import socket

    try:
        sock.recv(1, socket.MSG_PEEK)
    except socket.timeout:
        return False
    return True
