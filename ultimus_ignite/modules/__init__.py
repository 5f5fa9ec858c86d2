"""The models and their attention block: plain torch modules, for any training loop."""

from ultimus_ignite.modules.ultimus_block import UltimusBlock
from ultimus_ignite.modules.ultimus_net import UltimusNet
from ultimus_ignite.modules.ultimus_token_net import UltimusTokenNet
from ultimus_ignite.modules.ultimus_token_net_large import UltimusTokenNetLarge

__all__ = ["MODELS", "UltimusBlock", "UltimusNet", "UltimusTokenNet", "UltimusTokenNetLarge"]

MODELS = {model.__name__: model for model in (UltimusNet, UltimusTokenNet, UltimusTokenNetLarge)}
"""The models that a recipe may name, each called with ``num_classes=``."""
