"""Install the drop-in at the start of a process below `scanlab run`, then run the sitecustomize that this one hides."""

import importlib.util
import sys
from importlib.machinery import PathFinder
from pathlib import Path

sys.path[:] = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]

try:
    from scanlab.integrations.children import prepare
except ImportError:  # another interpreter, which has no scanlab
    pass
else:
    prepare()

_hidden = PathFinder.find_spec("sitecustomize", sys.path)
if _hidden is not None and _hidden.loader is not None:
    sys.modules["sitecustomize"] = importlib.util.module_from_spec(_hidden)
    _hidden.loader.exec_module(sys.modules["sitecustomize"])
