"""Images that the bundle's input check should not take for breast ultrasound: shipped by packages, drawn, or altered.

Each kind is a function that gives one image, of whatever size and mode; `CHANGED` ones alter an ultrasound image.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from functools import lru_cache

import cv2
import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFont

TEXT = "Findings: no focal lesion in either breast, both axillae without enlarged nodes. Control in twelve months. "
CT = ("CT_small.dcm", "693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm")
SCINTIGRAM = ("JPEG2000.dcm",)
OTHER_ORGANS = ("examples_rgb_color.dcm", "examples_palette.dcm", "examples_ybr_color.dcm", "examples_jpeg2k.dcm")


@lru_cache
def _photographs() -> tuple[Image.Image, ...]:
    """Photographs that scikit-learn and Matplotlib bring along."""
    from matplotlib.cbook import get_sample_data
    from sklearn.datasets import load_sample_images

    with get_sample_data("grace_hopper.jpg") as file:
        portrait = Image.open(file).convert("RGB")
    return (*(Image.fromarray(image) for image in load_sample_images().images), portrait)


@lru_cache
def _shipped(names: tuple[str, ...]) -> tuple[Image.Image, ...]:
    """Pictures of pydicom's own test files, stretched to 8 bits."""
    from pydicom import dcmread
    from pydicom.data import get_testdata_file
    from pydicom.pixels import apply_color_lut, pixel_array

    found = []
    for name in names:
        file = get_testdata_file(name)
        header, pixels = dcmread(file, stop_before_pixels=True), pixel_array(file, index=0)
        if header.PhotometricInterpretation == "PALETTE COLOR":
            pixels = apply_color_lut(pixels, header)[..., :3]
        low, high = (0, 255) if pixels.dtype == np.uint8 else np.percentile(pixels, (1, 99))
        found.append(Image.fromarray((255 * ((pixels - low) / (high - low)).clip(0, 1)).astype(np.uint8)))
    return tuple(found)


@lru_cache
def _head() -> tuple[Image.Image, ...]:
    """Magnetic resonance: a head that Matplotlib brings along, and pydicom's."""
    from matplotlib.cbook import get_sample_data

    with gzip.open(get_sample_data("s1045.ima.gz", asfileobj=False)) as file:
        pixels = np.frombuffer(file.read(), np.uint16).reshape(256, 256)
    head = Image.fromarray((255 * (pixels / np.percentile(pixels, 99)).clip(0, 1)).astype(np.uint8))
    return (head, *_shipped(("MR_small.dcm", "examples_overlay.dcm")))


def _part(images: tuple[Image.Image, ...], random: Generator) -> Image.Image:
    """A random part of one of some images, of at least half its sides."""
    image = images[random.integers(len(images))]
    width, height = (int(side * random.uniform(0.5, 1)) for side in image.size)
    left, top = (int(random.integers(whole - part + 1)) for whole, part in zip(image.size, (width, height)))
    return image.crop((left, top, left + width, top + height))


def photograph(random: Generator) -> Image.Image:
    """In colour."""
    return _part(_photographs(), random)


def grey_photograph(random: Generator) -> Image.Image:
    """Without colour."""
    return photograph(random).convert("L")


def tomogram(random: Generator) -> Image.Image:
    """X-ray computed tomography."""
    return _part(_shipped(CT), random)


def magnetic_resonance(random: Generator) -> Image.Image:
    """Heads and a small slice."""
    return _part(_head(), random)


def scintigram(random: Generator) -> Image.Image:
    """A bone scan of nuclear medicine."""
    return _part(_shipped(SCINTIGRAM), random)


def other_organ(random: Generator) -> Image.Image:
    """Ultrasound of other organs, partly with Doppler, as the scanner's screen."""
    return _shipped(OTHER_ORGANS)[random.integers(len(OTHER_ORGANS))]


def page_of_text(random: Generator) -> Image.Image:
    """Dark on light, as a scanned report."""
    image = Image.new("L", (600, 800), 255)
    _write(image, 0, random)
    return image


def screen_of_text(random: Generator) -> Image.Image:
    """Light on dark, as a worksheet of measurements."""
    image = Image.new("L", (800, 600), int(random.integers(0, 30)))
    _write(image, 230, random)
    return image


def _write(image: Image.Image, colour: int, random: Generator) -> None:
    size = int(random.integers(11, 26))
    for top in range(20, image.height - 40, 2 * size):
        start = int(random.integers(len(TEXT)))
        line = ((TEXT + TEXT)[start:] + TEXT)[: int(random.integers(10, image.width // size))]
        ImageDraw.Draw(image).text((20, top), line, fill=colour, font=ImageFont.load_default(size))


def chart(random: Generator) -> Image.Image:
    """A diagram, grey."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4))
    axes = figure.subplots()
    axes.plot(random.normal(size=(50, 3)).cumsum(0))
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return Image.open(file).convert("L")


def relief(random: Generator) -> Image.Image:
    """Heights of a landscape that Matplotlib brings along."""
    from matplotlib.cbook import get_sample_data

    heights = np.load(get_sample_data("jacksboro_fault_dem.npz", asfileobj=False))["elevation"].astype(float)
    scaled = 255 * (heights - heights.min()) / np.ptp(heights)
    return _part((Image.fromarray(scaled.astype(np.uint8)),), random)


def white_noise(random: Generator) -> Image.Image:
    """Of an input without a probe."""
    return Image.fromarray(random.normal(100, 40, (400, 500)).clip(0, 255).astype(np.uint8))


def nearly_black(random: Generator) -> Image.Image:
    """A frozen screen with faint noise."""
    return Image.fromarray(np.abs(random.normal(0, 6, (400, 500))).astype(np.uint8))


def doppler_box(image: np.ndarray, random: Generator) -> Image.Image:
    """Colour flow in a box."""
    height, width = image.shape
    flow = cv2.GaussianBlur(random.normal(0, 1, image.shape), (0, 0), max(3.0, width / 60))
    flow /= flow.std()
    box = np.zeros(image.shape, bool)
    top, left = int(height * random.uniform(0.1, 0.4)), int(width * random.uniform(0.1, 0.4))
    box[top : top + height // 2, left : left + width // 2] = True
    colour = np.where(flow[..., None] > 0, (230, 60, 0), (0, 80, 240))
    seen = (np.abs(flow) > 1) & box
    return Image.fromarray(np.where(seen[..., None], colour, image[..., None]).astype(np.uint8))


def elastogram(image: np.ndarray, random: Generator) -> Image.Image:
    """Strain in colours over a part of the picture."""
    strain = cv2.GaussianBlur(random.normal(0, 1, image.shape), (0, 0), image.shape[1] / 15)
    strain = cv2.normalize(strain, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(strain, cv2.COLORMAP_JET), cv2.COLOR_BGR2RGB)
    result = np.repeat(image[..., None], 3, axis=2)
    part = np.s_[image.shape[0] // 6 : image.shape[0] * 2 // 3, image.shape[1] // 4 : image.shape[1] * 3 // 4]
    result[part] = result[part] // 2 + colours[part] // 2
    return Image.fromarray(result)


def two_with_a_gap(image: np.ndarray, random: Generator) -> Image.Image:
    """Two pictures side by side, black between them."""
    gap = np.zeros((image.shape[0], max(6, image.shape[1] // 30)), np.uint8)
    return Image.fromarray(np.hstack([image, gap, cv2.convertScaleAbs(image, alpha=0.9)]))


def two_side_by_side(image: np.ndarray, random: Generator) -> Image.Image:
    """Two pictures that touch: what lies left of the middle stands right of it too, at another gain."""
    half = image[:, : image.shape[1] * 2 // 3]
    return Image.fromarray(np.hstack([half, cv2.convertScaleAbs(half, alpha=float(random.uniform(0.6, 1.4)))]))


def inverted(image: np.ndarray, random: Generator) -> Image.Image:
    """Black is white."""
    return Image.fromarray(255 - image)


def upside_down(image: np.ndarray, random: Generator) -> Image.Image:
    """The skin lies at the bottom."""
    return Image.fromarray(np.ascontiguousarray(image[::-1]))


def m_mode(image: np.ndarray, random: Generator) -> Image.Image:
    """One line of sight over time, under a sine of breathing."""
    line = image[:, int(random.integers(image.shape[1]))].astype(np.float32)
    time = np.arange(image.shape[1])
    depth = np.arange(len(line))[:, None] + 4 * np.sin(time / 20 + random.uniform(0, 6))
    moved = cv2.remap(line[:, None], np.zeros_like(depth, np.float32), depth.astype(np.float32), cv2.INTER_LINEAR)
    return Image.fromarray((moved + random.normal(0, 4, moved.shape)).clip(0, 255).astype(np.uint8))


def thumbnail(image: np.ndarray, random: Generator) -> Image.Image:
    """24 pixels wide."""
    return Image.fromarray(image).resize((24, max(8, 24 * image.shape[0] // image.shape[1])))


SHIPPED = (photograph, grey_photograph, tomogram, magnetic_resonance, scintigram, other_organ, relief)
DRAWN = (page_of_text, screen_of_text, chart, white_noise, nearly_black)
CHANGED = (doppler_box, elastogram, two_with_a_gap, two_side_by_side, inverted, upside_down, m_mode, thumbnail)


def foreign_images(count: int, ultrasound: list[np.ndarray], seed: int = 0) -> Iterator[tuple[str, Image.Image]]:
    """Kind and image, `count` of each kind.

    Args:
        count: images of a kind.
        ultrasound: uint8 (rows, columns), to be altered, in turn.
        seed: of what is drawn.
    """
    for number, make in enumerate((*SHIPPED, *DRAWN, *CHANGED)):
        random = np.random.default_rng([seed, number])
        for k in range(count):
            given = (ultrasound[k % len(ultrasound)], random) if make in CHANGED else (random,)
            yield make.__name__, make(*given)
