"""The evaluation pipeline on pictures of every kind, and files that hold none."""

import io
import random
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
import torch
from PIL import Image, features

from scanlab.errors import InputError
from scanlab.models.images import IMAGENET_MEAN, IMAGENET_STD, open_image, prepare, sample_photograph


def gradient(width, height):
    """A picture whose red grows to the right and green downwards."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack((across, down, np.full_like(down, 90)), -1).astype(np.uint8))


def denormalised(tensor):
    return tensor * torch.tensor(IMAGENET_STD)[:, None, None] + torch.tensor(IMAGENET_MEAN)[:, None, None]


def test_the_shorter_side_is_resized_and_the_centre_cut_out():
    photograph = sample_photograph()
    assert photograph.size == (640, 427)
    resized = photograph.resize((383, 256), Image.Resampling.BICUBIC)  # int(256 * 640 / 427)
    pixels = np.asarray(resized)[16:240, 80:304] / 255.0  # 79.5 rounds to the even 80
    expected = (pixels - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    prepared = prepare(photograph)
    assert prepared.dtype == torch.float32
    assert prepared.is_contiguous()
    np.testing.assert_allclose(prepared.permute(1, 2, 0).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(300, 400), (400, 300), (224, 224), (30, 45), (1, 1), (1, 60), (2000, 100)])
def test_pictures_of_any_shape_keep_their_orientation(size):
    prepared = denormalised(prepare(gradient(*size)))
    assert prepared.shape == (3, 224, 224)
    assert prepared.isfinite().all()
    if min(size) > 1:
        assert prepared[0, :, -1].mean() > prepared[0, :, 0].mean()
        assert prepared[1, -1].mean() > prepared[1, 0].mean()


def test_another_size_keeps_the_ratio_of_resize_and_crop():
    prepared = prepare(sample_photograph("flower.jpg"), 1248)
    assert prepared.shape == (3, 1248, 1248)
    small = torch.nn.functional.interpolate(prepared[None], 224, mode="area")[0]
    assert (small - prepare(sample_photograph("flower.jpg"))).abs().mean() < 0.1


def test_a_picture_too_narrow_to_resize_is_refused():
    with pytest.raises(InputError, match="60000 x 2 pixels is too narrow"):
        prepare(Image.new("RGB", (60000, 2)))


def saved(tmp_path, picture, name, **options):
    picture.save(tmp_path / name, **options)
    return tmp_path / name


GREY = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)


def test_grey_cmyk_and_palette_pictures_become_rgb(tmp_path):
    picture = gradient(32, 24)
    for name, mode, tolerance in (
        ("grey.png", "L", 0), ("grey.jpg", "L", 8), ("ink.jpg", "CMYK", 12), ("ink.tif", "CMYK", 3),
        ("palette.gif", "P", 0), ("palette.png", "P", 0), ("bits.png", "1", 0),
    ):  # fmt: skip
        converted = picture.convert(mode)
        opened = open_image(saved(tmp_path, converted, name))
        assert (opened.mode, opened.size) == ("RGB", (32, 24)), name
        expected = converted.convert("RGB")
        difference = np.abs(np.asarray(opened, dtype=int) - np.asarray(expected, dtype=int))
        assert difference.max() <= tolerance, name


def test_sixteen_bit_grey_is_scaled_to_eight(tmp_path):
    for name in ("deep.png", "deep.tif"):
        opened = np.asarray(open_image(saved(tmp_path, Image.fromarray(GREY), name)))
        assert opened.shape == (8, 8, 3)
        np.testing.assert_array_equal(opened[..., 0], np.round(GREY / 257.0))


def test_pixels_without_a_known_range_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"real\.tif has pixel values from -1\.0 to 1\.0"):
        open_image(saved(tmp_path, Image.fromarray(np.array([[-1.0, 0.5], [0.25, 1.0]], np.float32)), "real.tif"))
    with pytest.raises(InputError, match=r"deep\.tif has pixel values from 0 to 70000"):
        open_image(saved(tmp_path, Image.fromarray(np.array([[0, 70000]], np.int32)), "deep.tif"))


def test_transparent_parts_become_white(tmp_path):
    picture = gradient(16, 16).convert("RGBA")
    picture.putalpha(Image.fromarray(np.repeat(np.array([[0] * 8 + [255] * 8], np.uint8), 16, 0)))
    opened = np.asarray(open_image(saved(tmp_path, picture, "alpha.png")))
    assert (opened[:, :8] == 255).all()
    np.testing.assert_array_equal(opened[:, 8:], np.asarray(gradient(16, 16))[:, 8:])
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 200, 10, 10])
    opened = np.asarray(open_image(saved(tmp_path, palette, "palette.png", transparency=1)))
    assert (opened == 255).all()


def test_a_picture_taken_sideways_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    assert open_image(saved(tmp_path, gradient(40, 20), "sideways.jpg", exif=exif)).size == (20, 40)


def encoded(kind, **options):
    buffer = io.BytesIO()
    gradient(64, 48).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"])
def test_damaged_files_are_refused_by_name_or_read(tmp_path, kind):
    content = encoded(kind)
    path = tmp_path / "damaged.img"
    random = np.random.default_rng(0)
    refused = []
    for trial in range(60):
        damaged = bytearray(content)
        for place in random.integers(0, len(content) if trial % 2 else 100, size=4):
            damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        try:
            assert open_image(path).mode == "RGB"
        except InputError as error:
            refused.append(str(error))
    assert refused
    assert all("damaged.img" in message for message in refused)
    path.write_bytes(content[: len(content) // 3])
    with pytest.raises(InputError, match=r"damaged\.img"):
        open_image(path)


def test_what_is_no_picture_is_refused_by_name(tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    for name in ("text.jpg", "empty.png", "folder.png"):
        with pytest.raises(InputError, match=f"{name} cannot be read as a picture"):
            open_image(tmp_path / name)
    with pytest.raises(InputError, match="missing.jpg does not exist"):
        open_image(tmp_path / "missing.jpg")


def test_a_program_in_postscript_is_not_run(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(InputError, match="cannot identify"):
        open_image(path)


@pytest.mark.parametrize("side", [15_000, 60_000])
def test_huge_pictures_are_refused_before_they_are_read(tmp_path, side):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(InputError, match=r"bomb\.png is too large"):
        open_image(tmp_path / "bomb.png")


def test_only_the_shipped_photographs_are_samples():
    with pytest.raises(InputError, match=r"cat\.jpg.*china\.jpg, flower\.jpg"):
        sample_photograph("cat.jpg")


@pytest.mark.parametrize("kind", ["AVIF", "WEBP", "TIFF", "JPEG2000"])
def test_a_picture_with_damaged_bytes_is_read_or_refused(tmp_path, kind):
    if not features.check({"AVIF": "avif", "WEBP": "webp", "TIFF": "libtiff", "JPEG2000": "jpg_2000"}[kind]):
        pytest.skip(f"Pillow was built without {kind}")
    buffer, path, rng = io.BytesIO(), tmp_path / "picture", random.Random(1)
    gradient(31, 24).save(buffer, kind)
    for _ in range(60):
        damaged = bytearray(buffer.getvalue())
        for _ in range(3):
            damaged[rng.randrange(min(len(damaged), 250))] = rng.randrange(256)
        path.write_bytes(damaged)
        with suppress(InputError):
            assert prepare(open_image(path), 32).shape == (3, 32, 32)
