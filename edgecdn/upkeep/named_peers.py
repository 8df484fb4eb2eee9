"""The doctor's look at `discovery.peers`: a hello to each that the user named, and what its answer means."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from socket import gaierror

import aiohttp

from edgecdn.errors import EdgecdnError
from edgecdn.lan_wire import BASE_PATH, MOST_HELLO_BYTES, PROTOCOL, PROTOCOL_HEADER, parse_hello
from edgecdn.settings_values import Listen
from edgecdn.upkeep.diagnosis import Check, State

__all__ = ["check_named"]

_ANSWER_S = 3.0
"""An agent on a campus network answers in milliseconds."""

_SET = "`edgecdn config set discovery.peers HOST:PORT ...`"


def check_named(named: Sequence[Listen]) -> Iterator[Check]:
    """A line for each."""
    if named:
        yield from asyncio.run(_ask_all(named))


async def _ask_all(named: Sequence[Listen]) -> list[Check]:
    timeout = aiohttp.ClientTimeout(total=_ANSWER_S)
    async with aiohttp.ClientSession(timeout=timeout, trust_env=False, auto_decompress=False) as session:
        return await asyncio.gather(*(_ask(session, peer) for peer in named))


async def _ask(session: aiohttp.ClientSession, peer: Listen) -> Check:
    check = f"discovery.peers {peer}"
    began = time.monotonic()
    try:
        headers = {PROTOCOL_HEADER: str(PROTOCOL)}
        async with session.get(f"http://{peer}{BASE_PATH}/hello", headers=headers, allow_redirects=False) as answer:
            latency_ms = (time.monotonic() - began) * 1000
            if answer.status != 200:
                return _is_no_agent(check, f"HTTP {answer.status}")
            hello = parse_hello(await answer.content.read(MOST_HELLO_BYTES))
    except TimeoutError:
        remedy = f"Is that machine up, and does it (and what is between) let TCP {peer.port} in? Else: {_SET}."
        return Check(check, State.WARN, f"no answer within {_ANSWER_S:.0f} s", remedy)
    except aiohttp.ClientConnectorError as error:
        return _not_reached(check, peer, error.os_error)
    except (aiohttp.ClientError, OSError, EdgecdnError, ValueError) as error:
        return _is_no_agent(check, str(error)[:120] or type(error).__name__)
    return Check(check, State.OK, f"{hello.name} answers in {latency_ms:.1f} ms")


def _not_reached(check: str, peer: Listen, error: OSError) -> Check:
    if isinstance(error, gaierror):
        remedy = f"Check the spelling, or name it by its address: {_SET}."
        return Check(check, State.WARN, f"the name '{peer.host}' is not known here ({error.strerror})", remedy)
    if isinstance(error, ConnectionRefusedError):
        remedy = f"Start its agent; `edgecdn status` there tells its LAN port (`lan`): {_SET}."
        return Check(check, State.WARN, "refuses the connection: no agent listens on that port", remedy)
    remedy = f"Check the way to that machine, or correct it: {_SET}."
    return Check(check, State.WARN, f"cannot be reached: {error.strerror or error}", remedy)


def _is_no_agent(check: str, said: str) -> Check:
    remedy = f"Name the LAN port of that agent (`edgecdn status` there: `lan`), not another: {_SET}."
    return Check(check, State.WARN, f"answers, but not as an agent's LAN port ({said})", remedy)
