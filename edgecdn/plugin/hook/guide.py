"""What this process knows of the agent, and all that is asked of it."""

from __future__ import annotations

import os
import sys

from edgecdn.plugin.hook.again import polled_again
from edgecdn.plugin.hook.agent import (
    Agent,
    Answer,
    Asked,
    IntegrityError,
    Unusable,
    find_agent,
    home_dir,
    is_well,
    send,
)
from edgecdn.plugin.hook.bar import Bar
from edgecdn.plugin.hook.library import download_call, endpoint, is_read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Guide", "guide"]

DOWN_S = 30.0
"""An agent that was found hung or broken is asked again after this; so is one that had to let a file pass."""

FRESH_S = 2.0
"""Whether there is an agent is looked up this often at most."""

STALLED_S = 180.0
"""Nothing came for so long, and the agent has not given up by itself."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 0.25
SHOWN_AFTER_S = 0.5


class Guide:
    """The one of this process is `guide`."""

    def __init__(self) -> None:
        self._found: Agent | None = None
        self._stranger: Agent | None = None
        self._look_at = self._down_until = self._xet_until = 0.0
        self._doubted = False
        self._warned: set[str] = set()
        self._xet: tuple[bool] | None = None
        self._direct: dict[str, float] = {}
        self._placed: set[tuple[str, ...]] = set()

    def agent(self) -> Agent | None:
        """The agent, if one serves the endpoint of this process. Without one: a `stat` every two seconds at most."""
        import time

        now = time.monotonic()
        if now < self._down_until:
            return None
        if now >= self._look_at:
            self._look_at = now + FRESH_S
            home = home_dir()
            found = find_agent(home) if os.path.exists(os.path.join(home, "run.json")) else None
            serves = found is not None and found.serves(endpoint())
            self._found, self._stranger = (found, None) if serves else (None, found)
            if self._doubted and self._found is not None:
                self._doubted = not is_well(self._found)
                if self._doubted:
                    self._found, self._down_until = None, now + DOWN_S
        self._set_xet(disabled=self._found is not None and now >= self._xet_until)
        return self._found

    def ask(self, asked: Asked) -> Answer | None:
        """The agent's answer as if from the endpoint; None: ask the endpoint. Raises IntegrityError."""
        import http.client
        import time

        agent = self.agent() if is_read(asked) and self._direct.get(asked.target, 0.0) < time.monotonic() else None
        if agent is None:
            if self._stranger is not None and is_read(asked):
                self._tell_other_hub(self._stranger)
            return None
        try:
            answer = self._placed_and_sent(agent, asked)
            if answer is None or answer.status < 400 or answer.status == 416:
                return answer
            if not answer.header("x-error-code", "x-error-message"):
                answer.close()
                raise Unusable(f"it answers {answer.status}: perhaps it is of another version")
        except IntegrityError:
            raise
        except (OSError, http.client.HTTPException, ValueError, Unusable) as error:
            self.fall_open(error)
            return None
        if answer.status < 500:
            return answer
        answer.close()  # no hub answers the agent; perhaps it answers us
        return None

    def place_snapshot(self, named: tuple[str, str, str], cache_dir: str, *, every: bool) -> None:
        """Have the lab bring a repo (type, name, revision) into a cache, where the user allowed that. Once.

        `every`: all files of it, not only those a fetch takes by default. Raises IntegrityError.
        """
        import http.client

        key = (*named, cache_dir, str(every))
        agent = None if key in self._placed else self.agent()
        if agent is None or not agent.offline_lan:
            return
        self._placed.add(key)
        message = dict(zip(("type", "repo", "revision"), named))
        message.update(path="", cache_dir=cache_dir)
        try:
            self._ensure(agent, {**message, "all_formats": every}, named[1], None)
        except IntegrityError:
            raise
        except (OSError, http.client.HTTPException, ValueError, Unusable) as error:
            self.fall_open(error)

    def fall_open(self, error: Exception) -> None:
        """Do without the agent for a while; say so once."""
        import time

        self._found, self._down_until, self._doubted = None, time.monotonic() + DOWN_S, True
        self._set_xet(disabled=False)
        text = "edgecdn: the agent cannot be used (%s); files come from %s without it. `edgecdn doctor` tells more."
        self._warn("agent", text, str(error) or type(error).__name__, endpoint())

    def _tell_other_hub(self, agent: Agent) -> None:
        """Nothing of this process goes by the agent, which asks other hubs."""
        if not agent.is_gateway(endpoint()):
            text = "edgecdn: files come from %s, which the agent does not ask, without it. To change that, %s."
            self._warn("hub", text, endpoint(), agent.remedy(endpoint()))

    def _warn(self, about: str, text: str, *values: str) -> None:
        """One line; once in a process."""
        import logging

        if about not in self._warned:
            self._warned.add(about)
            logging.getLogger("huggingface_hub.edgecdn").warning(text, *values)

    def _placed_and_sent(self, agent: Agent, asked: Asked) -> Answer | None:
        """Have the file of a download placed where it is not yet, then ask; None: the endpoint has to give it."""
        call = download_call(asked, agent)
        if call is None:
            return _sent(agent, asked)
        if call.is_cached:
            answer = _sent(agent, asked)
            if answer.status != 200 or call.has_blob(answer.header("x-linked-etag", "etag")):
                return answer
            answer.close()
        agent, told = self._ensure(agent, call.message, call.path, call.bars)
        if told["state"] in ("placed", "absent", "denied"):
            return _sent(agent, asked)
        if told["state"] == "failed":
            why = " ".join(str(told.get(name) or "") for name in ("error", "remedy")).strip()
            text = "edgecdn: the agent could not bring %s: %s It comes from %s."
            self._warn("file", text, call.path, why, endpoint())
        self._let_pass(asked.target)
        return None

    def _ensure(self, agent: Agent, message: dict[str, Any], title: str, bars: Any) -> tuple[Agent, dict[str, Any]]:
        """Poll until the agent placed it, or says that it will not; returns what it said last, and who."""
        import time

        began = changed = time.monotonic()
        pause, done, bar = FIRST_PAUSE_S, None, Bar(title, bars)
        try:
            while True:
                answering, told = polled_again(agent, message)
                if answering is not agent:
                    agent = self._found = answering
                now = time.monotonic()
                if told.get("done_bytes") != done:
                    done, changed = told.get("done_bytes"), now
                if now - began > SHOWN_AFTER_S:
                    bar.show(told)
                if told["state"] != "coming" or now - changed > STALLED_S:
                    return agent, told
                time.sleep(pause)
                pause = min(LONGEST_PAUSE_S, pause * 1.5)
        finally:
            bar.close()

    def _let_pass(self, target: str) -> None:
        """The agent cannot bring this one: the endpoint gives it, by Xet where it would have without us."""
        import time

        self._direct[target] = self._xet_until = time.monotonic() + DOWN_S
        self._set_xet(disabled=False)

    def _set_xet(self, *, disabled: bool) -> None:
        """hf_xet goes around the transport: off while the agent answers, else as the user had it."""
        library: Any = sys.modules.get("huggingface_hub.constants")
        if not hasattr(library, "HF_HUB_DISABLE_XET"):
            return
        if disabled and self._xet is None:
            self._xet, library.HF_HUB_DISABLE_XET = (library.HF_HUB_DISABLE_XET,), True
        elif not disabled and self._xet is not None:
            library.HF_HUB_DISABLE_XET, self._xet = self._xet[0], None


def _sent(agent: Agent, asked: Asked) -> Answer:
    """Ask; the agent's own address in the answer becomes the endpoint's, so that what follows comes by here too."""
    answer = send(agent, asked)
    own, hub = f"http://{agent.netloc}", endpoint()
    answer.headers = [
        (name, value.replace(own, hub) if name.lower() in ("location", "link") else value)
        for name, value in answer.headers
    ]
    return answer


guide = Guide()
