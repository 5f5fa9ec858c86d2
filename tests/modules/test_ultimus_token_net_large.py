import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ultimus_ignite.modules import UltimusBlock, UltimusTokenNetLarge

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = UltimusTokenNetLarge(widths=(32, 40, 48), key_dim=8)
    model(IMAGES)  # running statistics that are not those of the start
    return model.eval()


def test_one_images_logits_do_not_depend_on_the_batch(model):
    changed = IMAGES.clone()
    changed[1:] += 1
    assert torch.equal(model(IMAGES)[0], model(changed)[0])
    torch.testing.assert_close(model(IMAGES)[:1], model(IMAGES[:1]))


def test_gradients_reach_every_parameter(model):
    F.cross_entropy(model.train()(IMAGES), torch.arange(4)).backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())


def test_a_convolution_begins_as_the_identity():
    model = UltimusTokenNetLarge()
    x = torch.randn(2, 24, 6, 6)
    first = next(m for m in model.stages if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3))
    torch.testing.assert_close(first(x)[:, :24], x)
    assert first(x)[:, 24:].abs().sum() > 0


def test_bfloat16_agrees(model):
    exact = model(IMAGES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(IMAGES).float()
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.05)  # bfloat16 has 8 bits


def test_the_traced_and_the_exported_model_compute_the_same(model):
    """`aot_eager` compiles no C++: that of a stage is compiled in test_ultimus_token_net.py."""
    traced = torch.compile(model, backend="aot_eager", fullgraph=True)
    dynamic = ({0: torch.export.Dim("batch", min=1)},)
    exported = torch.export.export(model, (IMAGES,), dynamic_shapes=dynamic).module()
    torch.testing.assert_close(traced(IMAGES), model(IMAGES))
    torch.testing.assert_close(exported(IMAGES[:3]), model(IMAGES[:3]))


@pytest.mark.parametrize("size", [(9, 9), (16, 16), (96, 96), (41, 24)])
def test_images_of_other_sizes(model, size):
    tokens = []
    first = next(m for m in model.modules() if isinstance(m, UltimusBlock))
    first.register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0].shape[1]))
    assert torch.isfinite(model(torch.randn(2, 3, *size))).all()
    assert tokens == [((size[0] - 1) // 4) * ((size[1] - 1) // 4)]


@pytest.mark.parametrize("shape", [(2, 3, 32, 8), (2, 3, 8, 32), (2, 1, 32, 32), (3, 32, 32)])
def test_images_that_it_does_not_take_are_named(model, shape):
    with pytest.raises(ValueError, match=r"takes .*9 or more, got \("):
        model(torch.zeros(shape))


@pytest.mark.slow
def test_the_compiled_model_computes_the_same(model):
    torch.testing.assert_close(torch.compile(model)(IMAGES), model(IMAGES))
