"""A plain static HTTP server with sendfile: `python -m benchmarks.lab_files FOLDER ADDRESS PORT`."""

from __future__ import annotations

import sys

from aiohttp import web

__all__ = ["main"]


def main(folder: str, address: str, port: str) -> None:
    """Serve until ended."""
    app = web.Application()
    app.router.add_static("/", folder)
    web.run_app(app, host=address, port=int(port), access_log=None, print=None)


if __name__ == "__main__":
    main(*sys.argv[1:])
