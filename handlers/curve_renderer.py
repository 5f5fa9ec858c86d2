"""The curves of a run, drawn at its end."""

import warnings
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from typing_extensions import Self

from ultimus_ignite.handlers.history import History
from ultimus_ignite.handlers.support.attachable import Attachable
from ultimus_ignite.handlers.support.figures import draw_curves, pixels, save_figure


class CurveRenderer(Attachable):
    """Draws a `History` at the end of a run, also of one that is terminated.

    If drawing or writing fails, it only warns. ``COMPLETED`` also follows ``terminate()``.

    =============  ==========================
    Event          Method
    =============  ==========================
    ``TERMINATE``  `render_without_completed`
    ``COMPLETED``  `render`
    =============  ==========================

    Args:
        history: its rows and rates are drawn.
        path: the PNG to write.
        title: text above the panels.
        writer: its ``add_image`` also gets the picture, as ``curves``; for example a tensorboardX
            ``SummaryWriter``.

    Example:
        >>> import tempfile, torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        >>> trainer = Engine(lambda engine, batch: 1.0 / engine.state.iteration)
        >>> history = History(optimizer).attach(trainer)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = CurveRenderer(history, path=Path(folder) / "curves.png").attach(trainer)
        ...     _ = trainer.run(range(5), max_epochs=3)
        ...     [path.name for path in Path(folder).iterdir()]
        ['curves.png']
    """

    def __init__(
        self, history: History, *, path: Path | str, title: str = "", writer: Any = None
    ) -> None:
        super().__init__()
        self.history = history
        self.path = Path(path)
        self.title = title
        self.writer = writer

    def attach(self, engine: Engine) -> Self:
        """Attach to a trainer."""
        return self._attach(
            engine,
            (Events.STARTED, self._go_last),  # to run after an evaluation at the run's end
            (Events.TERMINATE, self.render_without_completed),
            (Events.COMPLETED, self.render),
        )

    def render_without_completed(self, engine: Engine) -> None:
        """Draw if ``terminate(skip_completed=True)`` ends the run."""
        if engine.should_terminate == "skip_completed":
            self.render()

    def render(self) -> None:
        """Draw the history, on rank 0."""
        if idist.get_rank() != 0:
            return
        try:
            history = self.history
            rates, every = history.rates, history.every
            if history.rows and len(rates) * every < (history.rows[-1]["iteration"] or 0):
                rates, every = [], 1  # it began in mid-run, and the rows alone know the rates
            figure = draw_curves(history.rows, rates, every, title=self.title)
            save_figure(figure, self.path)
            if self.writer is not None:
                epoch = len(self.history.rows)
                self.writer.add_image("curves", pixels(figure), epoch, dataformats="HWC")
        except Exception as error:  # the trained model is worth more than its picture
            warnings.warn(f"could not draw {self.path}: {error}", stacklevel=2)
