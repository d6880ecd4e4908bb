"""The end of a command: one message for what a user can mend, an exit code for a signal."""

import contextlib
import errno
import logging
import sys
from collections.abc import Iterator

from ..errors import UserError
from .interruption import Interrupted


@contextlib.contextmanager
def report_errors() -> Iterator[None]:
    """Within, errors that a user can mend end the process with a message and exit code 1."""
    try:
        yield
    except Interrupted as end:
        sys.stderr.write(f"{end}\n")
        sys.exit(128 + end.number)  # as a shell counts
    except UserError as error:
        logging.getLogger(__name__).debug("", exc_info=error)
        # an error of a data-loading worker has the worker's traceback in front
        sys.exit("error: " + str(error).rsplit(f"{type(error).__name__}: ", 1)[-1].rstrip())
    except RuntimeError as error:
        from ..data.workers import explain_worker_error  # heavy, and seldom needed

        explanation = explain_worker_error(error)
        if explanation is None:
            raise
        sys.exit(f"error: {explanation}")
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        sys.exit(f"error: the disk is full ({error}): free space, then go on with --resume")
