"""A web page on this machine: an image in, detections out; threshold and group can be chosen."""

import argparse
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from PIL import Image

from ..data.image_file import ImageReadError
from ..errors import UserError
from ..evaluation import html_report
from .detections import Detections
from .predictor import Predictor

HOST = "127.0.0.1"  # other machines cannot reach it
KEPT_SECONDS = 600  # uploads and pictures of the page
PRIMARY = "primary"


def serve(args: argparse.Namespace) -> None:
    """Serves until Ctrl-C or SIGTERM; nothing that was uploaded stays.

    Raises:
        UserError: gradio is not installed, or the model does not see single images.
    """
    predictor = Predictor(args.weights)
    if predictor.task.sees != "images":
        raise UserError(
            f"serve takes single images, and {predictor.cfg.MODEL.META_ARCHITECTURE} sees several "
            f"cameras at once: use predict --weights {args.weights} with a scene or a sample token"
        )
    signal.signal(signal.SIGTERM, _interrupt)
    with private_folder():
        page = build_page(predictor, args.max_megapixels)
        sys.stdout.write(f"http://{HOST}:{args.port} (Ctrl-C ends it)\n")
        sys.stdout.flush()
        with contextlib.suppress(KeyboardInterrupt):
            launch_page(page, args.port, args.max_megabytes)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def private_folder() -> Iterator[str]:
    """Within, files of gradio lie in a folder of its own, which is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="groupdetr_serve_", ignore_cleanup_errors=True) as own:
        previous = tempfile.tempdir
        tempfile.tempdir = os.environ["GRADIO_TEMP_DIR"] = own
        try:
            yield own
        finally:
            tempfile.tempdir = previous


def import_gradio():
    """Imports gradio with its usage reports switched off.

    Raises:
        UserError: it is not installed.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio
    except ImportError as error:
        raise UserError(
            f"serve needs gradio ({error}): pip install 'groupdetr_d2[serve]'"
        ) from error
    return gradio


def launch_page(page, port: int, max_megabytes: float, *, waits: bool = True) -> None:
    """Serves the page on this machine alone.

    Args:
        waits: whether to return only when it ends.
    """
    from starlette.middleware import Middleware

    page.launch(
        server_name=HOST,
        server_port=port,
        share=False,
        quiet=True,
        max_file_size=int(max_megabytes * 2**20),
        prevent_thread_lock=not waits,
        app_kwargs={"middleware": [Middleware(OwnPagesOnly, port=port)]},
    )


class OwnPagesOnly:
    """Answers requests of this page alone.

    Any web page that the user visits may send requests to this machine. Their `Origin` is another
    one, and a name that was made to point here (DNS rebinding) shows in `Host`.
    """

    def __init__(self, app: Any, port: int):
        self.app = app
        self.hosts = {f"{name}:{port}" for name in (HOST, "localhost")}

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        """Passes a request on, or answers 403."""
        headers = {k.lower(): v.decode("latin1") for k, v in scope.get("headers", ())}
        origin = headers.get(b"origin", "")
        is_own = headers.get(b"host", "") in self.hosts
        is_own &= not origin or origin.removeprefix("http://") in self.hosts
        if scope["type"] == "lifespan" or is_own:
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            from starlette.responses import PlainTextResponse

            text = PlainTextResponse("this page answers its own requests alone", status_code=403)
            await text(scope, receive, send)


def build_page(predictor: Predictor, max_megapixels: float):
    """Builds gradio's page around a predictor."""
    gradio = import_gradio()
    groups = [PRIMARY, *(str(i) for i in predictor.model.groups.numbers())]

    def detect(path: str | None, threshold: float, group: str):
        if path is None:
            return None, ""
        number = None if group == PRIMARY else int(group)
        try:
            check_pixels(path, max_megapixels)
            found = predictor(path, threshold=threshold, group=number)
        except UserError as error:
            text = str(error).replace(path, "of yours")
            raise gradio.Error(text, print_exception=False) from error
        return found.draw()[..., ::-1], table_of(found)

    detr = predictor.cfg.MODEL.DETR
    with gradio.Blocks(title="groupdetr_d2", delete_cache=(60, KEPT_SECONDS)) as page:
        gradio.Markdown(
            f"### {detr.VARIANT}, K = {detr.NUM_GROUPS}, {len(predictor.names)} classes\n"
            "Drop an image. The primary group is what inference uses; the others were trained "
            "beside it, and find the same."
        )
        with gradio.Row():
            image = gradio.File(label="image", type="filepath")
            picture = gradio.Image(label="found", interactive=False)
        with gradio.Row():
            threshold = gradio.Slider(0, 1, predictor.threshold, step=0.01, label="threshold")
            group = gradio.Dropdown(groups, value=PRIMARY, label="query group")
        table = gradio.HTML(elem_id="objects")
        inputs, outputs = [image, threshold, group], [picture, table]
        for event in (image.change, threshold.release, group.change):
            event(detect, inputs, outputs, api_name=False)
    return page


def check_pixels(path: str, max_megapixels: float) -> None:
    """Checks the size of an image before it is unpacked.

    Raises:
        ImageReadError: it has more pixels, or is no image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
    except Exception as error:  # an image library can raise anything
        raise ImageReadError(f"the file is no image that can be read ({error})") from error
    if width * height > max_megapixels * 1e6:
        raise ImageReadError(
            f"the image has {width} x {height} pixels, more than {max_megapixels:g} megapixels "
            "(serve --max-megapixels)"
        )


def table_of(found: Detections) -> str:
    """Formats the objects as HTML, best first."""
    rows = [
        {k: f"{v:.0f}" if isinstance(v, float) and k != "score" else v for k, v in row.items()}
        for row in map(found.task.flat_record, found.records())
    ]
    return html_report.table(rows) if rows else "nothing has a score above the threshold"
