"""`UltimusBlock` as a layer of your own model: attention over the patches of an image.

python examples/block_as_a_layer.py
"""

import torch
from torch import Tensor, nn

from ultimus_ignite.modules import UltimusBlock


class PatchClassifier(nn.Module):
    """(B, 3, 32, 32) -> (B, 10): 64 patches of 4x4 pixels attend to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 48, kernel_size=4, stride=4)
        self.norm = nn.LayerNorm(48)
        self.block = UltimusBlock(48, 8, over="tokens")
        self.classifier = nn.Linear(48, 10)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)  # (B, 64, 48)
        tokens = tokens + self.block(self.norm(tokens))
        return self.classifier(tokens.mean(dim=1))


model = PatchClassifier()
logits = model(torch.randn(2, 3, 32, 32))
print(tuple(logits.shape), sum(p.numel() for p in model.parameters()), "parameters")
