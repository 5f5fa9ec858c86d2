import random

import pytest
import torch
import torch.nn.functional as F

from ultimus_ignite.modules import UltimusNet


def relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("size", [7, 32, *random.Random(0).sample(range(8, 97), 3)])
def test_pooling_first_is_exact_in_outputs_and_gradients(size):
    torch.manual_seed(0)
    fast = UltimusNet(image_size=size).double()
    slow = UltimusNet(image_size=size, pool_first=False).double()
    slow.load_state_dict(fast.state_dict())
    images = torch.randn(4, 3, size, size, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 3, 5, 9])
    results = []
    for model in (fast, slow):
        logits = model(images)
        loss = F.cross_entropy(logits, labels)
        results.append([logits, *torch.autograd.grad(loss, [images, *model.parameters()])])
    for a, b in zip(*results, strict=True):
        assert relative_difference(a, b) < 1e-10


def test_one_state_dict_of_the_seeds_size():
    models = [UltimusNet(), UltimusNet(pool_first=False), UltimusNet(image_size=224)]
    for model in models:
        assert model.state_dict().keys() == models[0].state_dict().keys()
        assert sum(value.numel() for value in model.state_dict().values()) == 25_786


def test_the_blocks_are_in_the_path():
    model = UltimusNet()
    F.cross_entropy(model(torch.randn(8, 3, 32, 32)), torch.arange(8)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("pool_first", [True, False])
def test_one_image_does_not_see_the_others(pool_first):
    model = UltimusNet(pool_first=pool_first).eval()
    images = torch.randn(6, 3, 32, 32)
    others = torch.cat([images[:1], torch.randn(5, 3, 32, 32)])
    assert torch.equal(model(images)[0], model(others)[0])


def test_bright_images_of_224_pixels_fit_into_float16():
    """218 x 218 pixels of 2.5 sum up to 118,810; the largest float16 is 65,504."""
    model = UltimusNet(image_size=224)
    images = torch.full((1, 3, 224, 224), 2.5)
    exact = model.features(images)
    torch.testing.assert_close(
        model.half().features(images.half()).float(), exact, rtol=0.01, atol=0.01
    )


@pytest.mark.parametrize("shape", [(2, 3, 32, 64), (2, 3, 31, 31), (2, 1, 32, 32), (3, 32, 32)])
@pytest.mark.parametrize("pool_first", [True, False])
def test_images_of_another_shape_are_named(shape, pool_first):
    with pytest.raises(ValueError, match=r"takes .*\(B, 3, 32, 32\), got \("):
        UltimusNet(pool_first=pool_first)(torch.zeros(shape))


def test_images_that_are_too_small_are_named():
    with pytest.raises(ValueError, match="7 or more, got 6"):
        UltimusNet(image_size=6)
