"""Rank 1 sends some megabytes to rank 0; both tell their queueing discipline's settings and counters afterwards."""

import json
import os
import socket
import subprocess
import time

TOTAL = 3_000_000


def connect() -> socket.socket:
    for _ in range(200):
        try:
            return socket.create_connection((os.environ["MASTER_ADDR"], 5001))
        except ConnectionRefusedError:
            time.sleep(0.02)
    raise SystemExit("rank 0 never listened")


if os.environ["RANK"] == "0":
    listener = socket.create_server(("", 5001))
    peer, address = listener.accept()
    started = time.perf_counter()
    received = 0
    while received < TOTAL:
        received += len(peer.recv(1 << 16))
    seconds = time.perf_counter() - started
    peer.sendall(b"e")
    sender = json.loads(peer.makefile().readline())
    networks = [os.readlink("/proc/self/ns/net"), sender.pop("network")]
    interfaces = [name for _, name in socket.if_nameindex()]
    print(
        json.dumps(
            {
                "seconds": seconds,
                "sender": sender,
                "address": address[0],
                "interfaces": interfaces,
                "networks": networks,
            }
        )
    )
else:
    peer = connect()
    peer.sendall(bytes(TOTAL))
    assert peer.recv(1) == b"e"
    command = ["tc", "-s", "-j", "qdisc", "show", "dev", os.environ["GLOO_SOCKET_IFNAME"]]
    told = json.loads(subprocess.check_output(command))[0] | {"network": os.readlink("/proc/self/ns/net")}
    peer.sendall(json.dumps(told).encode() + b"\n")
