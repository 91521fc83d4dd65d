"""Run the wheel for Linux on Arm on an emulated processor, and compare it with this machine.

    python tests/arm/emulate.py              # in a clone on Debian 12, with qemu-user and g++-aarch64-linux-gnu

Everything goes to build/arm: the wheel, Debian's Python and torch for Arm, a download of about 170 MB. What is there
already is kept. No compiler can be found from within. Emulation is about a hundred times slower than the processor, so
that times say nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOME = ROOT / "build" / "arm"
CHECK = Path(__file__).with_name("check_wheel.py")
# The oldest torch that the wheel is promised for, which PyPI has without CUDA, and what it and scanlab import. pip
# judges conditional requirements by the machine that it runs on, so that they are named.
PACKAGES = (
    *("torch==2.10.0", "numpy", "filelock", "platformdirs", "safetensors"),
    *("typing_extensions", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "fsspec"),
)


def run(*words: object, **environment: str) -> None:
    """Run a command and end where it fails."""
    done = subprocess.run([str(word) for word in words], env=os.environ | environment, check=False)
    if done.returncode:
        sys.exit(f"{words[0]} failed with status {done.returncode}: {' '.join(map(str, words))}")


def debian(folder: Path) -> None:
    """Unpack Debian's Python for Arm, with the libraries that it and torch need, from the sources of this system.

    Nothing on the system changes.
    """
    apt, archives = HOME / "apt", HOME / "apt" / "archives"
    for made in (apt / "lists" / "partial", archives / "partial", folder):
        made.mkdir(parents=True, exist_ok=True)
    (apt / "status").touch()
    places = {
        **{"Dir::State::Lists": apt / "lists", "Dir::State::Status": apt / "status"},
        **{"Dir::Cache::Archives": archives, "Dir::Cache::PkgCache": ""},
        **{"APT::Architecture": "arm64", "APT::Architectures": "arm64", "Debug::NoLocking": "1"},
    }
    options = [word for name, value in places.items() for word in ("-o", f"{name}={value}")]
    run("apt-get", *options, "--quiet", "update")
    packages = ("python3.11", "libstdc++6", "libgomp1")
    run("apt-get", *options, "--quiet", "--yes", "--no-install-recommends", "--download-only", "install", *packages)
    for archive in archives.glob("*.deb"):
        run("dpkg-deb", "--extract", archive, folder)


def packages(folder: Path) -> None:
    """Install torch and the other dependencies for Arm."""
    platforms = [f"--platform=manylinux_{version}_aarch64" for version in ("2_17", "2_27", "2_28")]
    target = ("--target", folder, "--no-deps", "--only-binary", ":all:", "--python-version", "3.11", *platforms)
    run(sys.executable, "-m", "pip", "install", "--quiet", *target, *PACKAGES)


def main() -> None:
    """Make what is missing, and run the check on this machine and on the emulated one."""
    system, site = HOME / "system", HOME / "site"
    if not (system / "usr" / "bin" / "python3.11").exists():
        debian(system)
    if not (site / "torch").exists():
        packages(site)
    run(sys.executable, ROOT / "kernels" / "wheel.py", "--machine", "aarch64", "--outdir", HOME / "dist")
    wheel = max((HOME / "dist").glob("*.whl"), key=lambda path: path.stat().st_mtime)
    anywhere = ("--no-deps", "--upgrade", "--platform", "manylinux_2_34_aarch64", "--only-binary", ":all:")
    run(sys.executable, "-m", "pip", "install", "--quiet", "--target", site, *anywhere, wheel)
    results, unused = HOME / "results.pt", str(HOME / "empty")
    run(sys.executable, CHECK, results, "--write")
    emulated = {"PYTHONPATH": str(site), "PATH": unused, "SCANLAB_CACHE": unused, "XDG_DATA_HOME": unused}
    settings = [word for name, value in emulated.items() for word in ("-E", f"{name}={value}")]
    run("qemu-aarch64", *settings, "-L", system, system / "usr" / "bin" / "python3.11", CHECK, results)


if __name__ == "__main__":
    main()
