"""The machine's facts: a key that changes with the silicon and with nothing else."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from scanlab.contract import machine
from scanlab.contract.cpu import usable_threads
from scanlab.contract.machine import Machine, this_machine


def test_it_survives_json():
    here = this_machine()
    assert Machine.from_json(json.loads(json.dumps(here.to_json()))) == here


def test_it_knows_what_a_kernel_may_use_here():
    here = this_machine()
    assert here.silicon.usable_cpus == usable_threads()
    assert here.silicon.memory_bytes > 1 << 28
    assert set(here.silicon.flags) <= set(machine.KERNEL_FLAGS)


@pytest.mark.parametrize(
    "change", [{"usable_cpus": 4096}, {"flags": ("sve",)}, {"model": "another"}, {"gpus": ("a GPU",)}], ids=str
)
def test_other_silicon_has_another_key(change):
    here = this_machine()
    assert replace(here, silicon=replace(here.silicon, **change)).silicon_id != here.silicon_id


def test_software_and_memory_are_no_part_of_the_silicon_key():
    here = this_machine()
    other = replace(
        here,
        silicon=replace(here.silicon, memory_bytes=here.silicon.memory_bytes - 4096),
        software=replace(here.software, torch="0.1"),
    )
    assert other.silicon_id == here.silicon_id
    assert other.software_id != here.software_id


def test_a_kernel_update_leaves_the_software_key():
    here = this_machine()
    updated = replace(here, software=replace(here.software, system="Linux 99", scanlab="99"))
    assert updated.software_id == here.software_id


def test_one_line_names_the_cpus_and_torch():
    line = this_machine().describe()
    assert "\n" not in line
    assert f"{usable_threads()} usable CPU" in line
    assert this_machine().software.torch in line


def test_without_proc_the_facts_are_unknown_and_not_an_error(monkeypatch, tmp_path, request):
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(machine, "CACHES", tmp_path / "cache")
    this_machine.cache_clear()
    request.addfinalizer(this_machine.cache_clear)
    silicon = this_machine().silicon
    assert (silicon.family, silicon.flags, silicon.caches) == ("unknown", (), ())
    assert silicon.usable_cpus == usable_threads()
