"""Signals that end a training: it finishes its iteration, writes a checkpoint, then it ends."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator

SIGNALS = (signal.SIGTERM, signal.SIGINT)
REPEATED_AFTER = 2.0  # seconds; a signal often arrives twice, from the terminal and the launcher


class Interrupted(BaseException):
    """A signal has ended the training, and what was trained is saved.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int):
        super().__init__(
            f"stopped by {signal.Signals(number).name}; the checkpoint is written: the same "
            "command with --resume goes on from there"
        )
        self.number = number


class OutputClosed(BaseException):
    """Nobody reads the output any more, as with `| head`, and no training is going on."""


class StopSignals:
    """A context in which SIGTERM and SIGINT are noted instead of ending the process.

    A second signal after two seconds raises KeyboardInterrupt.

    Attributes:
        received: the signal's number, 0 before it comes.
    """

    def __init__(self) -> None:
        self.received, self._time = 0, 0.0
        self._is_at_once = self._is_held = False
        self._previous: dict = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._receive) for number in SIGNALS}
        _ENTERED.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _ENTERED.remove(self)
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Within, a signal raises where it arrives: for work that can be repeated.

        Raises:
            Interrupted: one arrives, or has arrived before.
        """
        self._is_at_once = True
        try:
            if self.received:
                raise Interrupted(self.received)
            yield
        finally:
            self._is_at_once = False

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Within, signals are noted alone: for work that must be finished."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False

    def _receive(self, number: int, frame: object = None) -> None:
        now = time.monotonic()
        if self._is_held:
            self.received = self.received or number
            return
        if self.received and now - self._time > REPEATED_AFTER:
            raise KeyboardInterrupt
        if not self.received:
            self.received, self._time = number, now
        if self._is_at_once:
            self._is_at_once = False
            raise Interrupted(number)


_ENTERED: list[StopSignals] = []


def stop_for_closed_output() -> None:
    """Ends a training as SIGPIPE would end a program: after its iteration, with a checkpoint.

    Raises:
        OutputClosed: no training is going on.
        Interrupted: one is in work that can be repeated.
    """
    if not _ENTERED:
        raise OutputClosed
    _ENTERED[-1]._receive(signal.SIGPIPE)


@contextlib.contextmanager
def signals_passed_on() -> Iterator[None]:
    """Passes signals to the processes that this one has started, and waits for those."""

    def pass_on(number: int, frame: object) -> None:
        for process in multiprocessing.active_children():
            with contextlib.suppress(ProcessLookupError):
                if process.pid is not None:
                    os.kill(process.pid, number)

    previous = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
