"""Augmentation of a whole batch at once, on the device of the batch.

Shape letters: B images of a batch, C channels, H and W height and width.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

HOLE_VALUE = 0.473  # fills a cutout after normalisation, as in the original notebook
GREY_WEIGHTS = (0.2989, 0.587, 0.114)  # red, green, blue: torchvision's rgb_to_grayscale


@dataclass(frozen=True)
class Normalize:
    """uint8 images to floats of mean 0 and variance 1 per channel.

    Args:
        mean: per channel, in [0, 1].
        std: per channel, in [0, 1].

    Example:
        >>> white = torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)
        >>> Normalize((0.5,) * 3, (0.25,) * 3)(white).flatten()
        tensor([2., 2., 2.])
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """``(B, C, H, W)`` uint8 -> the same shape, float32."""
        return self.apply_(images.float())

    def apply_(self, images: Tensor) -> Tensor:
        """The same in place, on floats from 0 to 255."""
        scale, shift = _scale_and_shift(self.mean, self.std, images.device)
        return images.mul_(scale).add_(shift)


@lru_cache
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Both float32 (C, 1, 1). They are cached, because each copy to a GPU waits for the GPU."""
    means, stds = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (mean, std))
    scale = 1 / (255 * stds.clamp_min(1 / 255))  # a channel without variance becomes zeros
    shift = -255 * means * scale
    return scale.float().to(device), shift.float().to(device)


@dataclass(frozen=True)
class Draws:
    """The random parameters of each image of a batch; every field has shape (B,)."""

    top: Tensor  # row of the crop in the padded image
    left: Tensor
    flip: Tensor  # bool
    hole_top: Tensor  # row of the hole, which lies wholly inside the image
    hole_left: Tensor
    hole: Tensor  # bool
    grey: Tensor  # bool

    def part(self, images: slice) -> "Draws":
        """Those of some images of the batch."""
        return Draws(**{k: v[images] for k, v in vars(self).items()})

    def to(self, device: torch.device) -> "Draws":
        return Draws(**{k: v.to(device, non_blocking=True) for k, v in vars(self).items()})


@dataclass(frozen=True)
class Augment:
    """Reflected padding and random crop, flip, grey, normalisation, cutout, in this order.

    By default it only normalises.

    Args:
        normalize: the normalisation after the change of colours.
        crop_padding: pixels of reflected padding on each side before the crop, fewer than the image
            has in a row or column.
        flip: probability of a horizontal flip.
        cutout: probability of one square hole, filled with 0.473 after normalisation.
        cutout_size: side of the hole, in pixels, at most that of the image.
        grey: probability of removing the colour.

    Raises:
        ValueError: there is a cutout, but it has no size; or, when the parameters of a batch are
            drawn, the padding or the hole does not fit the images.

    Example:
        >>> augment = Augment(Normalize((0.5,) * 3, (0.25,) * 3), crop_padding=2, flip=0.5)
        >>> images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
        >>> draws = augment.draw(images.shape, torch.Generator().manual_seed(0))
        >>> augment(images, draws).shape
        torch.Size([4, 3, 32, 32])
    """

    normalize: Normalize
    crop_padding: int = 0
    flip: float = 0.0
    cutout: float = 0.0
    cutout_size: int = 0
    grey: float = 0.0

    def __post_init__(self) -> None:
        if self.cutout > 0 and self.cutout_size < 1:
            raise ValueError(f"cutout needs a cutout_size of at least 1, got {self.cutout_size}")

    def draw(self, shape: torch.Size, generator: torch.Generator) -> Draws:
        """Draw the parameters of a batch of ``shape`` (B, C, H, W)."""
        batch, _, height, width = shape
        side = min(height, width)
        if not 0 <= self.crop_padding < side:  # a reflection ends at the opposite border
            raise ValueError(
                f"crop_padding must be from 0 to {side - 1} for images of {height}x{width} "
                f"pixels, got {self.crop_padding}"
            )
        if self.cutout > 0 and self.cutout_size > side:
            raise ValueError(
                f"cutout_size must be from 1 to {side} for images of {height}x{width} pixels, "
                f"got {self.cutout_size}"
            )
        u = torch.rand(7, batch, generator=generator)
        offsets = 2 * self.crop_padding + 1
        return Draws(
            top=(u[0] * offsets).long(),
            left=(u[1] * offsets).long(),
            flip=u[2] < self.flip,
            hole_top=(u[3] * (height - self.cutout_size + 1)).long(),
            hole_left=(u[4] * (width - self.cutout_size + 1)).long(),
            hole=u[5] < self.cutout,
            grey=u[6] < self.grey,
        )

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """``(B, C, H, W)`` uint8 -> the same shape, float32, normalised."""
        return self._cut(self._colour(self._crop_and_flip(images, draws), draws), draws)

    def _crop_and_flip(self, images: Tensor, draws: Draws) -> Tensor:
        """Padding, crop and flip in one gather over H x W, because they only move pixels."""
        height, width = images.shape[-2:]
        rows = _reflected(draws.top - self.crop_padding, height)  # (B, H)
        columns = _reflected(draws.left - self.crop_padding, width)
        columns = torch.where(draws.flip.view(-1, 1), columns.flip(1), columns)
        source = rows.mul_(width).unsqueeze(2) + columns.unsqueeze(1)  # (B, H, W)
        source = source.flatten(1).unsqueeze(1).expand(-1, images.shape[1], -1)
        return images.flatten(2).gather(2, source).view_as(images)

    def _colour(self, images: Tensor, draws: Draws) -> Tensor:
        """Grey and normalisation, in place: another copy of the floats costs more than both."""
        images = images.float()
        if self.grey > 0:
            red, green, blue = images.unbind(1)
            r, g, b = GREY_WEIGHTS
            grey = (red * r).add_(green, alpha=g).add_(blue, alpha=b)  # (B, H, W)
            is_grey = draws.grey.float().view(-1, 1, 1, 1)
            images.lerp_(grey.unsqueeze(1), is_grey)  # exact at 0 and 1
        return self.normalize.apply_(images)

    def _cut(self, images: Tensor, draws: Draws) -> Tensor:
        """Fill the holes. An image without a hole gets its own pixels back at that place."""
        if self.cutout == 0:
            return images
        side = torch.arange(self.cutout_size, device=images.device)
        rows = (draws.hole_top.view(-1, 1) + side) * images.shape[-1]
        columns = draws.hole_left.view(-1, 1) + side
        hole = (rows.unsqueeze(2) + columns.unsqueeze(1)).flatten(1)  # (B, side * side)
        hole = hole.unsqueeze(1).expand(-1, images.shape[1], -1)
        pixels = images.flatten(2)
        filled = pixels.gather(2, hole).masked_fill_(draws.hole.view(-1, 1, 1), HOLE_VALUE)
        return pixels.scatter_(2, hole, filled).view_as(images)


def _reflected(start: Tensor, size: int) -> Tensor:
    """``(B, size)`` positions from ``start`` on, reflected at the borders: -1 becomes 1."""
    positions = (start.view(-1, 1) + torch.arange(size, device=start.device)).abs_()
    return torch.minimum(positions, 2 * (size - 1) - positions)
