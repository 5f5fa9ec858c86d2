import math

import pytest
import torch
from torch import nn

from ultimus_ignite.modules import UltimusBlock


@torch.no_grad()
def test_features_equal_the_definition_number_by_number():
    block = UltimusBlock(5, 3).double()
    x = torch.randn(2, 5, dtype=torch.float64)
    for image, output in zip(x, block(x), strict=True):
        q, k, v = (getattr(block, name).weight @ image for name in ("query", "key", "value"))
        z = []
        for j in range(3):
            weights = [math.exp(q[i] * k[j] / math.sqrt(3)) for i in range(3)]
            z.append(sum(w * v[i] for i, w in enumerate(weights)) / sum(weights))
        torch.testing.assert_close(output, block.out(torch.stack(z)))


def test_tokens_equal_torch_multihead_attention_with_one_head():
    block = UltimusBlock(8, 8, over="tokens")
    oracle = nn.MultiheadAttention(8, 1, batch_first=True)
    with torch.no_grad():
        oracle.in_proj_weight.copy_(
            torch.cat([block.query.weight, block.key.weight, block.value.weight])
        )
        oracle.in_proj_bias.zero_()
        oracle.out_proj.weight.copy_(block.out.weight)
        oracle.out_proj.bias.copy_(block.out.bias)
    x = torch.randn(4, 6, 8)
    torch.testing.assert_close(block(x), oracle(x, x, x, need_weights=False)[0])


@pytest.mark.parametrize("over", ["features", "tokens"])
def test_one_image_does_not_see_the_others(over):
    block = UltimusBlock(48, 8, over=over)
    x = torch.randn(4, 7, 48)
    changed = x.clone()
    changed[1:] += 1
    assert torch.equal(block(x)[0], block(changed)[0])
    assert not torch.equal(block(x)[1], block(changed)[1])


@pytest.mark.parametrize("over", ["features", "tokens"])
def test_gradients_reach_every_parameter(over):
    block = UltimusBlock(48, 8, over=over)
    block(torch.randn(4, 7, 48)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in block.parameters())


def test_seed_size():
    assert sum(p.numel() for p in UltimusBlock(48, 8).parameters()) == 1584


@pytest.mark.parametrize(
    "arguments", [{"dim": 0, "key_dim": 8}, {"dim": 48, "key_dim": -1}, {"over": "batch"}]
)
def test_wrong_arguments_are_named(arguments):
    with pytest.raises(ValueError, match="dim|over"):
        UltimusBlock(**{"dim": 48, "key_dim": 8, **arguments})
