"""Where local ranks run: on the machine's own loopback, or each behind a shaped network link of its own.

A shaped testbed gives every rank a network namespace, joined by a bridge in one more. Each link is a veth pair
with a token bucket (``tc tbf``) on both ends: the rank's end shapes what it sends, the bridge's end what it receives.
All namespaces are unnamed and held by processes only, so that the kernel removes namespaces, links and bridge when
these die, however they die. Nothing is created in the host's own namespace.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from halocast.errors import MisuseError, RunError, nearest

INTERFACE = "halo0"  # a rank's end of its link
BRIDGE = "bridge0"
MAX_RANKS = 254  # hosts of 10.77.0.0/24

_UNITS = {"kbit": 1_000, "mbit": 1_000_000, "gbit": 1_000_000_000}
_TOOLS = {"ip": "iproute2", "tc": "iproute2", "nsenter": "util-linux", "unshare": "util-linux"}
_COMMAND_TIMEOUT_S = 30
# The bucket must hold what the rate earns while the qdisc's timer is late, and one segmented 64 KB packet. Every byte
# in it passes unshaped after a pause, so it is no larger than that: 1 ms covers the high-resolution timers' lateness.
_BURST_S = 1e-3
_MIN_BURST_BYTES = 65_536
_QUEUE_MS = 50  # how long a packet may wait before the queue drops it


@dataclass(frozen=True, slots=True)
class HostSpec:
    """The hosts that local ranks stand for; `rate` is each link's bits per second either way, None unshaped."""

    rate: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``local`` or ``shaped:RATE``, RATE a number and a unit as in ``200mbit``, ``1gbit``, ``2.5gbit``.

        Raises:
            MisuseError: anything else; names the nearest match.
        """
        kind, separator, rate = text.strip().lower().partition(":")
        if kind == "local" and not separator:
            return cls()
        if kind != "shaped":
            raise MisuseError(
                f"unknown hosts '{text}'{nearest(kind, ('local', 'shaped'))} (local, or shaped:RATE as in shaped:1gbit)"
            )
        return cls(_parse_rate(rate, text))

    @property
    def shaped(self) -> bool:
        return self.rate is not None

    def __str__(self) -> str:
        if self.rate is None:
            return "local"
        unit = next(unit for unit in ("gbit", "mbit", "kbit") if self.rate >= _UNITS[unit] or unit == "kbit")
        return f"shaped:{self.rate / _UNITS[unit]:g}{unit}"


def _parse_rate(rate: str, text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", rate)
    if match is None:
        raise MisuseError(
            f"hosts '{text}' has no rate that can be read; write a number and kbit, mbit or gbit, as in shaped:200mbit"
        )
    number, unit = match.groups()
    if unit not in _UNITS:
        raise MisuseError(f"unknown rate unit '{unit}' in hosts '{text}'{nearest(unit, _UNITS)}")
    bits = round(float(number) * _UNITS[unit])
    if bits < _UNITS["kbit"]:
        raise MisuseError(f"hosts '{text}' asks for less than 1kbit, over which nothing would arrive")
    return bits


def testbed_available() -> str | None:
    """Return None where shaped hosts work, or the reason why not and what to do, in one line."""
    if sys.platform != "linux":
        return "shaped hosts need Linux network namespaces; use --hosts local here"
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        packages = sorted({_TOOLS[tool] for tool in missing})
        return f"shaped hosts need {', '.join(missing)}; install {' and '.join(packages)}, or use --hosts local"
    if os.geteuid() != 0:
        return "shaped hosts need root to create network namespaces; run as root, or use --hosts local"
    return _try_kernel()


def _try_kernel() -> str | None:
    """Try every kind of object once, in a namespace that ends with the command."""
    trials = (
        ("ip", f"link add {BRIDGE} type bridge\nlink add {INTERFACE} type veth peer name port0\n"),
        ("tc", _shape("lo", _UNITS["gbit"])),
    )
    for tool, batch in trials:
        refusal = _run(["unshare", "--net", "--", tool, "-batch", "-"], batch)
        if refusal is not None:
            remedy = "grant CAP_SYS_ADMIN and CAP_NET_ADMIN, or use --hosts local"
            return f"shaped hosts: the kernel refuses ({refusal}); {remedy}"
    return None


def require_testbed(ranks: int) -> None:
    """Raise MisuseError where `ranks` ranks cannot have shaped hosts."""
    if ranks > MAX_RANKS:
        raise MisuseError(f"{ranks} ranks are too many for shaped hosts, at most {MAX_RANKS}; use fewer, or --hosts local")
    reason = testbed_available()
    if reason is not None:
        raise MisuseError(reason)


def address(rank: int) -> str:
    """Return the address of `rank` on the testbed's network."""
    return f"10.77.0.{rank + 1}"


def link_ranks(holder: int, ranks: Sequence[int], rate: int) -> None:
    """Join the network namespaces of the processes `ranks` by a bridge in that of the process `holder`.

    Args:
        holder: process id; its namespace gets the bridge and the bridge's ports.
        ranks: process ids by rank; each gets `INTERFACE` with the address of its rank.
        rate: bits per second of each link, in either direction.

    Raises:
        RunError: the kernel refused.
    """
    ports = [f"port{rank}" for rank in range(len(ranks))]
    bridge = [f"link add {BRIDGE} type bridge stp_state 0 mcast_snooping 0", f"link set {BRIDGE} up"]
    for port, process in zip(ports, ranks, strict=True):
        bridge += [
            f"link add {port} type veth peer name {INTERFACE} netns {process}",
            f"link set {port} master {BRIDGE} up",
        ]
    _configure(holder, "ip", "\n".join(bridge))
    _configure(holder, "tc", "".join(_shape(port, rate) for port in ports))
    for rank, process in enumerate(ranks):
        _configure(process, "ip", f"link set lo up\naddr add {address(rank)}/24 dev {INTERFACE}\nlink set {INTERFACE} up")
        _configure(process, "tc", _shape(INTERFACE, rate))


def burst_bytes(rate: int) -> int:
    """Return the token bucket's size for a link of `rate` bits per second."""
    return max(_MIN_BURST_BYTES, round(rate / 8 * _BURST_S))


def _shape(interface: str, rate: int) -> str:
    return f"qdisc add dev {interface} root tbf rate {rate}bit burst {burst_bytes(rate)} latency {_QUEUE_MS}ms\n"


def _configure(process: int, tool: str, batch: str) -> None:
    refusal = _run(["nsenter", f"--net=/proc/{process}/ns/net", "--", tool, "-batch", "-"], batch)
    if refusal is not None:
        raise RunError(f"cannot set up the shaped links: {refusal}")


def _run(command: list[str], batch: str) -> str | None:
    """Feed `batch` to `command`; return None, or the first line of its complaint."""
    try:
        done = subprocess.run(
            command,
            input=batch.rstrip("\n") + "\n",
            capture_output=True,
            text=True,
            timeout=_COMMAND_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"{' '.join(command)} did not end within {_COMMAND_TIMEOUT_S} s"
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return lines[0] if lines else f"{' '.join(command)} ended with {done.returncode}"
