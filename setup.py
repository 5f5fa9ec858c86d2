"""`handlers/` stands at the top of the repository and is installed as `ultimus_ignite.handlers`."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["ultimus_ignite", "ultimus_ignite.*"]),
        *(f"ultimus_ignite.{name}" for name in find_packages(include=["handlers", "handlers.*"])),
    ],
    package_dir={"ultimus_ignite.handlers": "handlers"},
    package_data={
        "ultimus_ignite": ["py.typed"],
        "ultimus_ignite.results.report": ["page.html.j2", "style.css"],
    },
)
