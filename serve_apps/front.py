"""What stands in front of Serve's own machinery in a replica that phones reach directly.

A replica with direct ingress runs an HTTP server of its own. Serve passes each of its requests through tasks, queues
and records that cost several times what a check-in does. `middlewares` is named in Serve's hook for who wants to see
requests first, `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`: check-ins and uploads are answered there, by the app, which
bounds them itself. Everything else goes on to Serve, as do all requests in any other process.
"""

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from flsys_ray.http.short_way import ShortWay

_ways: list[ShortWay] = []


def open_way(way: ShortWay) -> None:
    """Have the requests that `way` takes answered before Serve sees them, in this process."""
    _ways[:] = [way]


def middlewares() -> list[Middleware]:
    """Return what Serve puts around its HTTP server."""
    return [Middleware(Front)]


class Front:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        for way in _ways:
            if way.takes(scope):
                await way(scope, receive, send)
                return
        await self._app(scope, receive, send)
