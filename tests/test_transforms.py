"""The one rule for grey and the one for masks, files that are refused, and the transforms around them."""

import io
import struct

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, DivisiblePadd, NormalizeIntensityd, Resized
from PIL import Image

from breast_ultrasound.images import open_image, to_grey, to_mask
from breast_ultrasound.transforms import LoadGreyd, LoadMaskd, ResizeToAread

RED = (200, 0, 0)
LUMA = round(0.299 * 200)  # ITU-R BT.601
MASK = np.zeros((30, 40), np.uint8)
MASK[5:15, 10:30] = 255  # 200 pixels
ON_WHITE = np.dstack([np.full_like(MASK, 255)] * 3)


@pytest.mark.parametrize(
    "image, value",
    [
        (Image.new("1", (3, 2), 1), 255),
        (Image.new("L", (3, 2), 77), 77),
        (Image.new("LA", (3, 2), (77, 0)), 77),  # alpha is ignored
        (Image.new("RGB", (3, 2), RED), LUMA),
        (Image.new("RGBA", (3, 2), (*RED, 0)), LUMA),
        (Image.new("RGB", (3, 2), RED).convert("P"), LUMA),
        (Image.new("RGB", (3, 2), RED).convert("P").convert("PA"), LUMA),
        (Image.new("CMYK", (3, 2), (0, 0, 0, 255)), 0),
        (Image.new("LAB", (3, 2), (255, 128, 128)), 255),
        (Image.new("HSV", (3, 2), (0, 0, 77)), 77),
        (Image.new("YCbCr", (3, 2), (77, 128, 128)), 77),
        (Image.fromarray(np.full((2, 3), 60000, np.uint16)), 255),
        (Image.fromarray(np.full((2, 3), 77, np.uint16)), 77),  # 8-bit values in a 16-bit file
        (Image.fromarray(np.full((2, 3), 77, np.int32)), 77),
        (Image.fromarray(np.full((2, 3), 77, np.float32)), 77),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_every_mode_becomes_8_bit_grey(image, value):
    grey = to_grey(image)
    assert (grey.dtype, grey.shape) == (np.uint8, (2, 3))
    assert np.abs(grey.astype(int) - value).max() <= 1


@pytest.mark.parametrize(
    "values, kind, expected",
    [
        ([0, 1000, 4000], np.uint16, [0, 64, 255]),
        ([0, 30, 200], np.uint16, [0, 30, 200]),
        ([-1, 0, 1], np.int32, [0, 128, 255]),
        ([0, 0.2, 1], np.float32, [0, 51, 255]),
        ([0, 2e-29, 1e-28], np.float32, [0, 51, 255]),
        ([-60, -30, 0], np.float32, [0, 128, 255]),  # decibels
        ([0, 30, 200], np.float32, [0, 30, 200]),
        ([0, 30.5, 61], np.float32, [0, 128, 255]),
        ([0, 0, 0], np.float32, [0, 0, 0]),
        ([-5, -5, -5], np.float32, [0, 0, 0]),
    ],
)
def test_deep_values_are_kept_where_they_fit_8_bits_and_scaled_by_their_largest_otherwise(values, kind, expected):
    assert to_grey(Image.fromarray(np.array([values], kind))).tolist() == [expected]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rule", [to_grey, to_mask])
def test_values_that_are_no_numbers_are_refused(rule, value):
    with pytest.raises(ValueError, match="NaN or infinite"):
        rule(Image.fromarray(np.array([[0, 1, value]], np.float32)))


@pytest.mark.parametrize("rule", [to_grey, to_mask])
def test_an_image_without_pixels_is_refused(rule):
    with pytest.raises(ValueError, match="no pixel"):
        rule(Image.new("L", (3, 0)))


def tiff_of(values, photometric):
    """An uncompressed TIFF of an array (rows, columns); Pillow writes no other kinds than it reads."""
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    content = values.tobytes()
    bits = 8 * values.itemsize
    height, width = values.shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height}
    tags |= {279: len(content), 339: kind}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(content)) + content + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize(
    "kind, white_is_zero, refused",
    [
        (np.uint8, True, ""),
        (np.uint16, False, ""),
        (np.float32, False, ""),
        (np.uint16, True, "white is zero"),
        (np.float32, True, "white is zero"),
        (np.int8, False, "with a sign"),
        (np.uint32, False, "above 2147483647"),
    ],
)
def test_a_tiff_that_pillow_reads_as_other_numbers_is_refused(kind, white_is_zero, refused, tmp_path):
    ramp = np.arange(0, 256, 2, dtype=np.uint8).reshape(8, 16)
    ramp[0, -1] = 255
    whole = np.iinfo(kind).max // 255 if kind in (np.uint16, np.uint32) else 1
    (tmp_path / "x.tif").write_bytes(tiff_of(ramp.astype(kind) * kind(whole), int(not white_is_zero)))
    if refused:
        with pytest.raises(ValueError, match=refused):
            open_image(tmp_path / "x.tif")
    else:
        expected = 255 - ramp if white_is_zero else ramp
        assert np.array_equal(to_grey(open_image(tmp_path / "x.tif")), expected)


def test_a_line_of_pixels_is_refused_before_it_is_decoded(tmp_path):
    for size, fits in (((1000, 1), True), ((1, 1000), True), ((1001, 1), False), ((2, 2001), False)):
        Image.linear_gradient("L").resize(size).save(tmp_path / "x.png")
        if fits:
            assert open_image(tmp_path / "x.png").size == size
        else:
            with pytest.raises(ValueError, match=f"{size[0]} x {size[1]}: one side is more than 1000 times the other"):
                open_image(tmp_path / "x.png")


def test_few_greys_that_are_left_of_many_values_are_told(tmp_path, caplog):
    ramp = np.linspace(60_000, 60_255, 60, dtype=np.uint16).reshape(6, 10)
    Image.fromarray(ramp).save(tmp_path / "x.png")
    to_grey(open_image(tmp_path / "x.png"))
    assert caplog.messages == [f"{tmp_path / 'x.png'}: 2 greys left of more than 8 bits; scale its values to 0 to 255"]
    to_grey(Image.fromarray(ramp - 60_000))
    assert len(caplog.messages) == 1


def colour_layer(colour, background):
    """RGBA: the lesion in one opaque colour, the rest in another that is transparent."""
    layer = np.where(MASK[..., None] > 0, np.uint8(colour), np.uint8(background))
    return Image.fromarray(np.dstack([layer, MASK]))


@pytest.mark.parametrize(
    "mask",
    [
        Image.fromarray(MASK),
        Image.fromarray(MASK // 255),
        Image.fromarray(MASK // 255 * 128),
        Image.fromarray(MASK).convert("1"),
        Image.fromarray(MASK).convert("P"),
        Image.fromarray(MASK).convert("RGB").quantize(2),  # the palette begins with white
        Image.fromarray(MASK).convert("CMYK"),
        Image.fromarray(MASK.astype(np.uint16) * 257),
        Image.fromarray(MASK // 255 * np.int32(3)),
        Image.fromarray(MASK / np.float32(255)),
        Image.fromarray(np.dstack([MASK // 255 * 200, MASK * 0, MASK * 0])),
        Image.fromarray(np.dstack([MASK, np.full_like(MASK, 255)])),
        Image.fromarray(np.dstack([MASK * 0, MASK])),
        colour_layer((255, 255, 255), (255, 255, 255)),
        colour_layer(RED, (255, 255, 255)),
        colour_layer((0, 0, 0), (255, 255, 255)),
    ],
    ids="255 1 128 1-bit P palette CMYK 16-bit 3 float red LA alpha white red-layer black-layer".split(),
)
def test_every_kind_of_mask_is_the_same_mask(mask):
    notes = []
    found = to_mask(mask, notes.append)
    assert found.dtype == np.uint8 and np.array_equal(found, MASK) and not notes


@pytest.mark.parametrize("value", [0, 255])
def test_a_mask_of_one_value_is_empty_or_full(value):
    assert (to_mask(Image.new("L", (4, 3), value)) == value).all()
    assert not to_mask(Image.new("RGBA", (4, 3), (255, 255, 255, 0))).any()


@pytest.mark.parametrize("quality", [30, 60, 75, 95])
@pytest.mark.parametrize("colour", ["L", "RGB"])
def test_noise_of_jpeg_and_soft_edges_are_cut_in_the_middle_and_said(colour, quality, caplog):
    caplog.set_level("INFO")
    large = np.kron(MASK, np.ones((5, 5), np.uint8))
    file = io.BytesIO()
    Image.fromarray(large).convert(colour).save(file, "jpeg", quality=quality)
    assert (to_mask(Image.open(file)) != large).mean() < 0.002
    assert "cut at 127" in caplog.text
    soft = Image.fromarray(MASK).resize((200, 150), Image.Resampling.BILINEAR)
    assert (to_mask(soft) != large).mean() < 0.005


def labels(*values):
    """A mask with some pixels of each value beside the 0."""
    mask = np.zeros((30, 40), np.uint8)
    for row, value in enumerate(values):
        mask[2 * row : 2 * row + 2, 5:25] = value
    return Image.fromarray(mask)


@pytest.mark.parametrize(
    "mask, reason",
    [
        (labels(1, 255), r"several greys \(0, 1, 255\)"),
        (labels(128, 255), r"several greys \(0, 128, 255\)"),
        (labels(1, 2), "several greys"),
        (labels(*range(1, 15)), "several greys"),
        (Image.fromarray(np.where(MASK > 0, MASK, 64)), "several greys"),  # no background of 0
        (Image.fromarray(np.where(MASK > 0, MASK, 200)), "several greys"),
        (Image.linear_gradient("L"), "several greys"),
        (Image.fromarray(np.random.default_rng(0).normal(100, 15, (60, 80)).astype(np.uint8)), "several greys"),
        (Image.fromarray(np.where(MASK[..., None] > 0, np.uint8((255, 0, 0)), ON_WHITE)), "several colours"),
        (Image.fromarray(np.dstack([MASK, 255 - MASK, MASK * 0])), "several colours"),
        (Image.fromarray(np.array([[-1, 0, 1]], np.int32)), "several greys"),
    ],
)
def test_several_greys_or_colours_are_refused(mask, reason):
    with pytest.raises(ValueError, match=reason):
        to_mask(mask)


def test_an_image_is_turned_as_a_viewer_turns_it(tmp_path):
    stored = np.random.default_rng(0).integers(0, 256, (20, 30)).astype(np.uint8)
    upright = {1: stored, 3: stored[::-1, ::-1], 6: np.rot90(stored, -1), 8: np.rot90(stored)}
    for orientation, expected in upright.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        for extension in ("png", "tif", "webp"):
            options = {"lossless": True} if extension == "webp" else {}
            Image.fromarray(stored).save(tmp_path / f"a.{extension}", exif=exif, **options)
            image = open_image(tmp_path / f"a.{extension}")
            assert image.size == expected.shape[::-1] and np.array_equal(to_grey(image), expected)


@pytest.mark.parametrize("extension", ["png", "jpg", "bmp", "tif", "webp", "gif"])
def test_documented_formats_are_opened_by_content(extension, tmp_path):
    Image.fromarray(MASK).save(tmp_path / f"a.{extension}")
    (tmp_path / f"a.{extension}").rename(tmp_path / "a.dat")
    assert open_image(tmp_path / "a.dat").size == (40, 30)


def test_the_first_frame_is_taken(tmp_path, caplog):
    caplog.set_level("INFO")
    first, second = Image.fromarray(MASK), Image.fromarray(255 - MASK)
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second, first])
    assert np.array_equal(LoadGreyd("image")({"image": tmp_path / "a.gif"})["image"].numpy().T, MASK)
    assert f"{tmp_path / 'a.gif'}: first of 3 frames used" in caplog.text


@pytest.mark.parametrize("extension", ["ppm", "ico", "tga", "pcx"])
def test_other_formats_are_refused_whatever_the_name(extension, tmp_path):
    Image.fromarray(MASK).convert("RGB").save(tmp_path / f"a.{extension}")
    (tmp_path / f"a.{extension}").rename(tmp_path / "a.png")
    with pytest.raises(ValueError, match="not PNG, JPEG, BMP, TIFF, WebP or GIF"):
        open_image(tmp_path / "a.png")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_001, 20_000])
def test_a_giant_is_refused_before_it_is_decoded(side, tmp_path, monkeypatch):
    Image.new("1", (side, side)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="more than 100 megapixels"):
        open_image(tmp_path / "a.png")


def test_refused_files_are_named_and_no_other_reader_tries_them(tmp_path):
    labels(1, 255).save(tmp_path / "mask.png")
    Image.linear_gradient("L").resize((40, 30)).save(tmp_path / "image.png")
    Image.new("L", (40, 30), 77).save(tmp_path / "flat.png")
    (tmp_path / "empty.png").touch()
    load_image, load_mask = LoadGreyd("image"), LoadMaskd("label")
    with pytest.raises(ValueError, match=f"^{tmp_path / 'empty.png'}: empty file"):
        load_image({"image": tmp_path / "empty.png"})
    with pytest.raises(ValueError, match=f"^{tmp_path / 'flat.png'}: one grey alone"):
        load_image({"image": tmp_path / "flat.png"})
    with pytest.raises(FileNotFoundError, match="nowhere.png"):
        load_image({"image": tmp_path / "nowhere.png"})
    item = load_image({"image": tmp_path / "image.png", "label": tmp_path / "mask.png"})
    with pytest.raises(ValueError, match=f"^{tmp_path / 'mask.png'}: several greys"):
        load_mask(item)


@pytest.mark.parametrize("size", [(39, 30), (40, 1), (1, 30), (1, 1), (30, 40)])
def test_a_mask_of_another_size_than_its_image_is_refused(size, tmp_path):
    Image.linear_gradient("L").resize((40, 30)).save(tmp_path / "image.png")
    Image.new("L", size).save(tmp_path / "mask.png")
    item = LoadGreyd("image")({"image": tmp_path / "image.png", "label": tmp_path / "mask.png"})
    with pytest.raises(ValueError, match="mask.png: {} x {} pixels, its image 40 x 30".format(*size)):
        LoadMaskd("label")(item)


@pytest.mark.parametrize("size", [(400, 90), (90, 400), (300, 500), (64, 64), (40, 50)])
@pytest.mark.parametrize("kind", [torch.Tensor, MetaTensor])
def test_an_image_gets_the_area_of_a_square_as_monai_resizes_and_keeps_its_shape(size, kind):
    image = kind(torch.rand(2, *size) * 255)
    item = {"image": image.clone(), "label": (image > 99).float(), "name": "kept"}
    found = ResizeToAread(["image", "label"], 64, ["bilinear", "nearest"])(item)
    shape = found["image"].shape[1:]
    assert abs(shape[0] * shape[1] / 64**2 - 1) < 0.02 and abs(shape[0] / shape[1] / (size[0] / size[1]) - 1) < 0.02
    expected = Resized("image", shape, mode="bilinear", anti_aliasing=True)({"image": image})["image"]
    assert torch.allclose(found["image"].as_tensor(), expected.as_tensor(), atol=1e-2)
    assert found["label"].unique().tolist() == [0, 1]
    assert torch.equal(item["image"], image) and found["name"] == "kept"


@pytest.mark.parametrize("size", [(300, 100), (100, 300), (1024, 40), (20, 20), (97, 131)])
def test_what_is_found_at_the_networks_size_comes_back_at_the_images_own(size):
    truth = torch.zeros(1, *size)
    truth[:, size[0] // 4 : size[0] // 2, size[1] // 3 : size[1] // 2 + 1] = 1
    steps = Compose([ResizeToAread("image", 256), NormalizeIntensityd("image"), DivisiblePadd("image", 32)])
    item = steps({"image": MetaTensor(truth)})
    assert all(side % 32 == 0 for side in item["image"].shape[1:])
    back = steps.inverse({"image": (item["image"] > 0).float()})["image"] > 0.5
    assert back.shape == truth.shape and (back == (truth > 0)).float().mean() > 0.99
