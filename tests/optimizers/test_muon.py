"""Muon against torch's own on matrices, against singular values, and against AdamW."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import AdamW

from ultimus_ignite.optimizers.muon import COEFFICIENTS, Muon, orthogonalised


def trained(network, optimizer, steps, seed=0):
    """Some steps on random images, the same for each seed."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        network(torch.randn(4, 3, 8, 8, generator=generator)).square().mean().backward()
        optimizer.step()
    return network


def create():
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(216, 4))
    others = [network[0].bias, *network[1].parameters(), *network[3].parameters()]
    groups = [{"params": others, "weight_decay": 0.1, "lr": 0.01}]
    return network, Muon([network[0].weight], groups, lr=0.1)


@given(
    shape=st.lists(st.integers(1, 7), min_size=2, max_size=4),
    steps=st.integers(0, 6),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float64, torch.complex128]),
)
@settings(max_examples=50, deadline=None)
def test_singular_values_go_through_the_polynomial_and_vectors_stay(shape, steps, seed, dtype):
    a, b, c = COEFFICIENTS
    kernel = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    u, s, vh = torch.linalg.svd(kernel.flatten(1), full_matrices=False)
    s = s / s.norm()
    for _ in range(steps):
        s = a * s + b * s**3 + c * s**5
    expected = (u @ s.diag().to(dtype) @ vh).reshape(shape)
    assert torch.allclose(orthogonalised(kernel, steps), expected, atol=1e-8)


@pytest.mark.parametrize("shape", [(5, 9), (9, 9)])
def test_a_matrix_takes_the_steps_of_torchs_muon(shape):
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(shape))
    theirs = nn.Parameter(ours.detach().clone())
    bias = nn.Parameter(torch.zeros(1))
    optimizer = Muon([ours], [{"params": [bias]}], lr=0.1, momentum=0.8)
    reference = torch.optim.Muon([theirs], lr=0.1, momentum=0.8, weight_decay=0.0, ns_steps=3)
    for _ in range(5):
        gradient = torch.randn(shape)
        ours.grad, theirs.grad, bias.grad = gradient.clone(), gradient.clone(), torch.zeros(1)
        with torch.no_grad():
            theirs.mul_(shape[0] ** 0.5 / theirs.norm())  # ours scales by itself
        optimizer.step()
        reference.step()
    assert torch.allclose(ours, theirs, atol=0.02)  # theirs multiplies in bfloat16


def test_the_other_parameters_take_the_steps_of_adamw():
    network, optimizer = create()
    other = copy.deepcopy(network)
    others = [other[0].bias, *other[1].parameters(), *other[3].parameters()]
    reference = AdamW(others, lr=0.01, weight_decay=0.1, fused=True)
    for _ in range(4):
        for one, two in zip(network.parameters(), other.parameters(), strict=True):
            one.grad = torch.randn_like(one)
            two.grad = one.grad.clone()
        optimizer.step()
        reference.step()
    pairs = zip(network.parameters(), other.parameters(), strict=True)
    assert [torch.equal(*pair) for pair in pairs] == [False, True, True, True, True, True]


def test_a_rate_that_is_set_is_taken_by_both_kinds():
    network, optimizer = create()
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = copy.deepcopy(network)
    trained(network, optimizer, 1)
    scaled = before[0].weight * (6**0.5 / before[0].weight.norm())
    assert torch.equal(network[0].weight, scaled)
    assert torch.equal(network[3].weight, before[3].weight)


def test_a_copy_goes_on_as_the_original_does():
    network, optimizer = create()
    trained(network, optimizer, 2)
    other, copied = copy.deepcopy((network, optimizer))
    for pair in ((network, optimizer), (other, copied)):
        trained(*pair, 2, seed=1)
    pairs = zip(network.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


def test_a_saved_state_goes_on_as_if_it_had_never_been_saved():
    straight = trained(*create(), 6)
    half, optimizer = create()
    trained(half, optimizer, 3)
    resumed, loaded = create()
    resumed.load_state_dict(half.state_dict())
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        torch.randn(4, 3, 8, 8, generator=generator)
    for _ in range(3):
        loaded.zero_grad()
        resumed(torch.randn(4, 3, 8, 8, generator=generator)).square().mean().backward()
        loaded.step()
    pairs = zip(straight.state_dict().values(), resumed.state_dict().values(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


def test_a_kernel_without_a_gradient_stays():
    network, optimizer = create()
    before = network[0].weight.detach().clone()
    network[0].weight.grad = None
    optimizer.step()
    assert torch.equal(network[0].weight, before)


def test_a_bias_is_no_kernel():
    with pytest.raises(ValueError, match=r"a kernel has two or more dimensions, got \(3,\)"):
        Muon([nn.Parameter(torch.zeros(3))], [{"params": [nn.Parameter(torch.zeros(1))]}])
