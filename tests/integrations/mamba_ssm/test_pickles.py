"""Whole models that were pickled with the official package or a fork of it."""

from __future__ import annotations

import copy
import pickle
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from helpers.official_names import untouched
from scanlab.integrations import mamba_ssm as drop_in
from scanlab.integrations.mamba_ssm.models.config_mamba import MambaConfig
from scanlab.integrations.mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from scanlab.integrations.mamba_ssm.modules.mamba_simple import Mamba

pytestmark = pytest.mark.usefixtures("two_phase_scan")

X = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0))
# attributes that the official classes lack, and where release 1.x defines them
OURS = {
    "mamba_simple.Mamba": ("bimamba_type", "if_divide_out", "init_layer_scale", "gamma", "_derived"),
    "mamba_simple.Block": ("mlp",),
    "layernorm.RMSNorm": ("drop",),
}
HOMES = {
    "Mamba": "mamba_ssm.modules.mamba_simple",
    "Block": "mamba_ssm.modules.mamba_simple",
    "RMSNorm": "mamba_ssm.ops.triton.layernorm",
    "MixerModel": "mamba_ssm.models.mixer_seq_simple",
    "MambaLMHeadModel": "mamba_ssm.models.mixer_seq_simple",
    "MambaConfig": "mamba_ssm.models.config_mamba",
}


@pytest.fixture(autouse=True)
def world():
    with untouched():
        yield


def stand_in(thing: Any, **stored: object) -> Any:
    """Return a copy of `thing` whose classes have the names, modules and attributes of mamba_ssm 1.x."""
    name = type(thing).__name__
    if name not in HOMES:
        thing = copy.copy(thing)
        if isinstance(thing, nn.Module):
            thing.__dict__["_modules"] = {key: stand_in(each) for key, each in thing._modules.items()}
        return thing
    module = sys.modules.setdefault(HOMES[name], ModuleType(HOMES[name]))
    if not hasattr(module, name):
        setattr(module, name, type(name, (nn.Module,), {"__module__": HOMES[name]}))
    lacks = OURS.get(f"{HOMES[name].rpartition('.')[2]}.{name}", ())
    made = getattr(module, name).__new__(getattr(module, name))
    made.__dict__.update({key: each for key, each in vars(thing).items() if key not in lacks} | stored)
    for kind in ("_parameters", "_modules"):
        if kind in made.__dict__:
            made.__dict__[kind] = {key: stand_in(each) for key, each in vars(thing)[kind].items() if key not in lacks}
    return made


def pickled_officially(thing: Any, **stored: object) -> bytes:
    with untouched():
        for name in ("mamba_ssm", "mamba_ssm.modules", "mamba_ssm.ops", "mamba_ssm.ops.triton", "mamba_ssm.models"):
            sys.modules[name] = ModuleType(name)
        return pickle.dumps(stand_in(thing, **stored))


def test_a_mixer_computes_what_it_computed():
    mamba = Mamba(16)
    written = pickled_officially(mamba)
    drop_in.install()
    for loaded in (pickle.loads(written), pickle.loads(written).eval()):
        assert torch.equal(loaded(X), mamba(X))
        assert loaded.bimamba_type == "none"
    again = pickle.loads(pickle.dumps(loaded))
    assert torch.equal(again(X), mamba(X))


@pytest.mark.parametrize(
    ("options", "stored"),
    [
        ({"bimamba_type": "v2"}, {"bimamba": True}),
        ({"bimamba_type": "v2", "if_divide_out": True}, {"bimamba_type": "v2", "if_devide_out": True}),
        ({"bimamba_type": "v1"}, {"bimamba_type": "v1"}),
    ],
    ids=["VideoMamba", "an older Vim", "Vim"],
)
def test_a_mixer_of_a_fork_computes_what_it_computed(options, stored):
    mamba = Mamba(16, **options)
    written = pickled_officially(mamba, **stored)
    drop_in.install()
    assert torch.equal(pickle.loads(written)(X), mamba(X))


def test_a_language_model_generates_what_it_generated():
    torch.manual_seed(0)
    model = MambaLMHeadModel(MambaConfig(d_model=16, n_layer=2, vocab_size=29)).eval()
    ids = torch.tensor([[3, 1, 4]])
    expected: Any = model.generate(ids, 8)
    logits = model(ids).logits
    written = pickled_officially(model)
    drop_in.install()
    loaded = pickle.loads(written)
    assert torch.equal(loaded(ids).logits, logits)
    assert torch.equal(loaded.generate(ids, 8), expected)
