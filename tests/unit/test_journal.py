"""The journal of a partial file: what is believed after a crash, and what is not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgecdn.cache import journal as journal_module
from edgecdn.cache.journal import Journal, boot_id, new_header, read_journal
from edgecdn.cache.safedir import SafeDir
from edgecdn.errors import NoSpace
from tests.unit.made import lfs_file

DIGEST = lfs_file("m", b"m").digest
PARTIAL = f"{DIGEST}.0123abcd.incomplete"
NAME = "a.journal"


@pytest.fixture
def state(tmp_path: Path) -> Iterator[SafeDir]:
    with SafeDir.at(tmp_path) as folder:
        yield folder


def _begin(state: SafeDir) -> Journal:
    journal = Journal(state, NAME)
    journal.create(new_header(DIGEST, 9 << 20, PARTIAL, 77))
    return journal


def _units(state: SafeDir) -> set[int] | None:
    found = read_journal(state, NAME)
    return None if found is None else found[1]


def _another_boot(monkeypatch: pytest.MonkeyPatch, name: str = "another") -> None:
    monkeypatch.setattr(journal_module, "boot_id", lambda: name)


def test_what_was_written_is_remembered(state: SafeDir) -> None:
    journal = _begin(state)
    for index in (3, 0, 7):
        journal.unit(index)
    journal.close()
    found = read_journal(state, NAME)
    assert found is not None
    header, units = found
    assert (header.digest, header.size, header.partial, header.inode) == (DIGEST.hex, 9 << 20, PARTIAL, 77)
    assert header.boot == boot_id()
    assert units == {0, 3, 7}


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_a_torn_end_is_not_believed_and_does_not_hurt_what_follows(state: SafeDir, cut: int) -> None:
    journal = _begin(state)
    journal.unit(1)
    journal.unit(23)
    journal.close()
    path = state.path / NAME
    path.write_bytes(path.read_bytes()[:-cut])
    assert _units(state) == {1}
    again = Journal(state, NAME)
    again.resume()
    again.unit(5)
    again.close()
    units = _units(state)
    assert units == ({1, 5, 23} if cut == 1 else {1, 5})  # never 2


def test_after_a_restart_of_the_machine_only_synced_units_count(
    state: SafeDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = _begin(state)
    journal.unit(1)
    journal.barrier()
    journal.unit(2)
    journal.close()
    assert _units(state) == {1, 2}
    _another_boot(monkeypatch)
    assert _units(state) == {1}
    again = Journal(state, NAME)
    again.resume()
    again.unit(3)
    assert _units(state) == {1, 3}
    again.barrier()
    again.unit(4)
    again.close()
    _another_boot(monkeypatch, "a third")
    assert _units(state) == {1, 3}


def test_without_a_boot_id_only_synced_units_count(state: SafeDir, monkeypatch: pytest.MonkeyPatch) -> None:
    _another_boot(monkeypatch, "")
    journal = _begin(state)
    journal.unit(1)
    journal.barrier()
    journal.unit(2)
    journal.close()
    assert _units(state) == {1}


def test_a_resumed_journal_goes_on(state: SafeDir) -> None:
    journal = _begin(state)
    journal.unit(1)
    journal.close()
    again = Journal(state, NAME)
    again.resume()
    again.unit(2)
    again.close()
    assert _units(state) == {1, 2}
    again.close(remove=True)
    assert _units(state) is None


@pytest.mark.parametrize(
    "head",
    [
        b"", b"\n", b"\0\0\0\0", b"{}", b"not json", b"null", b"[" * 9999,
        b'{"format":1,"digest":"%D","size":1,"partial":"%P","inode":1,"boot":""}',
        b'{"format":3,"digest":"%D","size":1,"partial":"%P","inode":1,"boot":""}',
        b'{"format":2,"digest":"zz","size":1,"partial":"%P","inode":1,"boot":""}',
        b'{"format":2,"digest":"%D","size":"1","partial":"%P","inode":1,"boot":""}',
        b'{"format":2,"digest":"%D","size":1,"partial":"../../x","inode":1,"boot":""}',
        b'{"format":2,"digest":"%D","size":1,"partial":"a\\u0000b","inode":1,"boot":""}',
        b'{"format":2,"digest":"%D","size":1,"partial":"%D","inode":1,"boot":""}',
    ],
)  # fmt: skip
def test_another_format_or_garbage_is_no_journal(state: SafeDir, head: bytes) -> None:
    """FAULTS 37: a zero-length resume file, and worse."""
    text = head.replace(b"%D", DIGEST.hex.encode()).replace(b"%P", PARTIAL.encode())
    (state.path / NAME).write_bytes(text + b"\nu 1.\n")
    assert _units(state) is None


def test_lines_that_mean_nothing_are_skipped(state: SafeDir) -> None:
    _begin(state).close()
    with (state.path / NAME).open("ab") as file:
        file.write(b"u 1.\nu\nu.\nu -1.\nu x.\nu 2 3.\nx 5.\nu 6\n\0\0\0\nu " + b"9" * 5000 + b".\nr \xff\xfe\nu 8.")
    assert _units(state) == set()  # `r` names another boot: what was not synced is forgotten
    _begin(state).close()
    with (state.path / NAME).open("ab") as file:
        file.write(b"u 1.\nu\nu.\nu -1.\nu x.\nu 2 3.\nx 5.\nu 6\n\0\0\0\nu " + b"9" * 5000 + b".\nu 4.\nu 8.")
    assert _units(state) == {1, 4}


@pytest.mark.parametrize("written", range(1, 7))
def test_a_line_that_a_full_disk_cut_short_is_an_error_and_never_another_unit(
    state: SafeDir, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    journal = _begin(state)
    real = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda fd, line: real(fd, line[:written]))
        with pytest.raises(NoSpace):
            journal.unit(123)
    journal.close()
    again = Journal(state, NAME)
    again.resume()
    again.close()
    assert _units(state) in ([set(), {123}] if written == 6 else [set()])
