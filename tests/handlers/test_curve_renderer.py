import sys
import warnings

import pytest
import torch
from ignite.engine import Engine, Events
from PIL import Image

from ultimus_ignite.handlers import CurveRenderer, History

pytestmark = pytest.mark.drawn


def run(path, *, epochs=2, stop_after=None, writer=None):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    trainer = Engine(lambda engine, batch: 1.0)
    history = History(optimizer).attach(trainer)
    CurveRenderer(history, path=path, title="a run", writer=writer).attach(trainer)
    if stop_after:
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED(once=stop_after), lambda: trainer.terminate()
        )
    trainer.run(range(3), max_epochs=epochs)


@pytest.mark.parametrize("stop_after", [None, 4, 1])
def test_a_picture_at_the_end_also_of_a_run_cut_off(tmp_path, stop_after):
    run(tmp_path / "curves.png", stop_after=stop_after)
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (1080, 960)
        assert len(picture.convert("L").getcolors()) > 10  # not blank
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]


def test_a_failure_to_draw_warns_and_does_not_end_the_run(tmp_path):
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match=r"could not draw .*file"):
        run(tmp_path / "file" / "curves.png")


def test_pyplot_is_never_imported(tmp_path):
    before = sys.modules.pop("matplotlib.pyplot", None)
    try:
        run(tmp_path / "curves.png")
        assert "matplotlib.pyplot" not in sys.modules
    finally:
        if before is not None:
            sys.modules["matplotlib.pyplot"] = before


def test_tensorboard_gets_the_same_picture(tmp_path):
    class Writer:
        def add_image(self, *arguments, **options):
            self.image, self.options = arguments, options

    writer = Writer()
    run(tmp_path / "curves.png", writer=writer)
    tag, pixels, epoch = writer.image
    assert (tag, pixels.shape, epoch) == ("curves", (960, 1080, 3), 2)
    assert writer.options == {"dataformats": "HWC"}
    with Image.open(tmp_path / "curves.png") as picture:
        assert (
            torch.tensor(list(picture.convert("RGB").tobytes()))
            == torch.tensor(list(pixels.tobytes()))
        ).all()


def test_no_warning_on_a_single_epoch(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(tmp_path / "curves.png", epochs=1)
