"""Ignite engines, handlers and models for training image classifiers.

The handlers in `ultimus_ignite.handlers` attach to any Ignite Engine, `ultimus_ignite.modules` are
plain torch modules, and `ultimus_ignite.run` wires both into one training run. This module imports
none of them, so that `train-cifar --help` does not load torch.
"""
