import signal

import pytest


@pytest.fixture(autouse=True)
def signals_as_they_were():
    """After an exception GracefulStop's handler stays until the next signal or run."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
