"""What a run is made of. Only the standard library: `--help` must not wait for torch."""

from dataclasses import dataclass
from typing import Literal

from ultimus_ignite.errors import UserError


class RecipeError(UserError, ValueError):
    """A field of a recipe is out of range; the message names it and says what is allowed."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A full training recipe; the defaults (`classic`) are those of the original notebook.

    Raises:
        RecipeError: a field is out of its range.

    Example:
        >>> Recipe(epochs=3).batch_size
        512
        >>> Recipe(epochs=0)
        Traceback (most recent call last):
            ...
        ultimus_ignite.recipe.RecipeError: epochs must be at least 1, got 0
    """

    model: str = "UltimusNet"
    """Class in ultimus_ignite.modules."""
    data: str = "auto"
    """cifar10, cifar100, digits, folder:DIR, or auto: cifar10 if available, else digits."""
    data_dir: str = "~/.cache/ultimus-ignite"
    """Folder for downloads and decoded images."""
    epochs: int = 24
    """Passes over the training images."""
    batch_size: int = 512
    """Images an iteration; the epoch's last batch keeps what is left over."""
    max_lr: float | Literal["auto"] = 0.018566355334451112
    """Peak learning rate: 0.004 * 10 ** (66 / 99), the notebook's; auto: by a range test."""
    pct_start: float = 5 / 24
    """Share of the iterations spent rising to max_lr: 5 of 24 epochs."""
    anneal_strategy: Literal["linear", "cos"] = "linear"
    """Shape of the rise and the fall."""
    div_factor: float = 1000.0
    """max_lr / div_factor is the first rate."""
    final_div_factor: float = 1000.0
    """The first rate / final_div_factor is the last rate."""
    weight_decay: float = 0.0
    """Decoupled from the gradient, as in AdamW; on weights of two dimensions or more."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes in training; evaluation has none."""
    mirror: bool = False
    """Evaluate the mean of the logits of each image and its mirror image; twice the time."""
    accumulation_steps: int = 1
    """Parts that a batch is split into to save memory; the rate counts whole batches."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the forward pass, by autocast; float16 scales its gradients."""
    compile: bool = False
    """Compile the model; the first iterations then take longer."""
    max_grad_norm: float | None = None
    """Gradients are scaled down to this 2-norm; never when None."""
    max_loss_ratio: float | None = 20.0
    """The run ends when 5 losses in a row are this many times their running median."""
    crop_padding: int = 2
    """Pixels reflected around an image before a random 32x32 crop: 32 -> 36."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    cutout: float = 0.5
    """Probability of one square hole."""
    cutout_size: int = 8
    """Side of the hole, in pixels."""
    val_fraction: float = 0.0
    """Share of the training images held out to judge the epochs; then one test at the end."""
    grey: float = 0.0
    """Probability of removing the colour; the notebook's 0.5 costs 1.3 points of accuracy."""
    checkpoint_every: int | None = None
    """Iterations between two checkpoints, besides the one after each epoch."""
    seed: int = 1
    """Everything random is a function of it and the iteration."""
    device: str = "auto"
    """auto (cuda, then mps, then cpu), or a torch device such as cuda:1."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulation_steps", "checkpoint_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RecipeError(f"{name} must be at least 1, got {value}")
        for name in ("max_lr", "div_factor", "final_div_factor", "max_grad_norm"):
            value = getattr(self, name)
            if value not in (None, "auto") and not 0 < value < float("inf"):
                raise RecipeError(f"{name} must be positive, got {value}")
        if not 0 <= self.weight_decay < float("inf"):
            raise RecipeError(f"weight_decay must be at least 0, got {self.weight_decay}")
        for name in ("pct_start", "label_smoothing", "flip", "cutout", "grey"):
            if not 0 <= getattr(self, name) <= 1:
                raise RecipeError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if not 0 <= self.val_fraction < 1:
            raise RecipeError(f"val_fraction must lie in [0, 1), got {self.val_fraction}")
        if self.max_loss_ratio is not None and not self.max_loss_ratio > 1:
            raise RecipeError(f"max_loss_ratio must be above 1, got {self.max_loss_ratio}")
        if not 1 <= self.cutout_size <= 32:
            raise RecipeError(f"cutout_size must lie in [1, 32], got {self.cutout_size}")
        if not 0 <= self.crop_padding <= 31:
            raise RecipeError(f"crop_padding must lie in [0, 31], got {self.crop_padding}")
        if self.seed < 0:
            raise RecipeError(f"seed must be at least 0, got {self.seed}")


RecipeName = Literal["classic", "tokens", "large"]
RECIPES: dict[RecipeName, Recipe] = {
    "classic": Recipe(),
    # No more parameters than classic, which hardly overfit: no cutout.
    "tokens": Recipe(model="UltimusTokenNet", batch_size=256, max_lr=0.03, cutout=0.0),
    "large": Recipe(
        model="UltimusTokenNetLarge",
        max_lr=0.01,
        # A step turns a normed kernel by about sqrt(2 x rate x decay) = 0.1, as in airbench94.
        weight_decay=0.5,
        label_smoothing=0.2,
        cutout=0.0,
        precision="bfloat16",
        mirror=True,
    ),
}


@dataclass(frozen=True, kw_only=True)
class RangeTest:
    """The learning rates that a range test tries; the defaults are those of the notebook."""

    start_lr: float = 0.004
    """Rate of the first iteration."""
    end_lr: float = 0.04
    """Rate of the last iteration."""
    iterations: int = 100
    """Iterations of a test; their rates rise by equal factors."""
