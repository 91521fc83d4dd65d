"""Tag of the wheel, and the README as its long description.

The tag names any machine, or the one whose compiled kernels kernels/wheel.py has put into the tree.
"""

import os
import re
import tomllib
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel

HERE = Path(__file__).parent
PLATFORM = os.environ.get("SCANLAB_WHEEL_PLATFORM")  # such as linux_x86_64
RELATIVE_LINK = re.compile(r"(!?)(\[[^\[\]]*\])\((?!\w+:|#)([^()\s]+)\)")


class Package(Distribution):
    """A distribution for one kind of machine where it brings kernels."""

    def has_ext_modules(self) -> bool:
        """Return whether its files belong to one kind of machine."""
        return PLATFORM is not None


class TaggedWheel(bdist_wheel):
    """A wheel for every Python 3: its libraries know nothing of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tags of Python, ABI and platform."""
        return "py3", "none", PLATFORM or "any"


def long_description() -> str:
    """Return the README with links that lead to the repository, also from the page of a package index."""
    project = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    repository = project["urls"]["Repository"]

    def absolute(link: re.Match[str]) -> str:
        view = "raw" if link[1] else "blob"  # a picture is its file, anything else the page that shows it
        return f"{link[1]}{link[2]}({repository}/{view}/main/{link[3]})"

    return RELATIVE_LINK.sub(absolute, (HERE / "README.md").read_text(encoding="utf-8"))


setup(
    distclass=Package,
    cmdclass={"bdist_wheel": TaggedWheel},
    long_description=long_description(),
    long_description_content_type="text/markdown",
)
