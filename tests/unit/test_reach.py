"""FAULTS 52: where a redirect may lead."""

from __future__ import annotations

import pytest

from edgecdn.sources.reach import Reach, may_lead, may_redirect, reach_of
from edgecdn.token_owner import token_owner

PUBLIC, PRIVATE, LOOPBACK = Reach.PUBLIC, Reach.PRIVATE, Reach.LOOPBACK
LINK_LOCAL, RESERVED = Reach.LINK_LOCAL, Reach.RESERVED


@pytest.mark.parametrize(
    ("address", "reach"),
    [
        ("18.164.174.23", PUBLIC), ("2606:4700::6810:1", PUBLIC),
        ("127.0.0.1", LOOPBACK), ("127.255.1.2", LOOPBACK), ("::1", LOOPBACK),
        ("10.0.0.1", PRIVATE), ("172.16.0.1", PRIVATE), ("172.31.255.255", PRIVATE), ("192.168.1.1", PRIVATE),
        ("100.64.0.1", PRIVATE), ("192.0.2.1", PRIVATE), ("198.18.0.1", PRIVATE), ("fd00::1", PRIVATE),
        ("0.1.2.3", PRIVATE), ("2001::1", PRIVATE), ("2001:db8::1", PRIVATE),
        ("169.254.169.254", LINK_LOCAL), ("fe80::1", LINK_LOCAL), ("fe80::1%eth0", LINK_LOCAL),
        ("0.0.0.0", RESERVED), ("::", RESERVED), ("224.0.0.1", RESERVED), ("ff02::1", RESERVED),
        ("240.0.0.1", RESERVED), ("255.255.255.255", RESERVED),
        # IPv4 in disguise
        ("::ffff:127.0.0.1", LOOPBACK), ("::ffff:10.1.2.3", PRIVATE), ("::ffff:a9fe:a9fe", LINK_LOCAL),
        ("::ffff:8.8.8.8", PUBLIC), ("::ffff:0.0.0.0", RESERVED),
        ("2002:7f00:1::", LOOPBACK), ("2002:a9fe:a9fe::1", LINK_LOCAL), ("2002:c0a8:101::1", PRIVATE),
        ("64:ff9b::127.0.0.1", LOOPBACK), ("64:ff9b::a9fe:a9fe", LINK_LOCAL), ("64:ff9b::8.8.8.8", PUBLIC),
        ("64:ff9b::10.0.0.1", PRIVATE), ("64:ff9b:1::a9fe:a9fe", RESERVED), ("::127.0.0.1", RESERVED),
    ],
)  # fmt: skip
def test_reach(address: str, reach: Reach) -> None:
    assert reach_of(address) is reach


def test_site_local_is_not_public() -> None:
    assert reach_of("fec0::1") is not PUBLIC


@pytest.mark.parametrize("text", ["localhost", "", "2130706433", "0x7f.1", "127.1", "127.0.0.1.", "[::1]"])
def test_what_is_no_numeric_address_is_left_to_the_resolver(text: str) -> None:
    with pytest.raises(ValueError, match="address"):
        reach_of(text)


@pytest.mark.parametrize(
    ("hub", "target", "allowed"),
    [
        ([PUBLIC], [PUBLIC], True),
        ([PUBLIC], [LOOPBACK], False),
        ([PUBLIC], [PRIVATE], False),
        ([PUBLIC], [LINK_LOCAL], False),
        ([PUBLIC], [RESERVED], False),
        ([PUBLIC], [PUBLIC, LOOPBACK], False),  # a name with one good address does not carry a bad one
        ([PUBLIC], [], False),
        ([PRIVATE], [PRIVATE], True),
        ([PRIVATE], [PUBLIC], True),
        ([PRIVATE], [LOOPBACK], False),
        ([LOOPBACK], [LOOPBACK], True),
        ([LOOPBACK], [LINK_LOCAL], False),
        ([RESERVED], [RESERVED], False),
    ],
)
def test_redirects(hub: list[Reach], target: list[Reach], allowed: bool) -> None:
    assert may_redirect(hub, target) is allowed


@pytest.mark.parametrize(
    ("endpoints", "named", "owner"),
    [
        (["https://huggingface.co"], "", "https://huggingface.co"),
        (["https://hf-mirror.com", "https://huggingface.co"], "", "https://huggingface.co"),
        (["https://hf-mirror.com"], "", None),
        (["https://HF-Mirror.com", "https://hub.lab"], "", None),
        (["https://www.modelscope.cn"], "", None),
        (["https://hub.lab:8443", "https://hf-mirror.com"], "", "https://hub.lab:8443"),
        (["https://huggingface.co", "https://hub.lab"], "https://hub.lab", "https://hub.lab"),
        (["https://hf-mirror.com"], "https://hf-mirror.com", "https://hf-mirror.com"),
        (["https://huggingface.co"], "https://elsewhere", None),
        (["https://huggingface.co.evil.com", "https://hf.co"], "", "https://hf.co"),
        (["https://huggingface.co@evil.com", "https://hf.co"], "", "https://hf.co"),
    ],
)
def test_the_token_has_one_owner(endpoints: list[str], named: str, owner: str | None) -> None:
    """FAULTS 53: who it is for is decided before anything is sent."""
    assert token_owner(endpoints, named) == owner


@pytest.mark.parametrize(
    ("hub", "target", "may"),
    [
        ("https://huggingface.co", "https://cdn.example/x", True),
        ("https://huggingface.co", "http://cdn.example/x", False),
        ("http://mirror.example", "http://cdn.example/x", True),
        ("https://huggingface.co", "https://127.0.0.1/x", False),
        ("https://huggingface.co", "https://2130706433/x", False),
        ("https://huggingface.co", "https://LocalHost.:8377/x", False),
        ("https://huggingface.co", "https://[::ffff:10.0.0.1]/x", False),
        ("https://huggingface.co", "https://a@169.254.169.254/x", False),
        ("https://huggingface.co", "https://10.0.0.1\\@cdn.example/x", False),
        ("https://huggingface.co", "ftp://cdn.example/x", False),
        ("https://huggingface.co", "/x", False),
        ("http://10.0.0.5", "http://10.0.0.6/x", True),
        ("http://10.0.0.5", "http://127.0.0.1/x", False),
        ("http://127.0.0.1:1", "http://localhost:2/x", True),
    ],
)
def test_a_client_is_handed_on_to_no_private_address(hub: str, target: str, may: bool) -> None:
    assert may_lead(hub, target) is may
