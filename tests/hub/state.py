"""What every handler of one test hub shares."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import quote

from tests.hub.answers import HubError
from tests.hub.content import HubFile
from tests.hub.repos import Commit, HubRepo

Tokens = Mapping[str, Collection[str]] | Collection[str] | None
"""Token to readable repos, or tokens that read everything, or None: tokens are not looked at."""


@dataclass
class Signer:
    """Signs CDN addresses with an expiry."""

    lifetime_s: float = 3600.0
    clock: Callable[[], float] = time.time
    key: bytes = b"test hub"

    def sign(self, path: str) -> str:
        """Return the path with its expiry and signature."""
        expires = int(self.clock() + self.lifetime_s)
        return f"{path}?exp={expires}&sig={self._digest(path, str(expires))}"

    def accepts(self, path: str, query: Mapping[str, str]) -> bool:
        """Tell whether the signature is right and still valid."""
        expires = query.get("exp", "")
        right = hmac.compare_digest(query.get("sig", ""), self._digest(path, expires))
        return right and self.clock() < int(expires)

    def _digest(self, path: str, expires: str) -> str:
        return hmac.new(self.key, f"{path}|{expires}".encode(), hashlib.sha256).hexdigest()


@dataclass
class HubState:
    """Repositories, who may read them, and where the listeners are."""

    repos: dict[tuple[str, str], HubRepo]
    aliases: Mapping[str, str]
    tokens: Tokens
    page_size: int
    cdn: bool
    cdn_url: str  # known once the listener is bound
    signer: Signer

    @classmethod
    def of(
        cls,
        repos: Iterable[HubRepo],
        aliases: Mapping[str, str],
        tokens: Tokens,
        *,
        signer: Signer,
        page_size: int = 1000,
        cdn: bool = True,
    ) -> HubState:
        """Index repositories by type and id."""
        index: dict[tuple[str, str], HubRepo] = {(repo.type, repo.id): repo for repo in repos}
        return cls(index, aliases, tokens, page_size, cdn, "", signer)

    def check_token(self, token: str | None) -> None:
        """Refuse a token that does not exist."""
        if token is not None and self.tokens is not None and token not in self.tokens:
            raise HubError(401, "", "Invalid credentials in Authorization header")

    def can_read(self, repo: HubRepo, token: str | None) -> bool:
        """Tell whether the token opens a private or gated repository."""
        if token is None or self.tokens is None or token not in self.tokens:
            return False
        if not isinstance(self.tokens, Mapping):
            return True
        return repo.id in self.tokens[token] or "*" in self.tokens[token]

    def visible(self, repo: HubRepo, token: str | None) -> bool:
        """Tell whether the repository may be known to exist."""
        return not repo.private or self.can_read(repo, token)

    def repo(self, repo_type: str, repo_id: str, token: str | None) -> HubRepo:
        """Find a repository the token may see."""
        self.check_token(token)
        repo = self.repos.get((repo_type, repo_id))
        if repo is None or (token is not None and not self.visible(repo, token)):
            raise HubError(404, "RepoNotFound", "Repository not found")
        if not self.visible(repo, token):
            raise HubError(401, "RepoNotFound", "Invalid username or password.")
        return repo

    def check_gate(self, repo: HubRepo, token: str | None) -> None:
        """Refuse the content of a gated repository."""
        if repo.gated and not self.can_read(repo, token):
            message = f"Access to {repo.type} {repo.id} is restricted."
            raise HubError(403, "GatedRepo", message)

    def commit(self, repo: HubRepo, revision: str) -> Commit:
        """Find a revision."""
        commit = repo.resolve(revision)
        if commit is None:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def cdn_location(self, repo: HubRepo, file: HubFile) -> str:
        """Return the signed address of a large file."""
        path = f"/{repo.type}s/{repo.id}/{file.sha256}/{quote(file.path, safe='/')}"
        return self.cdn_url + self.signer.sign(path)
