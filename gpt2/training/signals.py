"""Being asked to stop: Ctrl-C, SIGTERM and a terminal that is closed, turned into something that a loop can look at."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest(threading.Event):
    """Set by a signal that asks to stop."""

    _raises = False

    @contextmanager
    def at_once(self, wanted: bool) -> Iterator[None]:
        """Within this, if that is wanted because nothing would be lost, the first signal raises KeyboardInterrupt, too.

        Catch it outside: it may come in the last moment of this.
        """
        self._raises = wanted
        try:
            yield
        finally:
            self._raises = False


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """An event that such a signal sets, so that the step under way is finished and saved; a second is heard at once.

    Signals reach the main thread alone, so elsewhere the event is never set.
    """
    event = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {number: signal.getsignal(number) for number in _asking()}

    def request(number: int, _: FrameType | None) -> None:
        event.set()
        for each, handler in before.items():
            signal.signal(each, handler)
        if event._raises:
            raise KeyboardInterrupt

    for number in before:
        signal.signal(number, request)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _asking() -> list[signal.Signals]:
    asking = [signal.SIGINT, signal.SIGTERM]
    # Windows has none, and under `nohup` a closed terminal is to be ignored.
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        asking.append(signal.SIGHUP)
    return asking
