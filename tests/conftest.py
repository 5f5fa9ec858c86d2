"""One thread a process: on tensors this small two only wait for each other."""

import os

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded; child processes inherit it


@pytest.fixture(autouse=True)
def curves_are_blank(request, monkeypatch):
    """But for tests marked as ``drawn``."""
    if "drawn" not in request.keywords:
        from processes import blank_curves

        monkeypatch.setattr("ultimus_ignite.handlers.curve_renderer.draw_curves", blank_curves)
