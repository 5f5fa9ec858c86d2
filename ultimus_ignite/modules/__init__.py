"""The model and its attention block: plain torch modules, for any training loop."""

from ultimus_ignite.modules.ultimus_block import UltimusBlock
from ultimus_ignite.modules.ultimus_net import UltimusNet

__all__ = ["UltimusBlock", "UltimusNet"]
