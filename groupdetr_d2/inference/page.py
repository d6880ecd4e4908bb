"""A web page on this machine: an image in, detections out; threshold and group can be chosen."""

import argparse
import os
import sys

import numpy as np
from PIL import Image

from ..errors import UserError
from ..evaluation import html_report
from .predictor import Detections, Predictor

HOST = "127.0.0.1"  # other machines cannot reach it
PRIMARY = "primary"


def serve(args: argparse.Namespace) -> None:
    """Serves until it is interrupted."""
    page = build_page(Predictor(args.weights), args.max_megapixels)
    sys.stdout.write(f"http://{HOST}:{args.port} (Ctrl-C ends it)\n")
    sys.stdout.flush()
    launch_page(page, args.port, args.max_megabytes)


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
    page.launch(
        server_name=HOST,
        server_port=port,
        share=False,
        quiet=True,
        max_file_size=int(max_megabytes * 2**20),
        prevent_thread_lock=not waits,
    )


def build_page(predictor: Predictor, max_megapixels: float):
    """Builds gradio's page around a predictor."""
    gradio = import_gradio()
    # Pillow refuses what has more than twice this number before it is unpacked
    Image.MAX_IMAGE_PIXELS = int(max_megapixels * 1e6 / 2)
    groups = [PRIMARY, *(str(i) for i in predictor.model.groups.numbers())]

    def detect(image: np.ndarray | None, threshold: float, group: str):
        if image is None:
            return None, ""
        number = None if group == PRIMARY else int(group)
        bgr = np.ascontiguousarray(image[..., ::-1])
        found = predictor(bgr, threshold=threshold, group=number)
        return found.draw()[..., ::-1], table_of(found)

    detr = predictor.cfg.MODEL.DETR
    with gradio.Blocks(title="groupdetr_d2") as page:
        gradio.Markdown(
            f"### {detr.VARIANT}, K = {detr.NUM_GROUPS}, {len(predictor.names)} classes\n"
            "Drop an image. The primary group is what inference uses; the others were trained "
            "beside it, and find the same."
        )
        with gradio.Row():
            image = gradio.Image(label="image", type="numpy", image_mode="RGB")
            picture = gradio.Image(label="found", interactive=False)
        with gradio.Row():
            threshold = gradio.Slider(0, 1, predictor.threshold, step=0.01, label="threshold")
            group = gradio.Dropdown(groups, value=PRIMARY, label="query group")
        table = gradio.HTML(elem_id="objects")
        inputs, outputs = [image, threshold, group], [picture, table]
        for event in (image.change, threshold.release, group.change):
            event(detect, inputs, outputs, api_name=False)
    return page


def table_of(found: Detections) -> str:
    """Formats the objects as HTML, best first."""
    rows = [
        {k: f"{v:.0f}" if isinstance(v, float) and k != "score" else v for k, v in row.items()}
        for row in map(found.task.flat_record, found.records())
    ]
    return html_report.table(rows) if rows else "nothing has a score above the threshold"
