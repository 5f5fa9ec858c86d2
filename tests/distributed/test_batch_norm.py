"""BatchNorm of several ranks against torch's own on the whole batch, in float64."""

import copy

import ignite.distributed as idist
import pytest
import torch
from ranks import on_ranks
from torch import nn

from ultimus_ignite.distributed.batch_norm import CommonBatchNorm, synchronize_batch_norms

SHAPES = {"1d": (7, 3), "of sequences": (7, 3, 4), "2d": (7, 3, 4, 5), "3d": (7, 3, 2, 3, 2)}
KINDS = {"1d": nn.BatchNorm1d, "of sequences": nn.BatchNorm1d}
KINDS |= {"2d": nn.BatchNorm2d, "3d": nn.BatchNorm3d}
OPTIONS = [{}, {"affine": False}, {"momentum": None, "eps": 0.1}, {"track_running_stats": False}]


def whole(kind, options, offset):
    """A norm whose numbers are random, a batch far from zero, and weights of its outputs."""
    torch.manual_seed(0)
    norm = KINDS[kind](3, **options).double()
    for value in (*norm.parameters(), *norm.buffers()):
        if value.is_floating_point():
            nn.init.uniform_(value, 0.5, 2.0)
    x = torch.randn(SHAPES[kind], dtype=torch.float64) * 3 + offset
    return norm, x, torch.randn_like(x)


def numbers(norm, x, weights, layout):
    """Two passes in training and one in eval mode; returns outputs, gradients and the state."""
    if x.dim() == 4:
        x = x.contiguous(memory_format=layout)
    x.requires_grad_()
    for _ in range(2):
        norm.zero_grad()
        x.grad = None
        output = norm(x)
        (output * weights).sum().backward()
    gradients = {name: parameter.grad for name, parameter in norm.named_parameters()}
    with torch.no_grad():
        later = norm.eval()(x)
    return output.detach(), x.grad, later, gradients, norm.state_dict()


def on_a_rank(kind, options, offset, sizes, layout):
    norm, x, weights = whole(kind, options, offset)
    norm = synchronize_batch_norms(norm, torch.device("cpu"))
    assert isinstance(norm, CommonBatchNorm)
    rank = idist.get_rank()
    x, weights = x.split(sizes)[rank].clone(), weights.split(sizes)[rank]
    *own, gradients, state = numbers(norm, x, weights, layout)
    gradients = {name: idist.all_reduce(gradient) for name, gradient in gradients.items()}
    return [tensor.tolist() for tensor in own], plain(gradients), plain(state)


def plain(tensors):
    return {name: tensor.tolist() for name, tensor in tensors.items()}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_that_of_the_whole_batch(kind, options):
    check(kind, options, 0.0, [2, 5], torch.contiguous_format)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("sizes", [[0, 7], [1, 1, 5]])
def test_with_empty_shares_in_every_layout_and_far_from_zero(sizes, layout):
    check("2d", {}, 1e6, sizes, layout, 1e-8)


def check(kind, options, offset, sizes, layout, tolerance=1e-11):
    ranks = on_ranks(len(sizes), on_a_rank, kind, options, offset, sizes, layout)
    *own, gradients, state = numbers(*whole(kind, options, offset), layout)
    for index, tensor in enumerate(own):
        parts = [torch.tensor(values[index], dtype=torch.float64) for values, *_ in ranks]
        found = torch.cat([part.reshape(-1, *tensor.shape[1:]) for part in parts])
        torch.testing.assert_close(found, tensor, rtol=tolerance, atol=tolerance)
    for _, of_rank, state_of_rank in ranks:
        for found, right in ((of_rank, gradients), (state_of_rank, state)):
            assert found.keys() == right.keys()
            for name, tensor in right.items():
                values = torch.tensor(found[name], dtype=tensor.dtype)
                torch.testing.assert_close(values, tensor, rtol=tolerance, atol=tolerance)


def test_a_model_keeps_its_parameters_and_the_keys_of_its_state():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4)), nn.BatchNorm2d(4))
    model[2].eval()
    before, parameters = copy.deepcopy(model.state_dict()), [*model.parameters()]
    changed = synchronize_batch_norms(model, torch.device("cpu"))
    assert all(a is b for a, b in zip(parameters, changed.parameters(), strict=True))
    assert before.keys() == changed.state_dict().keys()
    assert [module.training for module in changed.modules()] == [True] * 4 + [False]
    assert sum(isinstance(module, CommonBatchNorm) for module in changed.modules()) == 2
