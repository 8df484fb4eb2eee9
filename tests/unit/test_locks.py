"""Locks between processes."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgecdn.cache import locks as locks_module
from edgecdn.cache.locks import FileLock, client_lock
from edgecdn.cache.safedir import SafeDir
from edgecdn.cache.store import open_repo
from edgecdn.errors import CacheRefused, NoSpace, ReadOnlyStore
from tests.unit.made import REPO

HOLD = (
    "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); input()"
)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[SafeDir]:
    with SafeDir.at(tmp_path) as opened:
        yield opened


def _held_by_another_process(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, path], stdin=-1, stdout=-1, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_one_holder_at_a_time(folder: SafeDir) -> None:
    first, second = FileLock(folder, "job.lock"), FileLock(folder, "job.lock")
    assert first.try_acquire()
    assert not second.try_acquire()
    first.release()
    first.release()
    assert second.try_acquire()
    second.release(remove=True)
    assert folder.names() == []


def test_a_killed_holder_leaves_nothing_in_the_way(folder: SafeDir) -> None:
    """FAULTS 38: the file stays, the lock does not."""
    process = _held_by_another_process(folder.path / "job.lock")
    lock = FileLock(folder, "job.lock")
    assert not lock.try_acquire()
    _end(process)
    assert folder.names() == ["job.lock"]
    assert lock.try_acquire()
    lock.release()


@pytest.mark.parametrize("content", [b"", b"99999999\n", b"\0" * 100])
def test_a_stale_file_with_whatever_in_it_is_taken_over(folder: SafeDir, content: bytes) -> None:
    (folder.path / "job.lock").write_bytes(content)
    lock = FileLock(folder, "job.lock")
    assert lock.try_acquire()
    assert (folder.path / "job.lock").read_bytes() == content
    lock.release()


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_was_removed_between_open_and_lock_protects_nothing(
    folder: SafeDir, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    real, path = fcntl.flock, folder.path / "job.lock"
    taken: list[int] = []

    def remove_once(fd: int, operation: int) -> None:
        real(fd, operation)
        if not taken:
            path.unlink()
            if replaced:
                path.write_bytes(b"")
        taken.append(os.fstat(fd).st_ino)

    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", remove_once)
        lock = FileLock(folder, "job.lock")
        assert lock.try_acquire()
    assert len(taken) == 2
    assert path.stat().st_ino == taken[1]
    assert not FileLock(folder, "job.lock").try_acquire()
    lock.release()


def test_a_planted_link_is_not_locked(folder: SafeDir, tmp_path: Path) -> None:
    """FAULTS 3."""
    (folder.path / "job.lock").symlink_to(tmp_path / "created-outside")
    with pytest.raises(CacheRefused):
        FileLock(folder, "job.lock").try_acquire()
    assert not (tmp_path / "created-outside").exists()


def test_the_clients_lock_is_held_while_publishing(folder: SafeDir) -> None:
    with client_lock(folder, "etag"):
        assert not FileLock(folder, "etag.lock").try_acquire()
    assert FileLock(folder, "etag.lock").try_acquire()


def test_the_clients_lock_is_waited_for(folder: SafeDir) -> None:
    lock = FileLock(folder, "etag.lock")
    assert lock.try_acquire()
    threading.Timer(0.1, lock.release).start()
    with client_lock(folder, "etag"):
        assert not FileLock(folder, "etag.lock").try_acquire()  # it is ours now


def test_a_client_that_never_lets_go_is_not_waited_for_longer(folder: SafeDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAULTS 64."""
    monkeypatch.setattr(locks_module, "_CLIENT_WAIT_S", 0.1)
    process = _held_by_another_process(folder.path / "etag.lock")
    with client_lock(folder, "etag"):
        assert not FileLock(folder, "etag.lock").try_acquire()
    assert process.poll() is None
    _end(process)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_flock_a_publication_goes_on(folder: SafeDir, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(_fd: int, _operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with client_lock(folder, "etag"):
        done = True
    assert done


@pytest.mark.parametrize(
    ("failure", "goes_on"), [(ReadOnlyStore(where="x"), True), (NoSpace(where="x"), False), (OSError("else"), False)]
)
def test_another_users_lock_file_does_not_end_a_publication(
    folder: SafeDir, monkeypatch: pytest.MonkeyPatch, failure: OSError, goes_on: bool
) -> None:
    def refuse(*_: object) -> int:
        raise failure

    monkeypatch.setattr(folder, "open", refuse)
    done = False
    try:
        with client_lock(folder, "etag"):
            done = True
    except OSError as error:
        assert error is failure
    assert done == goes_on
    folder.close()
    with client_lock(folder, "etag"):  # a folder of locks that could not be made
        done = True
    assert done


def test_a_folder_of_locks_that_may_not_be_made_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_repo(tmp_path / "cache", REPO, create=True) as store:
        real = os.mkdir

        def refuse(path: str, *more: object, **named: object) -> None:
            if str(path) == ".locks":
                raise PermissionError(errno.EACCES, "not yours")
            real(path, *more, **named)  # type: ignore[arg-type]

        monkeypatch.setattr(os, "mkdir", refuse)
        with store.locks() as locks, client_lock(locks, "etag"):
            assert locks.fd < 0
