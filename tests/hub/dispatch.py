"""From a request as it arrived to the answer of the right handler, without any I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.hub.answers import Answer, Asked, HubError
from tests.hub.api import answer_api
from tests.hub.faults import Target
from tests.hub.files import answer_cdn, answer_resolve, find_cdn_file, redirect_renamed
from tests.hub.modelscope import ModelScope, error_envelope
from tests.hub.routes import Route, parse
from tests.hub.state import HubState
from tests.hub.stats import Seen


@dataclass(frozen=True)
class Dispatcher:
    """Knows which handler serves which listener."""

    state: HubState
    modelscope: ModelScope

    def dispatch(self, asked: Asked, seen: Seen) -> tuple[Target, Answer]:
        """Return what rules can match, and the answer if none does; `seen` learns both."""
        if seen.listener == "cdn":
            answer = self._ask_cdn(asked, seen)
        elif seen.listener == "modelscope":
            answer = self._ask_modelscope(asked, seen)
        else:
            answer = self._ask_hub(asked, seen)
        host = asked.headers.get("Host", "")
        target = Target(seen.route, asked.method, host, asked.raw_path, seen.repo, seen.file)
        if not answer.ranged:
            seen.file = ""  # only the bytes of files are counted
        return target, answer

    def _ask_hub(self, asked: Asked, seen: Seen) -> Answer:
        route = parse(asked.raw_path)
        seen.route, seen.repo, seen.file = route.kind, route.repo, route.path
        try:
            query = seen.path.partition("?")[2]
            renamed = redirect_renamed(self.state, asked, route, query)
            return renamed or self._answer_hub(asked, route)
        except HubError as error:
            return error.answer()

    def _answer_hub(self, asked: Asked, route: Route) -> Answer:
        if route.kind == "resolve":
            return answer_resolve(self.state, asked, route)
        if route.kind == "api":
            return answer_api(self.state, asked, route)
        raise HubError(404, "", "Not found")

    def _ask_cdn(self, asked: Asked, seen: Seen) -> Answer:
        seen.route = "cdn"
        states: Sequence[HubState] = (self.state, self.modelscope.state)
        found = next(filter(None, (find_cdn_file(one, asked.raw_path) for one in states)), None)
        if found is not None:
            seen.repo, seen.file = found[0].id, found[1].path
        try:
            return answer_cdn(self.state, asked, None if found is None else found[1])
        except HubError as error:
            return error.answer()

    def _ask_modelscope(self, asked: Asked, seen: Seen) -> Answer:
        seen.route = "modelscope"
        place = self.modelscope.place(asked)
        if place is not None:
            seen.repo, seen.file = place.repo.id, place.file
        try:
            return self.modelscope.answer(asked, place)
        except HubError as error:
            return error_envelope(error)
