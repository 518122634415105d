"""The server: on this machine's loopback interface only, and with nothing from anywhere else."""

import logging
import socket
from collections.abc import Sequence
from pathlib import Path

from dash import Dash
from flask import Flask, Response, abort, request
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from lit_gpt.errors import InputError, place_of
from scripts.explorer.callbacks import connect_curves, connect_numbers
from scripts.explorer.callbacks_losses import connect_losses
from scripts.explorer.callbacks_reading import connect_reading
from scripts.explorer.page import layout
from scripts.explorer.reading import Reading
from scripts.explorer.runs import Run

HOST = "127.0.0.1"
POLICY = (
    "default-src 'self'; script-src 'self' {scripts}; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; object-src 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What a browser may load and run for the page: nothing but its own."""
_NAMES = {"127.0.0.1", "localhost"}
_UNEXPECTED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What a value raises that the page does not send."""


def make_app(runs: Sequence[Run], readings: Sequence[Reading]) -> Dash:
    """The page over some runs and what they read, with its answers."""
    app = Dash(
        "explorer",
        server=_server(),
        assets_folder=str(Path(__file__).parent / "assets"),
        serve_locally=True,
        enable_mcp=False,
        title="llammlein",
        update_title="",
        add_log_handler=False,
    )
    app.layout = lambda: layout(runs)
    connect_curves(app, runs)
    connect_numbers(app)
    connect_reading(app, runs, readings)
    connect_losses(app, runs, readings)
    policy = POLICY.format(scripts=" ".join(app.csp_hashes()))

    @app.server.after_request
    def restrict(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = policy
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Cache-Control"] = response.headers.get("Cache-Control", "no-store")
        return response

    return app


def _server() -> Flask:
    """Answer only what the page asks, and only on this machine."""
    server = Flask("explorer")

    @server.before_request
    def check_host() -> None:  # the page of a stranger could ask by a name it has chosen
        if request.host.rpartition(":")[0] not in _NAMES and request.host not in _NAMES:
            abort(403, "this server answers as 127.0.0.1 and localhost only")

    def refuse(error: Exception) -> Response:
        what = " ".join(str(error).splitlines())[:200]
        line = f"a request without an answer: {type(error).__name__}{place_of(error)}: {what}"
        server.logger.error(line)
        return Response(line, 400, mimetype="text/plain")

    for kind in _UNEXPECTED:
        server.register_error_handler(kind, refuse)
    return server


def bind(app: Dash, port: int) -> BaseWSGIServer:
    """A server that is ready to `serve_forever`, several browsers at once; port 0 takes any that is free.

    Raises:
        InputError: the port is taken.
    """
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with socket.socket() as probe:  # the server would end the process
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise InputError(
                f"--port {port}: {error.strerror}; give another, or 0 for any that is free"
            ) from error
    return make_server(HOST, port, app.server, threaded=True, request_handler=_Handler)


class _Handler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"  # connections stay open
