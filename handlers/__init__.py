"""Handlers for any Ignite Engine."""

from ultimus_ignite.handlers.batch_logger import BatchLogger
from ultimus_ignite.handlers.checkpointer import Checkpointer
from ultimus_ignite.handlers.checkpoints.store import CheckpointError, CheckpointStore
from ultimus_ignite.handlers.curve_renderer import CurveRenderer
from ultimus_ignite.handlers.early_end import EarlyEnd
from ultimus_ignite.handlers.graceful_stop import GracefulStop
from ultimus_ignite.handlers.history import History
from ultimus_ignite.handlers.lr_finder import LRFinder, LRFinderError
from ultimus_ignite.handlers.non_finite_guard import NonFiniteError, NonFiniteGuard
from ultimus_ignite.handlers.one_cycle import OneCycleScheduler
from ultimus_ignite.handlers.support.figures import save_lr_curves
from ultimus_ignite.handlers.support.lr_curve import LRCurve

__all__ = [
    "BatchLogger",
    "CheckpointError",
    "CheckpointStore",
    "Checkpointer",
    "CurveRenderer",
    "EarlyEnd",
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
