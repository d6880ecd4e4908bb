"""Reading and writing of videos, frame by frame."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from ..errors import UserError
from .image_file import ImageReadError

VIDEO_SUFFIXES = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v"}


def read_frames(path: Path) -> tuple[Iterator[np.ndarray], int, float]:
    """Reads a video: its frames (H, W, 3) BGR, about how many there are, and the frame rate.

    Raises:
        ImageReadError: it cannot be read.
    """
    capture = cv2.VideoCapture(str(path))
    is_read, first = capture.read()
    if not is_read:
        raise ImageReadError(f"video {path} cannot be read: no file, or a codec that is not known")

    def frames() -> Iterator[np.ndarray]:
        frame = first
        while frame is not None:
            yield frame
            _, frame = capture.read()
        capture.release()

    count = max(1, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    return frames(), count, capture.get(cv2.CAP_PROP_FPS) or 25.0


class VideoWriter:
    """Writes frames into an mp4; a context manager.

    Args:
        path: None writes nothing.
        rate: frames a second.
    """

    def __init__(self, path: Path | None, rate: float):
        self.path, self.rate = path, rate
        self._writer: cv2.VideoWriter | None = None

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, *_):
        if self._writer is not None:
            self._writer.release()

    def add(self, frame: np.ndarray) -> None:
        """Adds a frame (H, W, 3) BGR.

        Raises:
            UserError: the file cannot be written.
        """
        if self.path is None:
            return
        if self._writer is None:
            code = cv2.VideoWriter.fourcc(*"mp4v")
            size = (frame.shape[1], frame.shape[0])
            self._writer = cv2.VideoWriter(str(self.path), code, self.rate, size)
            if not self._writer.isOpened():
                raise UserError(f"{self.path} cannot be written")
        self._writer.write(frame)
