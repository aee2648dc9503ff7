"""A Prefect API server that lives exactly as long as the process that started it.

Run as `python -m tasks.prefect_server FD`: FD is a socket that listens already, so that no port can be taken
between choosing and binding it, and requests wait in its queue until the server is up. It answers programs of
this machine alone: whoever asks under another host's name, or from a page in a browser, is refused. Standard input is a
pipe from the owner. One line on it says that the request is sound and the server may touch the disk; its end,
which the kernel brings about however the owner dies, ends the server.
"""

import asyncio
import gc
import os
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

SECONDS_TO_STOP = 3
HOSTS = ["127.0.0.1"]


class RefusePages:
    """Refuse what a page in a browser sends: it names the page's origin, which programs do not."""

    def __init__(self, app: "ASGIApp") -> None:
        self.app = app

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Pass everything else on."""
        if not any(name.lower() == b"origin" for name, _ in scope.get("headers", ())):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "no web page may ask here"})
        else:
            headers = [(b"content-type", b"text/plain")]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": b"no web page may ask here"})


def main() -> None:
    """Import, wait for the owner's word, serve until the owner is gone."""
    gc.disable()  # a quarter of the time to import would go into collecting what stays anyway
    import uvicorn
    from filelock import FileLock
    from prefect.server.api.server import create_app
    from prefect.settings import get_current_settings
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    # A web page may send requests to any address of this machine, and reads the answers where it has bound its own
    # name to 127.0.0.1.
    app = create_app()
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)
    app.add_middleware(RefusePages)
    gc.freeze()
    gc.enable()
    if not sys.stdin.readline():
        return
    home = Path(get_current_settings().home)
    home.mkdir(parents=True, exist_ok=True)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on"))

    def follow_owner() -> None:
        sys.stdin.read()
        server.should_exit = True
        threading.Timer(SECONDS_TO_STOP, os._exit, (0,)).start()

    threading.Thread(target=follow_owner, daemon=True).start()

    async def serve() -> None:
        # Two servers that create the same database at once would fail: one after the other until they are up.
        lock = FileLock(home / "fourfold-server.lock")
        await asyncio.to_thread(lock.acquire)
        serving = asyncio.create_task(server.serve(sockets=[socket.socket(fileno=int(sys.argv[1]))]))
        while not (server.started or serving.done()):
            await asyncio.sleep(0.01)
        lock.release()
        await serving

    asyncio.run(serve())


if __name__ == "__main__":
    main()
