"""A served page for the tests of the server and of the browser."""

import http.client
import json
import socket
import threading
from contextlib import contextmanager

import numpy as np
import uvicorn
from PIL import Image

from bus_smp.serve.answers import Answer, Source
from bus_smp.serve.app import make_app
from bus_smp.serve.guard import LINK_HEADER, TimedProtocol
from bus_smp.serve.reading import Reading
from bus_smp.serve.records import open_journal
from bus_smp.serve.worklist import Worklist, file_cases

TOKEN = "a-token"
OWN = {"lesion": "yes", "class": "benign", "birads": "3", "confidence": 70}


def write_images(folder, count=3):
    paths = []
    for number in range(count):
        paths.append(folder / f"DOE^JANE {number}.png")
        picture = np.random.default_rng(number).integers(0, 200, (40, 50, 3), np.uint8)
        Image.fromarray(picture).save(paths[-1])
    return paths


def block(case, picture):
    """An answer of a fixed square."""
    mask = np.zeros(picture.pixels.shape[:2], np.uint8)
    mask[10:20, 12:30] = 2
    return Answer(mask, "malignant", 0.8)


class Client:
    def __init__(self, port):
        self.port = port

    def ask(self, path, body=None, **headers):
        """Status, headers and bytes; the token and the origin are right unless given otherwise."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        given = {LINK_HEADER: TOKEN} | {name.replace("_", "-"): value for name, value in headers.items()}
        if isinstance(body, dict):
            body = json.dumps(body).encode()
        method = "GET" if body is None else "POST"
        try:
            connection.request(method, path, body, {k: v for k, v in given.items() if v is not None})
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            connection.close()


@contextmanager
def serving(folder, paths, mode="blind", reader="r1", gives=(block,), **guard):
    with open_journal(folder) as journal:
        cases = file_cases(paths)
        given = [Source(f"run{number}", give, worth=("secret",)) for number, give in enumerate(gives)]
        reading = Reading(Worklist(cases), journal, given, mode=mode, reader=reader)
        listening = socket.create_server(("127.0.0.1", 0))
        app = make_app(reading, TOKEN, ["127.0.0.1"], **guard)
        server = uvicorn.Server(
            uvicorn.Config(app, log_level="error", lifespan="off", http=TimedProtocol, ws="none")
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield Client(listening.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join()
            reading.close()
