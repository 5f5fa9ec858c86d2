import signal

import pytest


@pytest.fixture(autouse=True)
def signals_as_they_were():
    """After an exception GracefulStop's handler stays until the next signal or run.

    None is ignored in a test, as SIGINT is where a shell started pytest in the background.
    """
    fresh = {
        signal.SIGHUP: signal.SIG_DFL,
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in fresh.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
