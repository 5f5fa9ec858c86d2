"""Your own network and handler in one call: log, checkpoints, curves, exact resume.

python examples/own_model.py    # again after Ctrl-C or kill -9: it continues where it was
"""

from ignite.engine import Engine, Events
from ignite.metrics import ConfusionMatrix
from torch import Tensor, nn

from ultimus_ignite import Recipe, train
from ultimus_ignite.modules import UltimusBlock


class SmallNet(nn.Module):
    """(B, 3, 32, 32) -> (B, num_classes): 64 patches of 4x4 pixels attend to each other."""

    def __init__(self, num_classes: int = 10, width: int = 16) -> None:
        super().__init__()
        self.patches = nn.Sequential(nn.Conv2d(3, width, kernel_size=4, stride=4), nn.ReLU())
        self.norm = nn.LayerNorm(width)
        self.block = UltimusBlock(width, 8, over="tokens")
        self.classifier = nn.Linear(64 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)  # (B, 64, width)
        tokens = tokens + self.block(self.norm(tokens))
        return self.classifier(tokens.flatten(1))


def count_mistakes(trainer: Engine, evaluator: Engine) -> None:
    """Print the two classes that are taken for each other most often, after each epoch."""
    ConfusionMatrix(10).attach(evaluator, "confusion")

    @evaluator.on(Events.COMPLETED)
    def print_worst_pair() -> None:
        mistakes = evaluator.state.metrics["confusion"].fill_diagonal_(0)
        true, taken_for = divmod(int(mistakes.argmax()), 10)
        print(f"{mistakes.max()} images of {true} were taken for {taken_for}")


if __name__ == "__main__":
    # Digits are not mirrored.
    recipe = Recipe(data="digits", epochs=5, batch_size=64, max_lr=0.01, flip=0.0)
    run = train(
        recipe, out="own_model_run", model=SmallNet(), configure=count_mistakes, resume=True
    )
    print(f"best accuracy {max(row['test_accuracy'] for row in run.history.rows):.1%}")
    print("the same by the command: train-cifar --model examples/own_model.py:SmallNet")
