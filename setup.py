"""Tag of the wheel: any machine, or the one whose compiled kernels kernels/wheel.py has put into the tree."""

import os

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel

PLATFORM = os.environ.get("SCANLAB_WHEEL_PLATFORM")  # such as linux_x86_64


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


setup(distclass=Package, cmdclass={"bdist_wheel": TaggedWheel})
