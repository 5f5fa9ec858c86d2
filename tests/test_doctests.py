"""Every docstring's example runs, under the names that users import."""

import doctest
import importlib
import pkgutil

import pytest

import ultimus_ignite
import ultimus_ignite.handlers


def modules():
    for package in (ultimus_ignite, ultimus_ignite.handlers):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            yield module.name


@pytest.mark.parametrize("name", sorted(set(modules())))
def test_doctests(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0
