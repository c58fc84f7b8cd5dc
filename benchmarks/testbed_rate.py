"""What shaped links deliver: TCP throughput, incast and round trips between ranks, beside the rate asked.

    python benchmarks/testbed_rate.py [--rates 200mbit 1gbit] [--seconds 3] [--out FILE.json]

Needs root on Linux. Rank 0 prints one line of JSON for each measurement. `pair` is one stream from rank 1 to rank 0,
`both` the same with one back at the same time (per direction), `incast` ranks 1 and 2 to rank 0 together (their sum).
A rate counts Ethernet frames: TCP payload is 1448 of 1514 bytes, 95.6 %, at best.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import tempfile
import threading
import time
from pathlib import Path

PORT = 5_001
CHUNK = bytes(1 << 18)
WARM_UP_S = 0.5  # TCP slow start, and the full token bucket
ROUND_TRIPS = 50
RANKS = 3
PAYLOAD = {"pair": [1], "incast": [1, 2]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", nargs="+", default=["200mbit", "1gbit"])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    results = [measure(rate, arguments.seconds) for rate in arguments.rates]
    for result in results:
        print(json.dumps(result))
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def measure(rate: str, seconds: float) -> dict[str, object]:
    """Run three ranks behind links of `rate` and return what rank 0 measured, with ratios to the rate."""
    from halocast.runtime.launch import launch_local
    from halocast.runtime.testbed import HostSpec

    hosts = HostSpec.parse(f"shaped:{rate}")
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        launch_local(
            Path(__file__).stem,
            [str(seconds)],
            ranks=RANKS,
            hosts=hosts,
            environment={"PYTHONPATH": str(Path(__file__).parent)},
            log_folder=Path(folder),
            timeout_s=30 * seconds + 60,
            on_line=lines.append,
        )
    measured = json.loads(lines[-1])
    assert hosts.rate is not None
    ratios = {f"{name}_ratio": round(measured[f"{name}_bits"] / hosts.rate, 3) for name in ("pair", "both", "incast")}
    return {"rate": rate, **ratios, **measured}


def run_rank(seconds: float) -> None:
    """One rank's side: rank 0 receives and measures, the others send when their connection is accepted."""
    rank = int(os.environ["RANK"])
    if rank == 0:
        receive_all(seconds)
    else:
        send_all(rank)


def receive_all(seconds: float) -> None:
    listener = socket.create_server(("", PORT))
    peers = dict(accept(listener) for _ in range(RANKS - 1))
    pair = received_bits([peers[1]], seconds)
    both = both_ways_bits(peers[1], seconds)
    incast = received_bits([peers[1], peers[2]], seconds)
    round_trip_us = statistics.median(round_trip(peers[1]) for _ in range(ROUND_TRIPS)) * 1e6
    for peer in peers.values():
        peer.sendall(b"q")
    print(
        json.dumps(
            {
                "pair_bits": round(pair),
                "both_bits": round(both),
                "incast_bits": round(incast),
                "round_trip_us": round(round_trip_us),
            }
        )
    )


def accept(listener: socket.socket) -> tuple[int, socket.socket]:
    peer, _ = listener.accept()
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return peer.recv(1)[0], peer


def received_bits(peers: list[socket.socket], seconds: float) -> float:
    """Return the payload bits per second that arrive from `peers` together while all of them send."""
    totals = [0] * len(peers)
    start = time.monotonic() + WARM_UP_S

    def receive(index: int) -> None:
        peers[index].sendall(b"s")
        totals[index] = drain(peers[index], start, start + seconds)

    threads = [threading.Thread(target=receive, args=(index,)) for index in range(len(peers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return 8 * sum(totals) / seconds


def both_ways_bits(peer: socket.socket, seconds: float) -> float:
    """The same for one peer that at the same time is being sent to, over a second connection it opens."""
    peer.sendall(b"b")
    listener = socket.create_server(("", PORT + 1))
    peer.sendall(b"c")
    back, _ = listener.accept()
    stop = threading.Event()
    thread = threading.Thread(target=pour, args=(back, stop.is_set))
    thread.start()
    bits = received_bits([peer], seconds)
    stop.set()
    thread.join()
    back.close()
    return bits


def drain(peer: socket.socket, start: float, end: float) -> int:
    """Return the bytes received between two monotonic times; then stop the sender and read what is still under way."""
    buffer, counted = bytearray(1 << 18), 0
    while (now := time.monotonic()) < end:
        received = peer.recv_into(buffer)
        counted += received if now >= start else 0
    peer.sendall(b"e")
    while not buffer[: peer.recv_into(buffer)].endswith(b"\x01"):
        pass
    return counted


def round_trip(peer: socket.socket) -> float:
    start = time.perf_counter()
    peer.sendall(b"p")
    peer.recv(1)
    return time.perf_counter() - start


def pour(peer: socket.socket, done: object) -> None:
    """Send zeros until `done()`."""
    assert callable(done)
    while not done():
        peer.sendall(CHUNK)


def send_all(rank: int) -> None:
    """Obey rank 0: s(end until e), b(oth ways, c when it listens), p(ing), q(uit)."""
    peer = connect(PORT)
    peer.sendall(bytes([rank]))
    while (command := peer.recv(1)) not in (b"q", b""):
        if command == b"s":
            pour(peer, lambda: readable(peer))
            peer.recv(1)
            peer.sendall(b"\x01")
        elif command == b"b":
            peer.recv(1)
            swallow(connect(PORT + 1))
        elif command == b"p":
            peer.sendall(b"p")


def connect(port: int) -> socket.socket:
    deadline = time.monotonic() + 10
    while True:
        try:
            peer = socket.create_connection((os.environ["MASTER_ADDR"], port))
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return peer


def readable(peer: socket.socket) -> bool:
    import select

    return bool(select.select([peer], [], [], 0)[0])


def swallow(peer: socket.socket) -> None:
    """Receive and forget, in the background, until the other side closes."""
    buffer = bytearray(1 << 18)

    def receive() -> None:
        while peer.recv_into(buffer):
            pass

    threading.Thread(target=receive, daemon=True).start()


if __name__ == "__main__":
    if "RANK" in os.environ:
        import sys

        run_rank(float(sys.argv[1]))
    else:
        main()
