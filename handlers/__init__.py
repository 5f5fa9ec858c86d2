"""Handlers for any Ignite Engine."""

from ultimus_ignite.handlers.batch_logger import BatchLogger
from ultimus_ignite.handlers.checkpoint_store import CheckpointError, CheckpointStore
from ultimus_ignite.handlers.checkpointer import Checkpointer
from ultimus_ignite.handlers.curve_renderer import CurveRenderer
from ultimus_ignite.handlers.graceful_stop import GracefulStop
from ultimus_ignite.handlers.history import History
from ultimus_ignite.handlers.lr_curve import LRCurve, save_lr_curves
from ultimus_ignite.handlers.lr_finder import LRFinder, LRFinderError
from ultimus_ignite.handlers.non_finite_guard import NonFiniteError, NonFiniteGuard
from ultimus_ignite.handlers.one_cycle import OneCycleScheduler

__all__ = [
    "BatchLogger",
    "CheckpointError",
    "CheckpointStore",
    "Checkpointer",
    "CurveRenderer",
    "GracefulStop",
    "History",
    "LRCurve",
    "LRFinder",
    "LRFinderError",
    "NonFiniteError",
    "NonFiniteGuard",
    "OneCycleScheduler",
    "save_lr_curves",
]
