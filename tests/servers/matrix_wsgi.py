"""The same app as ``matrix_asgi``'s for WSGI servers: ``app`` made of Flask, around which is the extension."""

from control import Control
from flask import Flask, Response, request
from matrix import cost, pieces, released

from resource_monitor.middleware import MemoryBackpressure


def hold() -> str:
    released(control)
    return "held"


def upload() -> str:
    return str(len(request.get_data()))


app = Flask(__name__)
app.add_url_rule("/", "hello", lambda: "hello")
app.add_url_rule("/full", "full", lambda: "hello", methods=["GET", "POST"])
app.add_url_rule("/hold", "hold", hold)
app.add_url_rule("/upload", "upload", upload, methods=["POST"])
app.add_url_rule("/stream", "stream", lambda: Response(pieces(control)))
MemoryBackpressure(app, request_cost=cost)
control = Control(lambda: MemoryBackpressure.statistics(app))
