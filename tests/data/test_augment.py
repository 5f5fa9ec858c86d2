from dataclasses import replace

import pytest
import torch
import torchvision.transforms.functional as TF
from hypothesis import given, settings
from hypothesis import strategies as st

from ultimus_ignite.data.augment import Augment, Normalize

MEAN, STD = (0.49139968, 0.48215841, 0.44653091), (0.24703223, 0.24348513, 0.26158784)
AUGMENT = Augment(Normalize(MEAN, STD), crop_padding=2, flip=0.5, cutout=0.5, cutout_size=8)


def one_by_one(augment, images, draws):
    """The same parameters through torchvision's functions, image by image."""
    pad, size = augment.crop_padding, augment.cutout_size
    height, width = images.shape[-2:]
    results = []
    for i, image in enumerate(images):
        image = TF.pad(image, [pad] * 4, padding_mode="reflect") if pad else image
        image = TF.crop(image, int(draws.top[i]), int(draws.left[i]), height, width)
        if draws.flip[i]:
            image = TF.hflip(image)
        image = TF.convert_image_dtype(image, torch.float32)
        if draws.grey[i]:
            image = TF.rgb_to_grayscale(image, num_output_channels=3)
        image = TF.normalize(image, MEAN, STD)
        if draws.hole[i]:
            top, left = int(draws.hole_top[i]), int(draws.hole_left[i])
            image = TF.erase(image, top, left, size, size, torch.tensor(0.473))
        results.append(image)
    return torch.stack(results)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**63),
    shape=st.tuples(st.integers(1, 5), st.just(3), st.integers(8, 224), st.integers(8, 224)),
    share=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    flip=st.sampled_from([0.0, 0.5, 1.0]),
    cutout=st.sampled_from([0.0, 0.5, 1.0]),
    grey=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_a_batch_equals_torchvision_image_by_image(seed, shape, share, **options):
    side = min(shape[2:])
    crop_padding = round(share[0] * (side - 1))
    cutout_size = 1 + round(share[1] * (side - 1))
    augment = Augment(
        Normalize(MEAN, STD), crop_padding=crop_padding, cutout_size=cutout_size, **options
    )
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    before = images.clone()
    draws = augment.draw(images.shape, generator)
    expected = one_by_one(augment, images, draws)
    torch.testing.assert_close(augment(images, draws), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(images, before)


def test_normalize_equals_torchvision():
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    expected = TF.normalize(TF.convert_image_dtype(images, torch.float32), MEAN, STD)
    torch.testing.assert_close(Normalize(MEAN, STD)(images), expected, rtol=1e-5, atol=1e-5)


def test_draws_cover_their_range_evenly():
    n = 20_000
    draws = replace(AUGMENT, grey=0.25).draw(
        torch.Size((n, 3, 32, 32)), torch.Generator().manual_seed(0)
    )
    for values, count in ((draws.top, 5), (draws.left, 5), (draws.hole_top, 25)):
        share = values.bincount(minlength=count) / n
        assert len(share) == count
        # 5 standard deviations of a binomial share
        assert (share - 1 / count).abs().max() < 5 * (1 / count / n) ** 0.5
    for flags, probability in ((draws.flip, 0.5), (draws.hole, 0.5), (draws.grey, 0.25)):
        assert abs(flags.float().mean().item() - probability) < 5 * 0.5 / n**0.5
    pairs = torch.stack([draws.flip.float(), draws.hole.float(), draws.grey.float()])
    assert (torch.corrcoef(pairs) - torch.eye(3)).abs().max() < 5 / n**0.5


def test_what_is_drawn_depends_on_the_generator_alone():
    shape = torch.Size((16, 3, 32, 32))
    a, b = (AUGMENT.draw(shape, torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True))


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_no_draw_leaves_the_image_whole(flip):
    augment = Augment(Normalize((0.0,) * 3, (1.0,) * 3), flip=flip)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    result = augment(images, augment.draw(images.shape, torch.Generator()))
    expected = images.flip(-1) if flip else images
    torch.testing.assert_close(result, expected.float() / 255)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_padding": 20}, "crop_padding must be from 0 to 19 for images of 20x24 .* got 20"),
        ({"crop_padding": -1}, "crop_padding must be from 0 to 19 .* got -1"),
        ({"cutout": 0.5, "cutout_size": 21}, "cutout_size must be from 1 to 20 .* got 21"),
    ],
)
def test_what_does_not_fit_the_images_is_refused(options, message):
    augment = Augment(Normalize(MEAN, STD), **options)
    with pytest.raises(ValueError, match=message):
        augment.draw(torch.Size((4, 3, 20, 24)), torch.Generator())
