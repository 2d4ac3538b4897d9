"""Stopping where it does no harm."""

import signal
import threading
from types import FrameType
from typing import Any


class Stop:
    """Turns SIGTERM and Ctrl-C into something that a loop asks for between two steps.

    A second signal acts as it would have without this. Outside the main thread, where Python takes no handlers, nothing
    is changed.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note) or signal.SIG_DFL
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(number, self._before[number])
