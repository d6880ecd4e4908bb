"""The terminal of a command: lines above a progress bar, lines for the log file alone, `| head`."""

import contextlib
import io
import logging
import os
import select
import sys
from collections.abc import Iterator
from typing import TextIO

from .interruption import stop_for_closed_output

LOGGERS = ("groupdetr_d2", "detectron2", "fvcore")
# argument `extra` of a log line that stands in the log file and not on the terminal
FILE_ALONE = {"file_alone": True}
# of the libraries below, about tensors that the table of what was loaded counts, too
REPEATING = ("checkpoint.c2_model_loading", "fvcore.common.checkpoint")
NOTHING_LOADED = "Loading from  ..."  # Detectron2's line about an empty MODEL.WEIGHTS


class Console(io.TextIOBase):
    """A terminal's stream for log lines, which stand above a progress bar if there is one.

    Where nobody reads any more, as with `| head`, the command is told to end.
    """

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        """Writes whole lines."""
        from tqdm import tqdm

        with _closing_noticed():
            tqdm.write(text, file=self.stream, end="")
        return len(text)

    def flush(self) -> None:
        """Hands on what is written."""
        with _closing_noticed():
            self.stream.flush()

    def isatty(self) -> bool:
        """Whether a person looks at it."""
        return self.stream.isatty()


@contextlib.contextmanager
def _closing_noticed() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        mute_closed_outputs()
        stop_for_closed_output()


def prepare_terminal() -> None:
    """Makes the log's handlers of the terminal write above a bar, and what is for it alone."""
    for handler in terminal_handlers():
        handler.addFilter(is_for_terminal)
        if not isinstance(handler.stream, Console):
            handler.setStream(Console(handler.stream))


def terminal_handlers() -> list[logging.StreamHandler]:
    """The handlers of the log that write to the terminal."""
    streams = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    handlers = (x for name in LOGGERS for x in logging.getLogger(name).handlers)
    found = [x for x in handlers if isinstance(x, logging.StreamHandler)]
    return [x for x in found if isinstance(x.stream, Console) or x.stream in streams]


def is_for_terminal(record: logging.LogRecord) -> bool:
    """Whether a log line is shown on the terminal; the log file has all of them."""
    if getattr(record, "file_alone", False) or record.name.endswith(REPEATING):
        return False
    return not record.getMessage().endswith(NOTHING_LOADED)


def shows_bar() -> bool:
    """Whether a progress bar is drawn: a person looks at the standard error."""
    return sys.stderr is not None and sys.stderr.isatty()


def mute_closed_outputs() -> bool:
    """Sends what nobody reads any more to nowhere; returns whether there was such an output."""
    closed = [stream for stream in (sys.stdout, sys.stderr) if _is_closed(stream)]
    for stream in closed:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    return bool(closed)


def _is_closed(stream: TextIO) -> bool:
    """Whether a stream is a pipe whose reader has gone."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
    except (OSError, ValueError, AttributeError):  # no file, or a test's
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))
