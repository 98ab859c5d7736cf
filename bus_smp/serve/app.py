"""The requests of the page and their answers: JSON, PNG, and masks as raw class indices, which no decoder can change."""

import asyncio
import contextlib
import io
import socket
import sys
import traceback
from collections.abc import Callable, Coroutine
from importlib import resources
from typing import Any

import numpy as np
import uvicorn
from PIL import Image, PngImagePlugin
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bus_smp.classes import CLASSES
from bus_smp.errors import BusSmpError
from bus_smp.serve.guard import MOST_BYTES, Guard, TimedProtocol
from bus_smp.serve.reading import Busy, Opened, Reading, TooEarly, parse_answer, parse_mask
from bus_smp.serve.worklist import Gone
from bus_smp.text import NOT_CLINICAL

# The page's own files; nothing else is read by a name from a request.
_FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/canvas.js": ("canvas.js", "text/javascript"),
    "/form.js": ("form.js", "text/javascript"),
}

# Connections at the same time; a browser opens six.
_MOST_CONNECTIONS = 64


def make_app(reading: Reading, token: str, hosts: list[str], **limits: Any) -> Starlette:
    """The ASGI application of a reading.

    Args:
        token: the secret of the link.
        hosts: names under which the page may be asked for.
        limits: of a request's body, as for ``Guard``.
    """
    routes = [Route(path, _static(*of)) for path, of in _FILES.items()]
    place = "/api/cases/{case}/{frame:int}"

    async def session(request: Request) -> Response:
        finished = set(await asyncio.to_thread(reading.finished))
        return JSONResponse(
            {
                "reader": reading.reader,
                "mode": reading.mode,
                "questions": reading.questions,
                # names would say which of two is which
                "sources": [one.name for one in reading.sources]
                if len(reading.sources) == 1
                else ["A", "B"][: len(reading.sources)],
                "cases": [
                    {"id": case.id, "name": case.name, "done": case.id in finished}
                    for case in reading.worklist.cases
                    if case.load
                ],
                "most_bytes": MOST_BYTES,
            }
        )

    async def drop(request: Request) -> Response:
        name = request.query_params.get("name", "image")[:200]
        cases = await asyncio.to_thread(reading.worklist.drop, await request.body(), name)
        return JSONResponse([{"id": case.id, "name": case.name} for case in cases])

    async def picture(request: Request) -> Response:
        opened = await _opened(reading, request)
        await reading.prepare(opened)
        return JSONResponse(reading.describe(opened))

    async def image(request: Request) -> Response:
        opened = await _opened(reading, request)
        return Response(await asyncio.to_thread(_png, opened.picture.pixels), media_type="image/png")

    async def answer(request: Request) -> Response:
        opened = await _opened(reading, request)
        shown = await reading.show(opened)
        blinded = len(shown) > 1
        return JSONResponse(
            [
                {
                    "label": one.label,
                    "score": one.score,
                    "disagreement": one.disagreement,
                    "rule": "" if blinded else source.rule,
                    "worth": () if blinded else source.worth,
                    **reading.measure(opened, one.mask),
                }
                for source, one in shown
            ]
        )

    async def mask(request: Request) -> Response:
        shown = await reading.show(await _opened(reading, request))
        side = request.path_params["side"]
        if side >= len(shown):
            return JSONResponse({"error": "no such side"}, 404)
        return Response(shown[side][1].mask.tobytes(), media_type="application/octet-stream")

    async def measure(request: Request) -> Response:
        opened = await _opened(reading, request)
        drawn = parse_mask(await request.body(), opened.picture.pixels.shape[:2])
        return JSONResponse(await asyncio.to_thread(reading.measure, opened, drawn))

    async def download(request: Request) -> Response:
        opened = await _opened(reading, request)
        drawn = parse_mask(await request.body(), opened.picture.pixels.shape[:2])
        return Response(await asyncio.to_thread(_mask_png, drawn), media_type="image/png")

    async def own(request: Request) -> Response:
        opened = await _opened(reading, request)
        sent, drawn = parse_answer(await request.body(), opened.picture.pixels.shape[:2])
        await asyncio.to_thread(reading.store_own, opened, sent, drawn)
        return JSONResponse({})

    async def final(request: Request) -> Response:
        opened = await _opened(reading, request)
        sent, drawn = parse_answer(await request.body(), opened.picture.pixels.shape[:2])
        return JSONResponse(await reading.store_final(opened, sent, drawn))

    for path, method, endpoint in (
        ("/api/session", "GET", session),
        ("/api/files", "POST", drop),
        (place, "GET", picture),
        (f"{place}/image", "GET", image),
        (f"{place}/answer", "GET", answer),
        (f"{place}/mask/{{side:int}}", "GET", mask),
        (f"{place}/measure", "POST", measure),
        (f"{place}/mask.png", "POST", download),
        (f"{place}/own", "POST", own),
        (f"{place}/final", "POST", final),
    ):
        routes.append(Route(path, _explained(endpoint), methods=[method]))
    return Starlette(
        routes=routes,
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=hosts),
            Middleware(Guard, token=token, **limits),
        ],
    )


def _static(name: str, kind: str) -> Callable[[Request], Response]:
    content = resources.files("bus_smp.serve").joinpath(name).read_bytes()
    return lambda request: Response(content, media_type=kind)


async def _opened(reading: Reading, request: Request) -> Opened:
    # the case is a key of a table, never a path
    case, frame = request.path_params["case"], request.path_params["frame"]
    return await asyncio.to_thread(reading.open, case, frame)


def _explained(
    endpoint: Callable[[Request], Coroutine[Any, Any, Response]],
) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    """Turn errors into a status, what happened, and what to do."""

    async def answer(request: Request) -> Response:
        hint = ""
        try:
            return await endpoint(request)
        except Gone:
            status, words = 410, "the file has to be sent again"
        except Busy:
            status, words = 503, "busy: the model has other images to do; trying again"
        except TooEarly as error:
            status, words = 403, error.what
        except BusSmpError as error:
            # 507 for all that is not the reader's input: the disk
            status, words, hint = (507 if type(error) is BusSmpError else 422), error.what, error.hint
        except Exception as error:
            # without its text, which may hold a file's name
            print(
                f"Error in the page: {type(error).__name__}",
                *traceback.format_tb(error.__traceback__),
                file=sys.stderr,
            )
            status, words = 500, f"an error of the program ({type(error).__name__}); nothing was stored"
        return JSONResponse({"error": words, "hint": hint}, status)

    return answer


def _png(pixels: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG", compress_level=1)
    return data.getvalue()


def _mask_png(mask: np.ndarray) -> bytes:
    image = Image.fromarray(mask).convert("P")
    image.putpalette([value for one in CLASSES for value in one.rgb])
    note, data = PngImagePlugin.PngInfo(), io.BytesIO()
    note.add_text("Comment", NOT_CLINICAL)
    image.save(data, "PNG", pnginfo=note)
    return data.getvalue()


def run_app(app: Starlette, listening: socket.socket) -> None:
    """Serve until Ctrl-C or SIGTERM; requests under way get one second."""
    config = uvicorn.Config(
        app, log_level="error", access_log=False, server_header=False, ws="none", lifespan="off", loop="asyncio",
        http=TimedProtocol, limit_concurrency=_MOST_CONNECTIONS, timeout_keep_alive=5, timeout_graceful_shutdown=1,
        h11_max_incomplete_event_size=16_384,
    )  # fmt: skip
    with contextlib.closing(listening):
        uvicorn.Server(config).run(sockets=[listening])
