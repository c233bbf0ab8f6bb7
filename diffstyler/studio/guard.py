"""What every request to the page passes: who asks, and what a file that somebody sent may do in a browser."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: of whatever is served as a file: it runs nothing, whatever it is
HARMLESS = [(b"content-security-policy", b"sandbox; default-src 'none'"), (b"x-content-type-options", b"nosniff")]
REFUSED = b"This studio is for the machine that it runs on; see --host and --auth."


def is_loopback(host: str) -> bool:
    """Whether this machine alone reaches it."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """An ASGI middleware.

    Args:
        app: what it stands before.
        alone: only pages of this machine's own names may ask: a site elsewhere whose name leads here (DNS rebinding)
            gets nothing, nor one that sends forms here.
    """

    def __init__(self, app: ASGIApp, alone: bool) -> None:
        self.app, self.alone = app, alone

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.alone and not _asks_from_here(scope):
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": REFUSED})
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HARMLESS]
            await send(message)

        is_file = scope["type"] == "http" and "/file=" in scope["path"]
        await self.app(scope, receive, sending if is_file else send)


def _asks_from_here(scope: Scope) -> bool:
    told = {name: value.decode("latin-1") for name, value in scope["headers"] if name in (b"host", b"origin")}
    hosts = [urlsplit(value if "//" in value else f"//{value}").hostname or "" for value in told.values()]
    return all(map(is_loopback, hosts))
