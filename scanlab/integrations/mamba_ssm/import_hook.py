"""How the drop-in gets under imports: a finder that stands first, wraps what is there and serves the rest."""

from __future__ import annotations

import functools
import importlib.util
import logging
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from torch import Tensor

from scanlab.integrations.mamba_ssm import manifest
from scanlab.integrations.mamba_ssm.fallback import imports_without_fallback

log = logging.getLogger("scanlab")

FUNCTIONS = (FunctionType, BuiltinFunctionType)


def install() -> None:
    """Serve `mamba_ssm`, `causal_conv1d` and their compiled modules from now on; does nothing a second time.

    Modules that are imported already are wrapped too, and so is what others imported from them. What a module
    decided when it failed to import one of them (a name set to None, a slower path) stays decided: install first.
    """
    if _finder() is not None:
        return
    finder = Finder()
    sys.meta_path.insert(0, finder)
    for name in sorted(manifest.MODULES & sys.modules.keys() - manifest.UNWRAPPED):
        finder.wrap(sys.modules[name])
    _rebind(finder.wrappers)


def uninstall() -> None:
    """Undo `install`, but for what others keep of it in places that are no module."""
    finder = _finder()
    if finder is None:
        return
    sys.meta_path.remove(finder)
    _rebind({id(wrapper): wrapper.__wrapped__ for wrapper in finder.wrappers.values()})
    for module, name in finder.added:
        delattr(module, name)
    for name in finder.replaced:
        sys.modules.pop(name, None)
        parent, _, child = name.rpartition(".")
        vars(sys.modules.get(parent, ModuleType(parent))).pop(child, None)


def _finder() -> Finder | None:
    return next((each for each in sys.meta_path if isinstance(each, Finder)), None)


class Finder(MetaPathFinder):
    """Finds the modules of manifest.MODULES: where others find them too, theirs, wrapped; else scanlab's.

    wrappers  by id of the function that each wraps
    added     (module, name) of what was missing in a module that is there
    replaced  the names of the modules that are scanlab's
    """

    def __init__(self) -> None:
        self.wrappers: dict[int, Any] = {}
        self.added: list[tuple[ModuleType, str]] = []
        self.replaced: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of `fullname`, or None where it is no business of ours."""
        if fullname not in manifest.MODULES:
            return None
        there = self._elsewhere(fullname, path, target)
        if there is not None and fullname in manifest.UNWRAPPED:
            return None
        if there is not None:
            assert there.loader is not None
            there.loader = Wrapping(there.loader, self)
            return there
        # Beside modules of theirs, one that they lack and that we could not use either is really missing.
        if fullname not in manifest.SERVED and fullname.partition(".")[0] not in self.replaced:
            return None
        return importlib.util.spec_from_loader(fullname, Serving(self), is_package=fullname in manifest.PACKAGES)

    def _elsewhere(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None) -> ModuleSpec | None:
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec = find(fullname, path, target) if find is not None and finder is not self else None
            # A folder that merely has the name is found as a namespace, which has no code.
            if spec is not None and spec.loader is not None and spec.origin is not None:
                found: ModuleSpec = spec
                return found
        return None

    def serve(self, module: ModuleType) -> None:
        """Fill `module` with what scanlab has in its place."""
        name = module.__name__
        self.replaced.add(name)
        vars(module).update(manifest.served(name))
        vars(module)["__getattr__"] = functools.partial(_missing, name, manifest.unprovided(name))
        if name in manifest.VERSIONS:
            vars(module)["__version__"] = manifest.VERSIONS[name]

    def wrap(self, module: ModuleType) -> None:
        """Let the functions of `module` choose by device, and add those it lacks; its classes stay as they are."""
        for name, ours in manifest.served(module.__name__).items():
            theirs = vars(module).get(name)
            if theirs is None:
                setattr(module, name, ours)
                self.added.append((module, name))
            elif isinstance(theirs, FUNCTIONS) and not _is_wrapper(theirs) and not name.endswith("_ref"):
                wrapper = by_device(theirs, ours)
                self.wrappers[id(theirs)] = wrapper
                setattr(module, name, wrapper)


class Serving(Loader):
    """Loads a module of scanlab's under its official name."""

    def __init__(self, finder: Finder) -> None:
        self.finder = finder

    def exec_module(self, module: ModuleType) -> None:
        """Fill the module."""
        self.finder.serve(module)


class Wrapping(Loader):
    """Loads a module as it would have been and wraps it; one that cannot be loaded here is replaced, aloud."""

    def __init__(self, theirs: Loader, finder: Finder) -> None:
        self.theirs = theirs
        self.finder = finder

    def __getattr__(self, name: str) -> Any:
        return getattr(self.theirs, name)  # sources, resources: whatever this loader can beside loading

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the loader that found it does."""
        return self.theirs.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module as it is; where it raises, have scanlab in its place and say why."""
        try:
            self.theirs.exec_module(module)
        except Exception as error:  # noqa: BLE001  # whatever stops a package made for CUDA is the reason to serve it
            log.warning(
                "scanlab: %s cannot be imported here (%s: %s); scanlab serves it.",
                module.__name__,
                type(error).__name__,
                error,
            )
            self.finder.serve(module)
            return
        self.finder.wrap(module)


def _missing(module: str, placeholders: Mapping[str, type], name: str) -> type:
    """Return the placeholder of `name` to an import without a fallback; to all other code the name is absent."""
    if name in placeholders and imports_without_fallback(sys._getframe(1)):
        return placeholders[name]
    raise AttributeError(f"module {module!r} has no attribute {name!r}: scanlab, which stands in for it, lacks it.")


def by_device(theirs: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
    """A function that calls `ours` where its first tensor is on the CPU, and `theirs` for all others."""

    @functools.wraps(theirs)
    def chosen(*args: Any, **kwargs: Any) -> Any:
        first = next((each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)), None)
        serves = ours if first is not None and first.is_cpu else theirs
        return serves(*args, **kwargs)

    chosen.__scanlab__ = ours  # type: ignore[attr-defined]
    return chosen


def _is_wrapper(function: object) -> bool:
    return hasattr(function, "__scanlab__")


def _rebind(replacements: Mapping[int, object]) -> None:
    """Replace objects, given by id, wherever a module holds them."""
    modules: Iterable[object] = list(sys.modules.values())
    for module in modules:
        if isinstance(module, ModuleType):
            for name, value in list(vars(module).items()):
                if id(value) in replacements:
                    setattr(module, name, replacements[id(value)])
