"""Pictures into classes: order, names, probabilities, batches, and pictures that cannot be read."""

import pytest
import torch
from PIL import Image

from helpers.official import REFERENCE
from scanlab.errors import InputError
from scanlab.models.capture import trained_like_
from scanlab.models.classify import classify, find_pictures
from scanlab.models.imagenet import CLASSES
from scanlab.models.images import prepare, sample_photograph
from scanlab.models.vision_mamba import VisionMamba


def small(num_classes):
    options = {"img_size": 32, "patch_size": 8, "stride": 8, "embed_dim": 16, "depth": 2, "num_classes": num_classes}
    return trained_like_(VisionMamba(**options, scan=REFERENCE)).eval()


@pytest.fixture
def album(tmp_path):
    """Three pictures, in a folder and one below it, among other files."""
    photograph = sample_photograph()
    (tmp_path / "below").mkdir()
    for name, left in (("a.png", 0), ("c.JPG", 200), ("below/b.png", 400)):
        photograph.crop((left, 0, left + 200, 200)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_there_is_a_name_for_every_class_of_imagenet():
    assert len(CLASSES) == len(set(CLASSES)) == 1000
    assert all(name.strip() == name and name for name in CLASSES)
    known = {0: "tench", 207: "golden retriever", 281: "tabby cat", 388: "giant panda", 497: "church", 698: "palace"}
    known |= {832: "stupa", 954: "banana", 999: "toilet tissue"}
    assert {index: CLASSES[index] for index in known} == known


def test_folders_give_their_pictures_sorted_and_files_stay_as_named(album):
    found = find_pictures([album / "notes.txt", album])
    assert [str(path.relative_to(album)) for path in found] == ["notes.txt", "a.png", "below/b.png", "c.JPG"]
    (album / "empty").mkdir()
    with pytest.raises(InputError, match="empty: a folder without pictures"):
        find_pictures([album / "empty"])


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_every_picture_gets_its_own_classes_whatever_the_batch(album, batch):
    model = small(1000)
    paths = find_pictures([album])
    results = list(classify(model, paths, batch=batch))
    assert [result.path for result in results] == paths
    for result in results:
        with torch.no_grad():
            probabilities = model(prepare(Image.open(result.path).convert("RGB"), 32)[None])[0].softmax(0)
        best = probabilities.topk(5)
        assert [name for name, _ in result.classes] == [CLASSES[index] for index in best.indices]
        assert [share for _, share in result.classes] == pytest.approx(best.values.tolist(), rel=1e-4)
    assert len({result.classes for result in results}) == 3


def test_pictures_that_cannot_be_read_do_not_stop_the_others(album):
    (album / "b.png").write_bytes((album / "a.png").read_bytes()[:500])
    paths = [album / "missing.png", album / "a.png", album / "b.png", album / "c.JPG"]
    results = list(classify(small(3), paths, top=5, batch=2))
    assert [bool(result.classes) for result in results] == [False, True, False, True]
    assert "missing.png does not exist" in results[0].reason
    assert "b.png" in results[2].reason
    assert {name for name, _ in results[1].classes} == {"class 0", "class 1", "class 2"}
    assert sum(share for _, share in results[1].classes) == pytest.approx(1.0, rel=1e-5)


def test_a_batch_without_any_readable_picture_is_reported_too(tmp_path):
    (result,) = classify(small(3), [tmp_path / "missing.png"])
    assert result.classes == ()
    assert "does not exist" in result.reason


def test_results_come_as_they_are_ready(album):
    results = classify(small(3), find_pictures([album]), batch=1)
    assert next(results).path.name == "a.png"


def test_a_model_without_a_head_names_no_class_and_says_so(album):
    with pytest.raises(InputError, match="no head, so it names no class"):
        list(classify(small(0), [album / "a.png"]))


def test_a_model_that_gives_no_numbers_is_refused(album):
    model = small(4)
    with torch.no_grad():
        model.head.bias[1] = torch.nan
    with pytest.raises(InputError, match="not finite"):
        list(classify(model, [album / "a.png"]))
