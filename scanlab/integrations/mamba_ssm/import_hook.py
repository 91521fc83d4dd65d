"""Import hook of the drop-in: a finder that stands first, wraps the modules that are there and serves the others."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import logging
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, DistributionFinder, MetadataPathFinder
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from scanlab.integrations import csm_triton_hook, transformers_hook
from scanlab.integrations.mamba_ssm import manifest
from scanlab.integrations.mamba_ssm.fallback import imports_name, imports_without_fallback

log = logging.getLogger("scanlab")

FUNCTIONS = (FunctionType, BuiltinFunctionType)
OTHER_FINDERS = (transformers_hook.finder, csm_triton_hook.finder)


def install() -> None:
    """Serve `mamba_ssm`, `causal_conv1d` and their compiled modules from now on; does nothing a second time.

    Modules that are imported already are wrapped too, and so is what others imported from them. What a module
    decided when it failed to import one of them (a name set to None, a slower path) stays decided: install first.
    """
    if _finder() is not None:
        return
    finder = Finder()
    sys.meta_path[:0] = [finder, *OTHER_FINDERS]
    for name in sorted(sys.modules):
        if manifest.official_name(name) in manifest.MODULES - manifest.UNWRAPPED:
            finder.wrap(sys.modules[name])
    _rebind(finder.wrappers)


def uninstall() -> None:
    """Undo `install`, except for references that other code keeps outside of modules."""
    finder = _finder()
    if finder is None:
        return
    for each in (finder, *OTHER_FINDERS):
        sys.meta_path.remove(each)
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
    """Finder of the modules of manifest.MODULES: those of others, wrapped, and scanlab's where there are none.

    A copy of mamba_ssm (`fork.mamba_ssm.ops.triton.layernorm`, `fork.bimamba_ssm...`) is wrapped like mamba_ssm.

    Attributes:
        wrappers: The wrapper of each function, by the id of the function.
        added: (module, name) of each addition to a foreign module.
        replaced: Names of the modules that are scanlab's.
    """

    def __init__(self) -> None:
        self.wrappers: dict[int, Any] = {}
        self.added: list[tuple[ModuleType, str]] = []
        self.replaced: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of `fullname`, or None where this finder does not serve it."""
        official = manifest.official_name(fullname)
        if official not in manifest.MODULES:
            return None
        there = self._elsewhere(fullname, path, target)
        if there is not None and fullname in manifest.UNWRAPPED:
            return None
        if there is not None:
            assert there.loader is not None
            there.loader = Wrapping(there.loader, self)
            return there
        if official != fullname:
            return None
        # Beside modules of theirs, one that they lack and that we could not use either is really missing.
        if fullname not in manifest.SERVED and fullname.partition(".")[0] not in self.replaced:
            return None
        return importlib.util.spec_from_loader(fullname, Serving(self), is_package=fullname in manifest.PACKAGES)

    def find_distributions(self, context: DistributionFinder.Context | None = None) -> Iterable[Distribution]:
        """Yield the metadata of a package that is asked for by name, unless it is installed."""
        name = None if context is None else context.name
        package = None if name is None else name.lower().replace("-", "_").replace(".", "_")
        if context is None or package not in manifest.VERSIONS or any(MetadataPathFinder.find_distributions(context)):
            return
        yield StandIn(package)

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
        """Fill `module` with scanlab's replacements."""
        name, official = module.__name__, manifest.official_name(module.__name__)
        self.replaced.add(name)
        vars(module).update(manifest.served(official))
        vars(module)["__getattr__"] = functools.partial(_missing, name, official)
        if official in manifest.VERSIONS:
            vars(module)["__version__"] = manifest.VERSIONS[official]
            vars(module)["__file__"] = importlib.import_module(f"scanlab.integrations.{official}").__file__

    def wrap(self, module: ModuleType) -> None:
        """Let the functions of `module` choose by device, and add those that mamba_ssm lacks; classes stay theirs."""
        official = manifest.official_name(module.__name__)
        for name, ours in manifest.served(official).items():
            theirs = vars(module).get(name)
            if theirs is None and official == module.__name__:
                setattr(module, name, ours)
                self.added.append((module, name))
            elif isinstance(theirs, FUNCTIONS) and not _is_wrapper(theirs) and not name.endswith("_ref"):
                wrapper = by_device(theirs, ours)
                self.wrappers[id(theirs)] = wrapper
                setattr(module, name, wrapper)


class StandIn(Distribution):
    """Metadata of a package that scanlab stands in for: its name and the version that it claims."""

    def __init__(self, package: str) -> None:
        self.package = package

    def read_text(self, filename: str) -> str | None:
        """Return the text of METADATA; there is no other file."""
        if filename != "METADATA":
            return None
        return f"Metadata-Version: 2.1\nName: {self.package}\nVersion: {manifest.VERSIONS[self.package]}\n"

    def locate_file(self, path: Any) -> Any:
        """Return `path`: there are no files."""
        return path


class Serving(Loader):
    """Loader of a module of scanlab's under its official name."""

    def __init__(self, finder: Finder) -> None:
        self.finder = finder

    def exec_module(self, module: ModuleType) -> None:
        """Fill the module."""
        self.finder.serve(module)


class Wrapping(Loader):
    """Loader that loads a module as another loader would and wraps it; one that fails to load is replaced, and logged.

    Of a copy within another package only ops and helpers are replaced, for its models are its own.
    """

    def __init__(self, theirs: Loader, finder: Finder) -> None:
        self.theirs = theirs
        self.finder = finder

    def __getattr__(self, name: str) -> Any:
        return getattr(self.theirs, name)  # sources, resources: the other abilities of this loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Return the module that the other loader creates."""
        return self.theirs.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module as it is; where it raises, fill it with scanlab's and log the reason."""
        official = manifest.official_name(module.__name__)
        try:
            self.theirs.exec_module(module)
        except Exception as error:  # any error of a package made for CUDA is the reason to serve it
            if official != module.__name__ and not official.startswith(manifest.REPLACEABLE):
                raise
            log.warning(
                "scanlab: %s cannot be imported here (%s: %s); scanlab serves it.",
                module.__name__,
                type(error).__name__,
                error,
            )
            self.finder.serve(module)
            return
        self.finder.wrap(module)


def _missing(module: str, official: str, name: str) -> object:
    """Return a submodule, or the placeholder of `name` to an import without a fallback; else `name` is absent.

    An error names the alternative where there is one.

    Args:
        module: The module that lacks `name`.
        official: The module of mamba_ssm that it stands for.
        name: The name.
    """
    submodule = f"{module}.{name}"
    if submodule in manifest.SERVED:
        return importlib.import_module(submodule)
    importing, cure = sys._getframe(1), manifest.alternative(official, name)
    if cure is not None and imports_without_fallback(importing):
        return manifest.placeholder(official, name, cure)
    lacking = "scanlab, which stands in for it, lacks it" + ("" if cure is None else f": {cure}")
    if imports_name(importing) and submodule not in sys.modules:
        raise ImportError(f"cannot import name {name!r} from {module!r}: {lacking}.", name=module)
    raise AttributeError(f"module {module!r} has no attribute {name!r}: {lacking}.")


def by_device(theirs: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls `ours` where its first tensor is on the CPU, and `theirs` for all others.

    Releases differ in the order of parameters, so `ours` is called by their names. A fork may have more: `theirs` is
    called where one that `ours` lacks is not at its default, and where the first call finds that both disagree.
    """
    import torch  # installing takes no seconds: processes that never need torch install this too
    from torch import Tensor

    from scanlab.integrations.mamba_ssm.verification import agrees
    from scanlab.runtime.traced import is_traced

    try:
        signature = inspect.signature(theirs)
    except ValueError:  # a compiled function without one: called by position, as its callers do
        signature = None
    names = inspect.signature(ours).parameters.keys()
    extra = {} if signature is None else {n: each.default for n, each in signature.parameters.items() if n not in names}
    plain = Tensor, torch.nn.Parameter
    agree: bool | None = None  # not known yet

    @functools.wraps(theirs)
    def chosen(*args: Any, **kwargs: Any) -> Any:
        nonlocal agree
        first = next((each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)), None)
        if first is None or not first.is_cpu:
            return theirs(*args, **kwargs)
        if signature is None:
            return ours(*args, **kwargs)
        given = signature.bind(*args, **kwargs).arguments
        if agree is None and type(first) in plain and not is_traced():
            agree = agrees(theirs, ours)
        if agree is False or any(isinstance(given[n], Tensor) or given[n] != extra[n] for n in extra if n in given):
            return theirs(*args, **kwargs)
        return ours(**{name: value for name, value in given.items() if name not in extra})

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
