"""A run on several ranks computes what it computes on one."""

import dataclasses
import hashlib
from contextlib import contextmanager
from itertools import chain

import ignite.distributed as idist
import pytest
import torch
from ignite.engine import Events
from PIL import Image
from ranks import on_ranks
from safetensors.torch import load_file
from torch import nn

from ultimus_ignite import ImageData, Recipe, train
from ultimus_ignite.data import folder_cache, sources

SIZE = 12
RECIPE = Recipe(epochs=2, batch_size=16, device="cpu", max_lr=0.01, checkpoint_every=3)
RECIPE = dataclasses.replace(RECIPE, cutout=0.5, flip=0.5, grey=0.2)
VARIANTS = {
    "plain": {},
    "accumulation": {"accumulation_steps": 3},
    "clipping": {"max_grad_norm": 0.1, "weight_decay": 0.1},
    "smoothing": {"label_smoothing": 0.2, "mirror": True},
    "validation": {"val_fraction": 0.2},
}


class Exact(nn.Module):
    """Every layer in float64, so that only the order of adding makes a difference.

    A bias before a norm has no gradient but rounding, which Adam would enlarge.
    """

    def __init__(self, has_norms):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2, bias=not has_norms),
            nn.BatchNorm2d(6) if has_norms else nn.Identity(),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(6 * 25, 8, bias=not has_norms),
            nn.BatchNorm1d(8, momentum=None, affine=False) if has_norms else nn.Identity(),
            nn.Linear(8, 4),
        ).double()

    def forward(self, images):
        return self.layers(images.double())


def colours(counts):
    """Four classes of random pictures that differ in colour."""
    generator = torch.Generator().manual_seed(0)
    splits = []
    for count in counts:
        labels = torch.randint(4, (count,), generator=generator)
        noise = torch.randint(100, (count, 3, SIZE, SIZE), generator=generator)
        tint = torch.tensor([[150, 0, 0], [0, 150, 0], [0, 0, 150], [90, 90, 0]])[labels]
        splits.append(((noise + tint[:, :, None, None]).byte(), labels))
    return ImageData.measure("colours", ("red", "green", "blue", "brown"), *splits)


def trained(folder, recipe, counts, stop_at=None, resume=False):
    """Train, to the end or to an iteration; returns a hash of each image, and the history."""
    torch.manual_seed(1)
    seen = []

    def configure(trainer, evaluator):
        @trainer.on(Events.ITERATION_STARTED)
        def note():
            images = trainer.state.batch.images
            seen.append([hashlib.sha1(image.numpy().tobytes()).hexdigest() for image in images])

        if stop_at is not None:

            @trainer.on(Events.ITERATION_COMPLETED(once=stop_at))
            def stop():
                raise KeyboardInterrupt

        trainer.kept = note, stop_at and stop  # Ignite holds a weak reference

    # The parts of a batch on one rank are not the parts on two, so their statistics differ.
    model = Exact(has_norms=recipe.accumulation_steps == 1)
    options = {"model": model, "data": colours(counts), "configure": configure}
    try:
        run = train(recipe, out=folder, resume=resume, **options)
    except KeyboardInterrupt:
        return seen, None
    return seen, [{k: v for k, v in row.items() if k != "seconds"} for row in run.history.rows]


def joined(results):
    """The images of all ranks by iteration, and the history, which must be the same on all."""
    seen, histories = zip(*results, strict=True)
    assert all(history == histories[0] for history in histories)
    return [[*chain(*parts)] for parts in zip(*seen, strict=True)], histories[0]


def assert_same(one, other):
    """The weights of two folders agree to the digits of float64."""
    a, b = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-11, atol=1e-13)


def assert_same_history(one, other):
    for mine, its in zip(one, other, strict=True):
        assert mine == pytest.approx(its, rel=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("ranks", [2, 3])
def test_weights_and_history_are_those_of_one_process(tmp_path, ranks, variant):
    """50 images make a last batch of 2 for 3 ranks; 1 of 2 evaluated images is nobody's."""
    recipe = dataclasses.replace(RECIPE, **VARIANTS[variant])
    counts = (50, 2) if variant == "plain" else (53, 21)
    images, history = trained(tmp_path / "one", recipe, counts)
    both, of_ranks = joined(on_ranks(ranks, trained, tmp_path / "many", recipe, counts))
    assert both == images
    assert_same(tmp_path / "one", tmp_path / "many")
    assert_same_history(of_ranks, history)
    files = [
        sorted(p.name for p in (tmp_path / name).iterdir() if "events" not in p.name)
        for name in ("one", "many")
    ]
    assert files[0] == files[1]


def test_one_two_and_one_process_continue_each_other(tmp_path):
    counts, out = (50, 7), tmp_path / "changing"
    images, history = trained(tmp_path / "one", RECIPE, counts)
    first, _ = trained(out, RECIPE, counts, 5)  # saved after iterations 3 and 4
    second, _ = joined(on_ranks(2, trained, out, RECIPE, counts, 7, True))  # and 6
    third, resumed = trained(out, RECIPE, counts, None, True)
    assert first[:4] + second[:2] + third == images
    assert_same(tmp_path / "one", out)
    assert_same_history(resumed, history)


def test_on_two_ranks_a_resumed_run_is_bit_identical(tmp_path):
    counts = (50, 7)
    on_ranks(2, trained, tmp_path / "whole", RECIPE, counts)
    on_ranks(2, trained, tmp_path / "cut", RECIPE, counts, 5)
    on_ranks(2, trained, tmp_path / "cut", RECIPE, counts, None, True)
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert one == other


class Following(nn.Module):
    """Dropout, and a buffer that follows the images; both are noted in each step."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3 * SIZE * SIZE, 4)
        self.register_buffer("brightness", torch.zeros(()))
        self.masks, self.seen = [], []

    def forward(self, images):
        if self.training:
            self.masks.append(nn.functional.dropout(torch.ones(8)).tolist())
            self.seen.append(float(self.brightness))
            self.brightness += images.mean()
        return self.layer(images.flatten(1))


def followed(folder):
    model = Following()
    train(RECIPE, out=folder, model=model, data=colours((50, 7)))
    return model.masks[-8:], model.seen[-8:]


def test_each_rank_has_masks_of_its_own_and_the_buffers_of_rank_0(tmp_path):
    (masks, seen), (other_masks, other_seen) = on_ranks(2, followed, tmp_path / "run")
    assert all(mask != other for mask, other in zip(masks, other_masks, strict=True))
    assert seen == other_seen
    assert len(set(seen)) == 8


def loaded(images, cache):
    """Load a folder at the same moment as the other ranks; returns what is told, if not waited."""
    told = []

    @contextmanager
    def scratch_folder(place):
        told.append(str(place))
        with real(place) as folder:
            yield folder

    real, folder_cache.scratch_folder = folder_cache.scratch_folder, scratch_folder
    idist.barrier()
    data = sources.load(f"folder:{images}", str(cache))
    return data.sha256, told


def test_one_rank_decodes_for_all(tmp_path):
    for split in ("train", "test"):
        for number in range(40):
            place = tmp_path / "images" / split / str(number % 2)
            place.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 30), (number, 0, 0)).save(place / f"{number}.png")
    first, second = on_ranks(2, loaded, tmp_path / "images", tmp_path / "cache")
    assert first == second
    assert first[1] == []
