"""A Prefect API server that lives exactly as long as the process that started it.

Run as `python -m tasks.prefect_server FD`: FD is a socket that listens already, so that no port can be taken
between choosing and binding it, and requests wait in its queue until the server is up. Standard input is a
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

SECONDS_TO_STOP = 3


def main() -> None:
    """Import, wait for the owner's word, serve until the owner is gone."""
    gc.disable()  # a quarter of the time to import would go into collecting what stays anyway
    import uvicorn
    from filelock import FileLock
    from prefect.server.api.server import create_app
    from prefect.settings import get_current_settings

    app = create_app()
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
