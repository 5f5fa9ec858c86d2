import itertools
import shutil

import pytest
import torch
import torch.nn.functional as F

from ultimus_ignite.modules import UltimusBlock, UltimusTokenNet
from ultimus_ignite.modules.ultimus_token_net import (
    GatedPool,
    RepeatedConvolution,
    TokenAttention,
)

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = UltimusTokenNet()
    for _ in range(3):  # running statistics that are not those of the start
        model(IMAGES)
    return model.eval()


def test_no_more_parameters_than_the_seeds_model_and_a_block_over_tokens(model):
    assert sum(p.numel() for p in model.parameters()) <= 25_786
    blocks = [m for m in model.modules() if isinstance(m, UltimusBlock)]
    assert [block.over for block in blocks] == ["tokens"]


def test_one_images_logits_do_not_depend_on_the_batch(model):
    changed = IMAGES.clone()
    changed[1:] += 1
    assert torch.equal(model(IMAGES)[0], model(changed)[0])
    torch.testing.assert_close(model(IMAGES)[:1], model(IMAGES[:1]))


def test_gradients_reach_every_parameter(model):
    F.cross_entropy(model.train()(IMAGES), torch.arange(4)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_every_token_sees_every_other():
    torch.manual_seed(0)
    attention = TokenAttention(64, 8)
    x = torch.randn(1, 64, 4, 4)
    changed = x.clone()
    changed[..., 0, 0] += torch.randn(64)
    assert not torch.equal(attention(x)[..., 3, 3], attention(changed)[..., 3, 3])


def test_a_repeated_convolution_is_several_residual_ones_with_the_same_weights():
    torch.manual_seed(0)
    repeated = RepeatedConvolution(5, times=3)
    x = torch.randn(4, 5, 6, 7)
    expected = x
    for inner, outer in zip(repeated.inner_norms, repeated.outer_norms, strict=True):
        inner.weight.data.uniform_(0.5, 2)
        outer.bias.data.normal_()
        y = F.conv2d(expected, repeated.depthwise.weight, padding=1, groups=5)
        y = F.silu(F.batch_norm(y, None, None, inner.weight, inner.bias, training=True))
        y = F.conv2d(y, repeated.pointwise.weight)
        y = F.silu(F.batch_norm(y, None, None, outer.weight, outer.bias, training=True))
        expected = expected + y
    torch.testing.assert_close(repeated(x), expected)


@pytest.mark.parametrize("size", [None, 2])
def test_a_gate_multiplies_the_mean_of_each_patch(size):
    torch.manual_seed(0)
    pool = GatedPool(3, size=size).eval()
    pool.norm.running_mean.normal_()
    pool.norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 3, 4, 4)
    for image, channel, row, column in itertools.product(range(2), range(3), range(2), range(2)):
        patch = x[image, channel, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        mean, variance = pool.norm.running_mean[channel], pool.norm.running_var[channel]
        gate = torch.sigmoid((patch.max() - mean) / (variance + pool.norm.eps).sqrt())
        found = pool(x)[image, channel, row, column]
        torch.testing.assert_close(found, patch.mean() * gate)


def test_bfloat16_agrees(model):
    exact = model(IMAGES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(IMAGES).float()
    # bfloat16 has 8 bits: 0.4 % a rounding, some twenty layers one after the other.
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.05)


def test_the_traced_and_the_exported_model_compute_the_same(model):
    """`aot_eager` traces the model as a whole like the default backend, and compiles no C++."""
    traced = torch.compile(model, backend="aot_eager", fullgraph=True)
    dynamic = ({0: torch.export.Dim("batch", min=1)},)
    exported = torch.export.export(model, (IMAGES,), dynamic_shapes=dynamic).module()
    torch.testing.assert_close(traced(IMAGES), model(IMAGES))
    torch.testing.assert_close(exported(IMAGES[:3]), model(IMAGES[:3]))


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no compiler")
def test_a_compiled_stage_computes_the_same(model):
    """The C++ of two stages takes half as long as that of the model."""
    stage = model.stages[-3:]
    x = torch.randn(4, 64, 8, 8)
    torch.testing.assert_close(torch.compile(stage)(x), stage(x))


@pytest.mark.parametrize("size", [(8, 8), (96, 96), (40, 24), (9, 31)])
def test_images_of_other_sizes(model, size):
    tokens = []
    first = next(m for m in model.modules() if isinstance(m, UltimusBlock))
    first.register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0].shape[1]))
    assert torch.isfinite(model(torch.randn(2, 3, *size))).all()
    assert tokens == [(size[0] // 8) * (size[1] // 8)]


@pytest.mark.parametrize("shape", [(2, 3, 32, 7), (2, 3, 7, 32), (2, 1, 32, 32), (3, 32, 32)])
def test_images_that_it_does_not_take_are_named(model, shape):
    with pytest.raises(ValueError, match=r"takes .*8 or more, got \("):
        model(torch.zeros(shape))


@pytest.mark.slow
def test_the_compiled_model_computes_the_same(model):
    torch.testing.assert_close(torch.compile(model)(IMAGES), model(IMAGES))
