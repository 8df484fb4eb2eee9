"""The hook in other versions of huggingface_hub: the tests of tests/plugin/test_hook.py, with their Pythons."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conformance.environments import ENVIRONMENTS
from tests.plugin.test_hook import (  # noqa: F401 - collected here again, with the fixture of this module
    agent,
    hub,
    test_a_body_that_ends_early_is_gone_on_with,
    test_a_cache_folder_of_the_call_is_the_one_that_is_filled,
    test_a_download_finds_its_files_placed,
    test_a_factory_of_the_users_own_wins,
    test_a_folder_outside_the_cache_is_filled_through_the_socket,
    test_a_moved_branch_brings_the_new_file,
    test_a_warm_cache_asks_the_agent_for_nothing_but_the_commit,
    test_an_absent_agent_is_not_missed,
    test_an_agent_of_no_use_costs_a_line,
    test_it_can_be_switched_off,
    test_missing_files_and_repos_are_what_the_hub_says,
    test_offline_is_offline_where_it_is_not,
    test_offline_the_lab_gives_a_model_where_that_is_allowed,
    test_one_that_dies_in_the_middle_is_replaced_by_the_hub,
    test_paths_and_pages_come_by_the_agent,
    test_progress_is_shown_as_the_library_shows_it,
    test_the_callers_token_reaches_the_agent,
    test_two_processes_want_the_same,
    test_what_the_agent_lets_pass_comes_from_the_hub,
    test_who_only_looks_starts_nothing,
    test_wrong_bytes_stop_the_load,
    test_xet_is_off_while_the_agent_answers_and_back_when_it_is_not,
    user,
)

OTHERS = ["hub030", "hub036", "hub133"]


@pytest.fixture(params=OTHERS if os.environ.get("CONFORMANCE") == "all" else [])
def python(request: pytest.FixtureRequest) -> Path:
    """Instead of the one that runs the tests."""
    environment = ENVIRONMENTS[request.param]
    if not environment.is_ready:
        pytest.skip(f"the environment {request.param} is not made: `make conformance`")
    return environment.python
