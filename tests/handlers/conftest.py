import signal

import pytest


@pytest.fixture(autouse=True)
def signals_as_they_were():
    """An exception leaves GracefulStop's handler behind, which the next signal or run takes away."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
