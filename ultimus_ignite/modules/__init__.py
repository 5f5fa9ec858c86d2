"""The model and its attention block: plain torch modules, for any training loop."""

from ultimus_ignite.modules.ultimus_block import UltimusBlock
from ultimus_ignite.modules.ultimus_net import UltimusNet
from ultimus_ignite.modules.ultimus_token_net import UltimusTokenNet
from ultimus_ignite.modules.ultimus_token_net_large import UltimusTokenNetLarge

__all__ = ["UltimusBlock", "UltimusNet", "UltimusTokenNet", "UltimusTokenNetLarge"]
