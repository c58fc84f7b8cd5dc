"""Host specifications, and what is said where shaped hosts cannot be had."""

from __future__ import annotations

import os
import shutil
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halocast.errors import MisuseError
from halocast.runtime import testbed
from halocast.runtime.testbed import HostSpec


@pytest.mark.parametrize(
    ("text", "rate", "written"),
    [
        ("local", None, "local"),
        (" Local ", None, "local"),
        ("shaped:200mbit", 200_000_000, "shaped:200mbit"),
        ("shaped:1gbit", 1_000_000_000, "shaped:1gbit"),
        ("shaped:2.5Gbit", 2_500_000_000, "shaped:2.5gbit"),
        ("shaped:1500 mbit", 1_500_000_000, "shaped:1.5gbit"),
        ("shaped:512kbit", 512_000, "shaped:512kbit"),
    ],
)
def test_what_is_understood(text: str, rate: int | None, written: str) -> None:
    hosts = HostSpec.parse(text)
    assert (hosts.rate, hosts.shaped, str(hosts)) == (rate, rate is not None, written)


@given(st.integers(1_000, 400_000_000_000))
def test_a_written_specification_reads_back_as_nearly_the_same(rate: int) -> None:
    again = HostSpec.parse(str(HostSpec(rate))).rate
    assert again == pytest.approx(rate, rel=1e-5)  # six significant digits


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shaped:1gbps", "unknown rate unit 'gbps' in hosts 'shaped:1gbps'; did you mean 'gbit'?"),
        ("shaped:200", "unknown rate unit '' in hosts 'shaped:200'; allowed: kbit, mbit, gbit"),
        (
            "shapd:1gbit",
            "unknown hosts 'shapd:1gbit'; did you mean 'shaped'? (local, or shaped:RATE as in shaped:1gbit)",
        ),
        (
            "local:1gbit",
            "unknown hosts 'local:1gbit'; did you mean 'local'? (local, or shaped:RATE as in shaped:1gbit)",
        ),
        ("loopback:1", None),
        ("", None),
        ("shaped", None),
        ("shaped:", None),
        ("shaped:fast", None),
        ("shaped:-1gbit", None),
        ("shaped:0mbit", "hosts 'shaped:0mbit' asks for less than 1kbit, over which nothing would arrive"),
    ],
)
def test_what_is_refused(text: str, message: str | None) -> None:
    with pytest.raises(MisuseError) as caught:
        HostSpec.parse(text)
    assert "\n" not in str(caught.value)
    assert repr(text) in str(caught.value)
    assert message is None or str(caught.value) == message


@pytest.fixture
def able(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has all it takes."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(shutil, "which", lambda tool: tool)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(testbed, "_run", lambda command, batch: None)


@pytest.mark.usefixtures("able")
def test_a_machine_that_has_all_it_takes() -> None:
    assert testbed.testbed_available() is None
    testbed.require_testbed(254)


@pytest.mark.usefixtures("able")
def test_each_thing_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(testbed, "_run", lambda command, batch: "Operation not permitted" if "tc" in command else None)
        assert testbed.testbed_available() == (
            "shaped hosts: the kernel refuses (Operation not permitted); "
            "grant CAP_SYS_ADMIN and CAP_NET_ADMIN, or use --hosts local"
        )
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 1000)
        assert testbed.testbed_available() == (
            "shaped hosts need root to create network namespaces; run as root, or use --hosts local"
        )
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "which", lambda tool: None if tool in ("tc", "nsenter") else tool)
        assert testbed.testbed_available() == (
            "shaped hosts need tc, nsenter; install iproute2 and util-linux, or use --hosts local"
        )
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "darwin")
        with pytest.raises(MisuseError, match=r"^shaped hosts need Linux network namespaces; use --hosts local here$"):
            testbed.require_testbed(2)


def test_more_ranks_than_addresses_are_refused() -> None:
    with pytest.raises(MisuseError, match=r"^255 ranks are too many for shaped hosts, at most 254"):
        testbed.require_testbed(255)


@pytest.mark.parametrize(
    ("rate", "expected"), [(1_000_000, 65_536), (200_000_000, 65_536), (1_000_000_000, 125_000), (10**10, 1_250_000)]
)
def test_the_bucket_holds_a_millisecond_and_one_large_packet(rate: int, expected: int) -> None:
    assert testbed.burst_bytes(rate) == expected
