"""Weights in and out: official training states, hostile and damaged files, safetensors, other sizes, the hub."""

import argparse
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from helpers.official import EXTRA
from scanlab.errors import InputError
from scanlab.models import checkpoints
from scanlab.models.vision_mamba import VisionMamba, vim_tiny

SMALL = {"img_size": 32, "patch_size": 8, "stride": 8, "embed_dim": 16, "depth": 2, "num_classes": 5, "d_state": 4}


def small(**options):
    return VisionMamba(**SMALL | {"scan": "reference"} | options)


@pytest.mark.parametrize("shape", [(1, 1, 16), (1, 0, 16), (2, 5, 16), (1, 5, 8), (5, 16), (1, 3, 16)])
def test_a_position_embedding_of_an_impossible_shape_is_refused(shape):
    weights = small().state_dict() | {"pos_embed": torch.zeros(shape)}
    with pytest.raises(InputError, match="pos_embed"):
        checkpoints.load_weights(small(), weights)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def training_state(model):
    """A file's content as the official training writes it."""
    optimizer = torch.optim.AdamW(model.parameters())
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": {"base_values": [5e-4], "param_group_field": "lr", "warmup_t": 5, "metric": None},
        "epoch": 299,
        "model_ema": OrderedDict((name, value + 1) for name, value in model.state_dict().items()),
        "scaler": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 12},
        "args": argparse.Namespace(lr=5e-4, model="vim", distributed=True, output_dir="", clip_grad=None),
    }


@pytest.mark.parametrize("zipped", [True, False])
def test_an_official_training_state_gives_its_model_weights(tmp_path, zipped):
    content = training_state(small())
    torch.save(content, tmp_path / "state.pth", _use_new_zipfile_serialization=zipped)
    assert same(checkpoints.read_weights(tmp_path / "state.pth"), content["model"])


def test_weights_alone_are_read_too(tmp_path):
    weights = small().state_dict()
    torch.save(weights, tmp_path / "weights.pt")
    assert same(checkpoints.read_weights(tmp_path / "weights.pt"), weights)


@pytest.mark.parametrize("packed", ["data.pkl", "data/0"])
def test_a_file_that_unpacks_to_more_than_it_holds_is_refused_before_it_does(tmp_path, packed):
    torch.save({"a": torch.zeros(100_000)}, tmp_path / "stored.pth")
    with zipfile.ZipFile(tmp_path / "stored.pth") as whole, zipfile.ZipFile(tmp_path / "bomb.pth", "w") as bomb:
        for entry in whole.infolist():
            is_packed = entry.filename.endswith(packed)
            content = whole.read(entry) + bytes(400_000 if is_packed else 0)
            bomb.writestr(entry.filename, content, zipfile.ZIP_DEFLATED if is_packed else zipfile.ZIP_STORED)
    with pytest.raises(InputError, match=r"bomb\.pth holds [0-9,]+ bytes that unpack to [0-9,]+: must be"):
        checkpoints.read_weights(tmp_path / "bomb.pth")


class Hostile:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_would_run_code_is_refused_before_it_does(tmp_path, zipped):
    trace = tmp_path / "it-ran"
    content = {"model": small().state_dict(), "args": Hostile(trace)}
    torch.save(content, tmp_path / "hostile.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"hostile\.pth.*could run code"):
        checkpoints.read_weights(tmp_path / "hostile.pth")
    assert not trace.exists()


def test_the_allow_list_is_gone_after_reading(tmp_path):
    torch.save(training_state(small()), tmp_path / "state.pth")
    checkpoints.read_weights(tmp_path / "state.pth")
    assert argparse.Namespace not in torch.serialization.get_safe_globals()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "state.pth", weights_only=True)


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.97])
@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors"])
def test_damaged_files_are_refused_by_name(tmp_path, name, kept):
    whole = tmp_path / f"whole{Path(name).suffix}"
    if whole.suffix == ".pth":
        torch.save(small().state_dict(), whole)
    else:
        checkpoints.save_weights(small(), whole)
    content = whole.read_bytes()
    (tmp_path / name).write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(InputError, match=name):
        checkpoints.read_weights(tmp_path / name)


@pytest.mark.parametrize("content", [b"junk", b"j", b"no weights at all\n", b"(", b"]q"])
def test_files_of_something_else_are_refused_by_name(tmp_path, content):
    (tmp_path / "junk.pth").write_bytes(content)
    with pytest.raises(InputError, match=r"junk\.pth"):
        checkpoints.read_weights(tmp_path / "junk.pth")


def test_files_without_weights_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file.*vim_tiny"):
        checkpoints.read_weights(tmp_path / "nothing.pth")
    (tmp_path / "text.pth").write_text("not a pickle")
    with pytest.raises(InputError, match=r"text\.pth"):
        checkpoints.read_weights(tmp_path / "text.pth")
    for content in ({"epoch": 3, "lr": 0.1}, [1, 2], {}, torch.zeros(3), {"model": {"epoch": 1}}):
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(InputError, match=r"other\.pth holds"):
            checkpoints.read_weights(tmp_path / "other.pth")


def test_safetensors_keep_every_bit(tmp_path):
    model = small(dtype=torch.bfloat16)
    checkpoints.save_weights(model, tmp_path / "w.safetensors")
    weights = checkpoints.read_weights(tmp_path / "w.safetensors")
    assert same(weights, dict(model.state_dict()))
    other = small(dtype=torch.bfloat16)
    assert checkpoints.load_weights(other, weights) == ()
    assert same(other.state_dict(), model.state_dict())


def test_weights_are_written_whole_or_not_at_all(tmp_path):
    with pytest.raises(InputError, match=r"w\.safetensors"):
        checkpoints.save_weights(small(), tmp_path / "w.pth")
    with pytest.raises(InputError, match="cannot write"):
        checkpoints.save_weights(small(), tmp_path / "missing" / "w.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("case", "side"), [("14to24", 24), ("14to27", 27), ("14to10", 10)])
def test_position_embeddings_are_resized_as_officially(case, side):
    position = torch.from_numpy(EXTRA["pos_interp/14to14"])
    expected = torch.from_numpy(EXTRA[f"pos_interp/{case}"])
    resized = checkpoints.resize_position_embedding(position, (side, side), class_tokens=1)
    torch.testing.assert_close(resized, expected, rtol=0, atol=1e-6)


def test_loading_fits_the_position_embedding_to_another_grid():
    weights = small().state_dict()
    for options in ({"img_size": 48}, {"stride": 4}, {"img_size": (24, 40)}):
        model = small(**options)
        assert checkpoints.load_weights(model, weights) == ("pos_embed",)
        assert torch.equal(model.layers[1].mixer.A_log, weights["layers.1.mixer.A_log"])
        expected = checkpoints.resize_position_embedding(weights["pos_embed"], model.patch_embed.grid_size, 1)
        assert torch.equal(model.pos_embed, expected)


def test_a_grid_that_is_not_square_is_not_resized():
    weights = small(img_size=(24, 40)).state_dict()
    with pytest.raises(InputError, match="15 rows.*square"):
        checkpoints.load_weights(small(), weights)


def test_rotary_tables_follow_the_grid_of_the_model():
    weights = small(if_rope=True).state_dict()
    model = small(if_rope=True, img_size=48)
    tables = model.rope.freqs_cos.clone()
    assert checkpoints.load_weights(model, weights) == ("pos_embed", "rope.freqs_cos", "rope.freqs_sin")
    assert torch.equal(model.rope.freqs_cos, tables)


def test_another_number_of_classes_needs_a_new_head():
    weights = small().state_dict()
    model = small(num_classes=7)
    head = model.head.weight.clone()
    with pytest.raises(InputError, match=r"head\.weight \(5, 16\), not \(7, 16\).*new_head=True"):
        checkpoints.load_weights(model, weights)
    assert checkpoints.load_weights(model, weights, new_head=True) == ("head.weight", "head.bias")
    assert torch.equal(model.head.weight, head)
    assert torch.equal(model.norm_f.weight, weights["norm_f.weight"])
    same_classes = small()
    assert checkpoints.load_weights(same_classes, weights, new_head=True) == ()
    assert torch.equal(same_classes.head.weight, weights["head.weight"])
    headless = small(num_classes=0)
    assert checkpoints.load_weights(headless, weights, new_head=True) == ()


def test_a_mismatch_lists_missing_unexpected_and_misshapen_names_and_changes_nothing():
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weights = dict(small().state_dict())
    del weights["layers.1.mixer.D_b"]
    weights["layers.9.norm.weight"] = torch.zeros(16)
    weights["norm_f.weight"] = torch.zeros(17)
    with pytest.raises(InputError) as caught:
        checkpoints.load_weights(model, weights)
    assert "missing: layers.1.mixer.D_b;" in str(caught.value)
    assert "unexpected: layers.9.norm.weight;" in str(caught.value)
    assert "misshapen: norm_f.weight (17,), not (16,)" in str(caught.value)
    assert same(model.state_dict(), before)
    with pytest.raises(InputError, match="missing: .* and [0-9]+ more"):
        checkpoints.load_weights(model, {"head.bias": before["head.bias"]})


def test_a_released_model_opens_from_its_file_and_by_its_name(tmp_path, monkeypatch):
    model = vim_tiny(scan="reference")
    torch.save({"model": model.state_dict(), "args": argparse.Namespace()}, tmp_path / "vim_t.pth")
    asked = []

    def hub(repository, file):
        asked.append((repository, file))
        return str(tmp_path / "vim_t.pth")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", hub)
    for opened in (checkpoints.open_model(tmp_path / "vim_t.pth"), checkpoints.open_model("vim_tiny")):
        assert same(opened.state_dict(), model.state_dict())
        assert not opened.training
    for name in ("vim-tiny", "vim_t_midclstok_76p1acc", "vim_t_midclstok_76p1acc.pth"):
        assert checkpoints.download(name) == tmp_path / "vim_t.pth"
    assert set(asked) == {("hustvl/Vim-tiny-midclstok", "vim_t_midclstok_76p1acc.pth")}
    assert len(asked) == 4
    larger = checkpoints.open_model(tmp_path / "vim_t.pth", img_size=384, num_classes=3)
    assert larger.pos_embed.shape == (1, 577, 192)
    assert larger.head.weight.shape == (3, 192)


def test_weights_of_no_released_model_are_not_guessed_at(tmp_path):
    checkpoints.save_weights(small(), tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"pos_embed is \(1, 17, 16\).*load_weights"):
        checkpoints.open_model(tmp_path / "w.safetensors")


def test_without_a_connection_the_error_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"vim_b_midclstok_81p9acc\.pth.*download the file elsewhere"):
        checkpoints.download("vim_base")
    with pytest.raises(InputError, match="vim_huge.*vim_tiny"):
        checkpoints.download("vim_huge")


@pytest.mark.parametrize(
    ("weights", "complaint"),
    [
        ({"a": torch.zeros(2, dtype=torch.complex64)}, "is torch.complex64"),
        ({"a": torch.zeros(2, dtype=torch.bool)}, "is torch.bool"),
        ({"a": torch.zeros(2, dtype=torch.int64)}, "is torch.int64"),
        ({"a": torch.zeros(2, device="meta")}, "meta device"),
        ({"a": torch.eye(2).to_sparse()}, "sparse or quantized"),
        ({"a": torch.nested.nested_tensor([torch.zeros(2)])}, "is nested"),
        ({3: torch.zeros(2)}, "is not a name"),
        ({"a": torch.zeros(1).expand(10**9)}, "is expanded"),
    ],
)
def test_odd_weights_are_refused_by_name(tmp_path, weights, complaint):
    torch.save(weights, tmp_path / "odd.pth")
    with pytest.raises(InputError, match=complaint):
        checkpoints.read_weights(tmp_path / "odd.pth")


def test_a_head_without_rows_is_refused(tmp_path):
    torch.save({"pos_embed": torch.zeros(1, 197, 192), "head.weight": torch.zeros(())}, tmp_path / "odd.pth")
    with pytest.raises(InputError, match=r"head\.weight"):
        checkpoints.open_model(tmp_path / "odd.pth")


def test_a_comment_hides_no_compressed_archive(tmp_path):
    plain, packed = tmp_path / "plain.pth", tmp_path / "packed.pth"
    torch.save({"weight": torch.zeros(1 << 18)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
        target.comment = b"PK\x05\x06xx"
    assert not zipfile.is_zipfile(packed)
    with pytest.raises(InputError, match="is no whole archive"):
        checkpoints.read_weights(packed)
