import pytest
import torch
import torch.nn.functional as F

from ultimus_ignite.modules import UltimusNet


def relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def test_pooling_first_is_exact_in_outputs_and_gradients():
    torch.manual_seed(0)
    fast = UltimusNet().double()
    slow = UltimusNet(pool_first=False).double()
    slow.load_state_dict(fast.state_dict())
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 3, 5, 9])
    results = []
    for model in (fast, slow):
        logits = model(images)
        loss = F.cross_entropy(logits, labels)
        results.append([logits, *torch.autograd.grad(loss, [images, *model.parameters()])])
    for a, b in zip(*results, strict=True):
        assert relative_difference(a, b) < 1e-10


def test_one_state_dict_of_the_seeds_size():
    fast, slow = UltimusNet(), UltimusNet(pool_first=False)
    assert fast.state_dict().keys() == slow.state_dict().keys()
    assert sum(value.numel() for value in fast.state_dict().values()) == 25_786


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
