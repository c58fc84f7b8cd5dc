"""Ranks behind shaped links: real namespaces, real queues, and nothing left of them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from halocast.runtime import testbed
from halocast.runtime.launch import RankFailure

from .conftest import CHILDREN, ENVIRONMENT, alive, children, eventually, networks, told

Start = Callable[..., list[str]]
pytestmark = [pytest.mark.timeout(30), pytest.mark.usefixtures("shaped")]


def test_each_rank_has_a_shaped_link_of_its_own(start: Start) -> None:
    result = json.loads(start("traffic", hosts="shaped:100mbit")[-1])
    assert result["address"] == "10.77.0.2"
    assert set(result["interfaces"]) >= {"lo", testbed.INTERFACE}
    assert not [name for name in result["interfaces"] if name.startswith(("eth", "port", testbed.BRIDGE))]
    queue = result["sender"]
    assert queue["kind"] == "tbf"
    assert queue["options"]["rate"] == 100_000_000 // 8  # tc prints bytes per second
    assert queue["bytes"] >= 3_000_000
    assert queue["overlimits"] > 0
    assert len(set(result["networks"]) - networks([os.getpid()])) == 2
    assert not networks() & set(result["networks"]), "a namespace is left"


def test_a_slower_link_is_slower(start: Start) -> None:
    slow, fast = (json.loads(start("traffic", hosts=f"shaped:{rate}")[-1])["seconds"] for rate in ("20mbit", "1gbit"))
    assert slow > 3 * fast
    # What the token buckets hold passes at once; the rest takes its time on the wire.
    assert slow >= 0.9 * 8 * (3_000_000 - 2 * testbed.burst_bytes(20_000_000)) / 20e6


def test_both_ends_of_each_link_are_shaped(start: Start, tmp_path: Path) -> None:
    """Seen from outside while the ranks wait: the bridge's ports carry the same token bucket as the ranks' ends."""
    used, seen = set[str](), list[dict[str, Any]]()

    def look() -> None:
        ranks = told(tmp_path, 2)
        used.update(networks(children(os.getpid())) - networks([os.getpid()]))
        (bridge,) = used - {rank["network"] for rank in ranks}
        (holder,) = [process for process in children(os.getpid()) if networks([process]) == {bridge}]
        for process in (holder, ranks[0]["rank"], ranks[1]["rank"]):
            command = ["nsenter", f"--net=/proc/{process}/ns/net", "tc", "-j", "qdisc", "show"]
            seen.extend(json.loads(subprocess.check_output(command)))
        os.kill(ranks[1]["rank"], signal.SIGKILL)

    looker = threading.Thread(target=look)
    looker.start()
    with pytest.raises(RankFailure, match=r"^rank 1 was killed by signal 9 \(SIGKILL\)$"):
        start("wait", str(tmp_path), hosts="shaped:50mbit")
    looker.join()
    shaped = {(queue["dev"], queue["options"]["rate"]) for queue in seen if queue["kind"] == "tbf"}
    assert shaped == {("port0", 6_250_000), ("port1", 6_250_000), (testbed.INTERFACE, 6_250_000)}
    assert sum(queue["kind"] == "tbf" for queue in seen) == 4
    assert len(used) == 3
    eventually(lambda: not networks() & used, "a namespace is left")


def test_gloo_reduces_over_shaped_links(start: Start) -> None:
    result = json.loads(start("all_reduce", ranks=3, hosts="shaped:200mbit")[-1])
    assert result["interface"] == testbed.INTERFACE
    # A ring all-reduce of three ranks sends 2 (K − 1) / K of the vector, through the link and nowhere else.
    assert result["sent"] >= 4 / 3 * result["vector_bytes"]


@pytest.mark.parametrize("moment", [0.0, 0.05, 0.1, 0.15, 0.3, None])
def test_nothing_outlives_a_killed_launcher(tmp_path: Path, moment: float | None) -> None:
    """Killed while it sets up the links, or (None) when the ranks run."""
    ours = networks([os.getpid()])
    command = [sys.executable, str(CHILDREN / "launch_waiting.py"), str(tmp_path), "shaped:1gbit"]
    launcher = subprocess.Popen(command, env=os.environ | ENVIRONMENT)
    grandchildren = []
    if moment is None:
        grandchildren = [rank["grandchild"] for rank in told(tmp_path, 2)]
    else:
        eventually(lambda: bool(networks(children(launcher.pid)) - ours), "no namespace came", 10)
        time.sleep(moment)
    launcher.send_signal(signal.SIGSTOP)  # so that it starts nothing while its processes are counted
    processes = children(launcher.pid) + grandchildren
    used = networks(processes) - ours
    if moment is None:
        assert len(used) == 3  # two ranks' and the bridge's
    launcher.kill()
    launcher.wait(10)
    eventually(lambda: not alive(processes), f"left: {processes}")
    eventually(lambda: not networks() & used, "a namespace is left")
    links = subprocess.check_output(["ip", "-o", "link"], text=True)
    assert not re.search(rf"\b({testbed.INTERFACE}|{testbed.BRIDGE}|port\d+)\b", links)
