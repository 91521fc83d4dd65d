"""Registry: installed backends, entry points that fail to load, and selections on a command line."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from scanlab.contract import registry
from scanlab.errors import ConfigError, UnknownBackendError


@pytest.fixture
def installed(monkeypatch):
    """Put entry points in the place of the installed ones; the caches are cleared before and after."""

    def put(**values: str | list[str]):
        points = []
        for name, targets in values.items():
            for value in [targets] if isinstance(targets, str) else targets:
                points.append(EntryPoint(name, value, registry.BACKENDS))
        ops = [EntryPoint("selective_scan", "scanlab_kernels.selective_scan.op:op", registry.OPS)]
        monkeypatch.setattr(registry, "entry_points", lambda group: ops if group == registry.OPS else points)
        registry.clear()

    yield put
    monkeypatch.undo()
    registry.clear()


def test_the_built_in_backends_come_through_the_same_door():
    loaded, failures = registry.load_all()
    assert not failures
    assert loaded[0].name == "reference"
    assert sorted(backend.name for backend in loaded) == list(registry.names())
    assert len({(backend.op, backend.rank) for backend in loaded}) == len(loaded)


def test_an_unknown_name_is_answered_with_the_closest_one():
    with pytest.raises(UnknownBackendError, match=r"no backend is called 'referense'.*Did you mean 'reference'"):
        registry.get("referense")


def test_a_plug_in_that_raises_on_import_is_reported_and_stops_nobody(installed, tmp_path, monkeypatch):
    (tmp_path / "broken_plugin.py").write_text("raise RuntimeError('no licence')\n")
    monkeypatch.syspath_prepend(tmp_path)
    installed(reference="scanlab_kernels.selective_scan.reference:backend", broken="broken_plugin:backend")
    loaded, failures = registry.load_all()
    assert [backend.name for backend in loaded] == ["reference"]
    assert "RuntimeError: no licence" in failures["broken"]
    with pytest.raises(UnknownBackendError, match="failed to load"):
        registry.get("broken")


def test_an_entry_point_must_be_a_backend_of_its_own_name(installed):
    installed(
        reference="scanlab_kernels.selective_scan.reference:make",
        other="scanlab_kernels.selective_scan.reference:backend",
    )
    _, failures = registry.load_all()
    assert "must be a scanlab Backend whose name is 'reference'" in failures["reference"]
    assert "must be a scanlab Backend whose name is 'other'" in failures["other"]


def test_two_plug_ins_of_one_name_are_refused(installed):
    installed(reference=["scanlab_kernels.selective_scan.reference:backend", "elsewhere:backend"])
    with pytest.raises(UnknownBackendError, match=r"registered by .* and .*: uninstall one"):
        registry.get("reference")


def test_a_selection_names_a_backend_and_part_of_its_configuration():
    backend, config = registry.parse_selection("reference:threads=1")
    assert (backend.name, config) == ("reference", {"threads": 1})
    assert registry.parse_selection("reference")[1] == {}


REFUSED = ("reference:speed=11", "reference:threads", "reference:threads=9999", "reference:threads=1,threads=2")


def test_what_is_no_name_is_refused():
    with pytest.raises(ConfigError, match="5: must name a backend, such as 'native'"):
        registry.parse_selection(5)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", REFUSED)
def test_a_selection_that_is_not_in_the_space_is_refused(text):
    with pytest.raises(ConfigError, match="see `scanlab list reference`"):
        registry.parse_selection(text)


def test_a_backend_of_an_op_that_is_not_installed_is_refused(installed, tmp_path, monkeypatch):
    (tmp_path / "stray_plugin.py").write_text(
        "import dataclasses\n"
        "from scanlab_kernels.selective_scan.reference import backend as reference\n"
        "backend = dataclasses.replace(reference, name='stray', op='convolve_everything')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    installed(stray="stray_plugin:backend")
    with pytest.raises(UnknownBackendError, match="implements the op 'convolve_everything', which is not installed"):
        registry.get("stray")


def test_an_unknown_op_is_answered_with_the_closest_one():
    assert "selective_scan" in registry.ops()
    with pytest.raises(UnknownBackendError, match="Did you mean 'selective_scan'"):
        registry.op("selective_scam")
