"""The optimizers of the recipes, and their learning rates."""
