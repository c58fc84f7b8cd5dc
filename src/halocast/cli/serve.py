"""``halocast serve``: the capacity page with sliders that answer from the engine itself, on this machine."""

from __future__ import annotations

import ipaddress
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from halocast.cli.console import Console
from halocast.errors import MisuseError

if TYPE_CHECKING:
    from halocast.cli.live import Desk

LOCAL = "127.0.0.1"
DEFAULT_PORT = 8600
Flag = Annotated[bool, Parameter(negative=())]


def serve(folder: Path, *, costs: Path | None = None, host: str = LOCAL, port: int = DEFAULT_PORT, json: Flag = False) -> int:
    """Show a what-if as a page whose sliders (ranks, link, bits, device, price) are answered at once; nothing is written.

    Parameters
    ----------
    folder:
        A finished folder of ``halocast whatif``.
    costs:
        The cost file that it was made from; by default where it was then.
    host:
        Address to listen on; any other than this machine's own lets others in, without a password.
    port:
        Port to listen on; 0 picks a free one.
    json:
        One JSON document on standard output, with the address.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ModuleNotFoundError as error:
        raise MisuseError(f"halocast serve needs {error.name}: pip install 'halocast[serve]'") from error
    from halocast.cli.live import Desk
    from halocast.cli.web import make_app
    from halocast.reports.capacity import capacity_document
    from halocast.reports.live import live_page, live_scripts
    from halocast.simulator.costs import Costs
    from halocast.simulator.whatif import read_whatif

    console = Console(as_json=json)
    whatif = read_whatif(folder)
    if not whatif.manifest.finished:
        raise MisuseError(f"{folder} is unfinished: finish it with halocast whatif --resume, then serve it")
    listening = bind(host, port)
    with listening:
        path = Path(whatif.manifest.costs.path) if costs is None else costs
        if not path.exists():
            raise MisuseError(f"{path}, which {folder} was made from, is not there: say where it is with --costs")
        desk = Desk(whatif, Costs.load(path), path)
        document = capacity_document(whatif, str(folder))
        app = make_app(desk, live_page(document, live_of(desk)), live_scripts(document), allowed_hosts(host))
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{listening.getsockname()[1]}/"
        if not is_local(host):
            console.note(f"warning: {host} can be reached from other machines, and there is no password")
        console.document({"url": url, "folder": str(folder), "files": {}})
        console.result(f"{whatif.manifest.graph.name}: {len(whatif.table):,} scenarios at {url}")
        console.note("Ctrl-C ends it")
        sys.stdout.flush()  # whoever reads the address from a pipe waits for it
        with suppress(KeyboardInterrupt):
            uvicorn.Server(uvicorn.Config(app, log_level="warning", server_header=False)).run(sockets=[listening])
    return 0


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises MisuseError where it cannot."""
    if not 0 <= port <= 65535:
        raise MisuseError(f"--port {port} is out of range; allowed: 0 (any free one) to 65535")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except OSError as error:
        raise MisuseError(f"cannot listen on {host}:{port}: {error.strerror}; --port 0 picks a free port") from error
    return listening


def is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def allowed_hosts(host: str) -> list[str]:
    """Names in a request's Host that are ours: a page of another site that points its own name here is not answered."""
    import psutil

    found = {LOCAL, "localhost", "::1", "[::1]", host, f"[{host}]"}
    if host in ("0.0.0.0", "::"):
        addresses = [each.address for own in psutil.net_if_addrs().values() for each in own]
        found |= {socket.gethostname(), socket.getfqdn()}
        found |= {each for each in addresses if each.count(".") == 3}
    return sorted(found)


def live_of(desk: Desk) -> dict[str, object]:
    """What the page's controls start from."""
    from halocast.cli.live import LEAST_RATE, MOST_EPOCHS, MOST_PRICE, MOST_RATE
    from halocast.reports.capacity_view import PARTS

    start = desk.point_of(desk.start)
    rate = desk.evaluator.evaluate(start)["network_rate"] * 8e-9
    return {
        "controls": [
            {
                "name": each.name,
                "label": each.label,
                "unit": each.unit,
                "values": list(each.values),
                "texts": each.texts,
                "start": each.start,
                "slider": each.is_slider,
            }
            for each in desk.controls
        ],
        "link": desk.link,
        "rate": {"least": LEAST_RATE, "most": MOST_RATE, "start": min(max(rate, LEAST_RATE), MOST_RATE)},
        "price": {"most": MOST_PRICE, "start": start.price_per_hour, "currency": desk.evaluator.grid.prices.currency}
        if desk.is_priced
        else None,
        "prices": {
            device: price for device in desk.evaluator.grid.axes["device"] if (price := desk.price_of(device)) is not None
        },
        "epochs": {"most": MOST_EPOCHS, "start": desk.start.epochs},
        "parts": list(PARTS.values()),
    }
