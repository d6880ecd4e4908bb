"""The end of a command: one message for what a user can mend, an exit code for a signal."""

import contextlib
import errno
import logging
import signal
import sys
import traceback
from collections.abc import Iterator

from ..errors import UserError
from .interruption import Interrupted, OutputClosed
from .terminal import Console, mute_closed_outputs


@contextlib.contextmanager
def report_errors() -> Iterator[None]:
    """Within, errors that a user can mend end the process with a message and exit code 1.

    Ctrl-C and a reader that has gone (`| head`) end it with the exit codes of a shell, 130 and 141.
    """
    try:
        yield
    except Interrupted as end:
        mute_closed_outputs()
        sys.stderr.write(f"{end}\n")
        sys.exit(128 + end.number)  # as a shell counts
    except KeyboardInterrupt:
        sys.stderr.write("stopped by Ctrl-C\n")
        sys.exit(128 + signal.SIGINT)
    except (BrokenPipeError, OutputClosed) as end:
        if not mute_closed_outputs() and isinstance(end, BrokenPipeError):
            raise  # of another pipe
        sys.exit(128 + signal.SIGPIPE)
    except UserError as error:
        write_traceback(error)
        # an error of a data-loading worker has the worker's traceback in front
        sys.exit("error: " + str(error).rsplit(f"{type(error).__name__}: ", 1)[-1].rstrip())
    except Exception as error:
        explanation = explain(error)
        if explanation is None:
            raise
        write_traceback(error)
        sys.exit(f"error: {explanation}")


def explain(error: BaseException) -> str | None:
    """Explains an error that an environment has caused; None for any other."""
    from ..data.workers import explain_worker_error  # heavy, and seldom needed

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return str(cause)
        if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
            return f"the disk is full ({cause}): free space, then go on with --resume"
        explanation = explain_worker_error(cause)
        if explanation is not None:
            return explanation
        cause = cause.__cause__ or cause.__context__
    return None


class UserErrorsAside(logging.Filter):
    """Keeps the traceback of an error that a user can mend from Detectron2's training loop.

    Its last line is printed when the process ends, and the whole is in the log file.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Passes everything else on."""
        error = record.exc_info[1] if record.exc_info else None
        return error is None or explain(error) is None


def write_traceback(error: BaseException) -> None:
    """Writes the traceback of an error to log files alone: the terminal gets one message."""
    terminals = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    text = "".join(traceback.format_exception(error))
    record = logging.LogRecord(__name__, logging.DEBUG, __file__, 0, text, None, None)
    for name in ("groupdetr_d2", "detectron2"):
        for handler in logging.getLogger(name).handlers:
            stream = getattr(handler, "stream", None)
            if stream is not None and stream not in terminals and not isinstance(stream, Console):
                with contextlib.suppress(ValueError, OSError):  # a closed file, a full disk
                    handler.handle(record)
