"""The capacity page over HTTP, for this machine: one page, one question, nothing written."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from halocast.cli.live import Desk, Preparing
from halocast.errors import MisuseError

MOST_BYTES = 16_384
"""Of a question."""


class Headers:
    """Middleware that gives every answer, refusals too, the same headers."""

    def __init__(self, app: ASGIApp, headers: Mapping[str, str]) -> None:
        self.app, self.headers = app, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.headers)
            await send(message)

        await self.app(scope, receive, sending)


def make_app(desk: Desk, page: str, scripts: Sequence[str], hosts: Sequence[str]) -> Starlette:
    """The application: `page` at /, forecasts at /api/forecast, for requests to one of `hosts` only.

    `scripts`: those of the page that may run.
    """
    headers = {
        "Content-Security-Policy": content_policy(scripts),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-store",
    }

    async def index(request: Request) -> Response:
        return HTMLResponse(page)

    async def forecast(request: Request) -> Response:
        try:
            found = await run_in_threadpool(desk.answer, desk.read(await question(request, hosts)))
        except MisuseError as error:
            return JSONResponse({"error": " ".join(str(error).split())}, status_code=422)
        if isinstance(found, Preparing):
            return JSONResponse({"preparing": found.text}, status_code=202, headers={"Retry-After": "1"})
        return JSONResponse(found)

    @asynccontextmanager
    async def open_desk(_: Starlette) -> AsyncIterator[None]:
        desk.open()
        yield
        desk.close()

    return Starlette(
        routes=[Route("/", index), Route("/api/forecast", forecast, methods=["POST"])],
        middleware=[
            Middleware(Headers, headers=headers),
            Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False),
        ],
        exception_handlers={
            404: plain(404, "there is only / and /api/forecast"),
            405: plain(405, "only GET / and POST /api/forecast"),
            500: plain(500, "no answer: why is said where halocast serve runs", headers),  # made outside all middleware
        },
        lifespan=open_desk,
    )


def plain(
    status: int, text: str, headers: Mapping[str, str] | None = None
) -> Callable[[Request, Exception], Awaitable[Response]]:
    """One line for what is not there."""

    async def answer(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": text}, status_code=status, headers=headers)

    return answer


async def question(request: Request, hosts: Sequence[str]) -> object:
    """The JSON of a request from this page. Raises MisuseError for anything else."""
    origin = request.headers.get("origin")
    if origin is not None and host_of(origin) not in hosts:
        raise MisuseError("a question from another site is not answered")
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise MisuseError("the question must be JSON: Content-Type: application/json")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            raise MisuseError(f"the question is longer than {MOST_BYTES:,} bytes")
    try:
        return json.loads(body, parse_constant=lambda name: float("nan"))
    except (ValueError, RecursionError) as error:
        raise MisuseError(f"the question is not JSON: {error}") from error


def host_of(origin: str) -> str | None:
    """None where there is none, and for what is no address."""
    try:
        return urlsplit(origin).hostname
    except ValueError:
        return None


def content_policy(scripts: Sequence[str]) -> str:
    """What the page may do: run our own scripts, whatever others it may have come to hold, and ask this server."""
    digests = sorted({base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts})
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
