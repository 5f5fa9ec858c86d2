"""`handlers/` stands at the top of the repository and is installed as `ultimus_ignite.handlers`."""

from setuptools import setup

setup(
    packages=[
        "ultimus_ignite",
        "ultimus_ignite.commands",
        "ultimus_ignite.data",
        "ultimus_ignite.handlers",
        "ultimus_ignite.handlers.checkpoints",
        "ultimus_ignite.handlers.support",
        "ultimus_ignite.modules",
        "ultimus_ignite.results",
        "ultimus_ignite.results.report",
    ],
    package_dir={"ultimus_ignite.handlers": "handlers"},
    package_data={
        "ultimus_ignite": ["py.typed"],
        "ultimus_ignite.results.report": ["page.html.j2", "style.css"],
    },
)
