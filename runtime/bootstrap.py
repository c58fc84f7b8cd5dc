"""Started as a script before a rank's own program: ties it to its launcher's life, then becomes the rank.

``python -I -S bootstrap.py LAUNCHER_PID GATE_FD COMMAND...``. GATE_FD is −1, or a socket to the launcher: then the rank
moves into a network namespace of its own, says so, and waits until its link is configured. Standard library only: it
runs before anything is importable, and its start-up is paid by every rank.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h
CLONE_NEWNET = 0x40000000  # linux/sched.h
READY = b"ready"
GO = b"go"


def die_with_launcher(launcher: int) -> None:
    """Have the kernel kill this process when `launcher` dies; survives `exec`. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != launcher:  # it died before the line above
        os._exit(1)


def enter_new_network() -> None:
    """Move this process into a new, unnamed network namespace, which ends with its last process."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"unshare(CLONE_NEWNET): {os.strerror(number)}")


def set_congestion_control(name: str) -> None:
    """Choose the namespace's TCP congestion control; kernels without it keep their own."""
    try:
        with open("/proc/sys/net/ipv4/tcp_congestion_control", "w", encoding="ascii") as setting:
            setting.write(name)
    except OSError:
        pass


def wait_at_gate(gate: socket.socket) -> None:
    """Enter a network of this rank's own and block until the launcher has linked it."""
    try:
        enter_new_network()
    except OSError as error:
        gate.sendall(str(error).encode())
        os._exit(1)
    set_congestion_control("cubic")  # the default nearly everywhere, and here whatever the host's own is
    gate.sendall(READY)
    if gate.recv(len(GO)) != GO:
        os._exit(1)
    gate.close()


def main(arguments: list[str]) -> None:
    launcher, gate, *command = arguments
    die_with_launcher(int(launcher))
    if int(gate) >= 0:
        wait_at_gate(socket.socket(fileno=int(gate)))
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
