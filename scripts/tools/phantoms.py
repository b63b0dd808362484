"""The phantoms of make_phantoms.py, which says what is imitated and from where."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin
from scipy.ndimage import gaussian_filter, gaussian_filter1d, map_coordinates

SHARES = {"benign": 0.56, "malignant": 0.27, "normal": 0.17}  # of the images, as in BUSI
MIN_COUNT = 12  # the fewest that hold every oddity and two images of each class
RANGE_DB = 60.0  # dynamic range: -60 dB is black, 0 dB white
PULSE = (0.75, 1.25)  # Gaussian sigma of the pulse along and across the beam, in pixels
SIGNATURE = "synthetic breast ultrasound phantom by make_phantoms.py"  # PNG text: tells our files from the user's

SIZES = {("benign", 1): (301, 211), ("benign", 6): (157, 291)}  # width, height in pixels; others are drawn
LESIONS = {("benign", 4): 2, ("benign", 5): 3, ("malignant", 2): 2}  # others have one
RGBA_MASKS = {("benign", 4, 1), ("benign", 5, 2)}  # class, number, mask
NO_MASK = {("benign", 2)}
DOPPLER = {("benign", 3), ("malignant", 3)}
CHANGED_BY_TEXT = 40  # grey levels from which on a text's soft edge counts as the text's


def numbers_of(count: int) -> dict[str, int]:
    """Number of images of each class, of `count` in all."""
    numbers = {name: round(share * count) for name, share in SHARES.items()}
    return numbers | {"normal": count - numbers["benign"] - numbers["malignant"]}


def is_ours(folder: Path) -> bool:
    """True if `folder` is a real folder with nothing in it but class folders of PNG files that bear our signature."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    for entry in folder.rglob("*"):
        if entry.is_dir() and not entry.is_symlink() and entry.parent == folder and entry.name in SHARES:
            continue
        if not entry.is_file():
            return False
        try:
            with Image.open(entry) as image:
                if image.info.get("Description") != SIGNATURE:
                    return False
        except OSError:  # no image
            return False
    return True


def swap(new: Path, output: Path, old: Path) -> None:
    """Put `new` in the place of `output`; the former one goes to `old`, and comes back if the move fails."""
    if output.exists():
        output.rename(old)
    try:
        new.rename(output)
    except BaseException:
        if old.exists():
            old.rename(output)
        raise


def write_phantom(folder: Path, label: str, number: int, seed: int) -> int:
    """Draw and save one phantom and its masks; returns the number of mask files."""
    key = (label, number)
    rng = np.random.default_rng([seed, list(SHARES).index(label), number])
    width, height = SIZES.get(key) or (int(rng.integers(220, 361)), int(rng.integers(150, 216)))
    echo = _tissue(height, width, rng)
    lesions = 0 if label == "normal" else LESIONS.get(key, 1)
    masks = [_add_lesion(echo, label, (slot, lesions), key == ("benign", 1), rng) for slot in range(lesions)]
    grey = _grey(_speckle(echo, rng))
    image = Image.fromarray(np.repeat(grey[..., None], 3, axis=2))
    region = np.any(masks, axis=0) if masks else np.zeros((height, width), bool)
    if key in DOPPLER:
        _colour_flow(image, region, rng)
    _marks(image, masks[0] if masks else region, number, key in DOPPLER, rng)

    info = PngImagePlugin.PngInfo()
    info.add_text("Description", SIGNATURE)
    image.save(folder / f"{label} ({number}).png", pnginfo=info)
    if key in NO_MASK:
        return 0
    for index, mask in enumerate(masks or [region]):
        mode = "RGB" if label == "normal" else "RGBA" if (*key, index) in RGBA_MASKS else "1"
        suffix = f"_{index}" if index else ""
        Image.fromarray(mask).convert(mode).save(folder / f"{label} ({number})_mask{suffix}.png", pnginfo=info)
    return max(1, len(masks))


def _wave(size: int, rng: Generator) -> np.ndarray:
    """Smooth random curve: float [size], about -1 to 1."""
    x = np.linspace(0, 1, size)
    return sum(rng.normal(0, 0.4) * np.cos(2 * np.pi * (f * x + rng.random())) for f in (0.4, 0.9, 1.7))


def _noise(shape: tuple[int, int], sigma: tuple[float, float], rng: Generator) -> np.ndarray:
    """Gaussian random field of unit variance with the correlation lengths `sigma` (pixels down, across)."""
    field = gaussian_filter(rng.standard_normal(shape), sigma, mode="wrap")
    return field / field.std()


def _tissue(height: int, width: int, rng: Generator) -> np.ndarray:
    """Echo level of tissue without a lesion, skin to chest wall: float [height, width] in dB (0 = white)."""
    y = np.arange(height)[:, None] / height
    bend = 0.04 * _wave(width, rng)
    fat_end = rng.uniform(0.2, 0.36) + bend + 0.03 * _wave(width, rng)
    gland_end = rng.uniform(0.56, 0.72) + bend
    muscle_end = gland_end + rng.uniform(0.16, 0.24) + 0.02 * _wave(width, rng)
    layers = [
        (-1, -33.0, 0.7),
        (fat_end, rng.uniform(-30, -24), 1.0),
        (gland_end, -34.0, 1.1),
        (muscle_end, -42.0, 0.5),
    ]
    echo, strands = np.zeros((height, width)), np.zeros((height, width))
    for start, level, strand in layers:
        inside = 1 / (1 + np.exp(np.clip((start - y) * height / 2, -50, 50)))  # a border two pixels wide
        echo += inside * (level - echo)
        strands += inside * (strand - strands)
    # Strands and fibres run along the layers: long thin noise, bent like the borders, of which only the crests show.
    grid = np.mgrid[:height, :width].astype(float)
    grid[0] -= height * bend + 4 * _noise((height, width), (12, 20), rng)
    fibres = map_coordinates(_noise((height, width), (1.1, 14), rng), grid, order=1, mode="reflect")
    lobules = map_coordinates(_noise((height, width), (5, 13), rng), grid, order=1, mode="reflect")
    echo += strands * (9.0 * np.maximum(fibres - 0.5, 0) + 2.8 * lobules - 2)
    for border, gain in ((fat_end, 5), (gland_end, 10), (muscle_end, 8)):  # fasciae
        echo += gain * np.exp(-(((y - border) * height / 1.8) ** 2)) * (0.5 + 0.5 * _wave(width, rng))
    echo += 16 * np.exp(-((y * height / 3.5) ** 2))  # skin
    echo -= rng.uniform(5, 17) * y**1.6  # attenuation that the depth gain leaves
    contact = np.maximum(_noise((1, width), (0, width / 12), rng) - 0.7, 0)  # shadows of poor contact, in every class
    return echo - 5 * contact * np.minimum(y * 4, 1) + rng.uniform(-3, 3)


def _outline(label: str, a: float, b: float, tilt: float, rng: Generator) -> np.ndarray:
    """Closed outline about (0, 0): float [180, 2] as x, y in pixels, half axes `a`, `b` pixels, `tilt` in radians."""
    t = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    harmonics, rough = (range(2, 5), 0.035) if label == "benign" else (range(2, 15), rng.uniform(0.035, 0.065))
    radius = 1 + sum(rng.normal(0, rough) * np.cos(k * t + rng.uniform(0, 2 * np.pi)) for k in harmonics)
    if label == "malignant":  # angular or spiculated margin: a few short peaks
        for at in rng.uniform(0, 2 * np.pi, rng.integers(2, 8)):
            radius += rng.uniform(0.1, 0.4) * np.exp(-(((np.angle(np.exp(1j * (t - at)))) / 0.13) ** 2))
    x, y = a * radius * np.cos(t), b * radius * np.sin(t)
    return np.stack([x * np.cos(tilt) - y * np.sin(tilt), x * np.sin(tilt) + y * np.cos(tilt)], axis=1)


def _add_lesion(echo: np.ndarray, label: str, slot: tuple[int, int], witness: bool, rng: Generator) -> np.ndarray:
    """Draw one lesion into `echo` (float [height, width] in dB, changed in place); returns its mask, bool of its shape.

    `slot` is (index, number of lesions): the lesions of an image stand side by side. The `witness` of orientation is
    a tilted lesion in the upper left quarter.
    """
    height, width = echo.shape
    index, total = slot
    size = min(height, 0.8 * width / total) * rng.uniform(0.12, 0.25)
    malignant = label == "malignant"
    ratio = rng.uniform(0.7, 1.2) if malignant else rng.uniform(0.52, 0.85)  # benign: wider than tall
    a, b, tilt = size / ratio**0.5, size * ratio**0.5, rng.normal(0, 0.2)
    centre = np.array([(index + rng.uniform(0.32, 0.68)) / total * width, rng.uniform(0.27, 0.55) * height])
    if witness:
        a, b, tilt, centre = 0.2 * height, 0.1 * height, 0.5, np.array([0.27 * width, 0.36 * height])
    canvas = Image.new("1", (width, height))
    ImageDraw.Draw(canvas).polygon([tuple(point) for point in _outline(label, a, b, tilt, rng) + centre], fill=1)
    mask = np.array(canvas)
    soft = gaussian_filter(mask.astype(float), rng.uniform(1.2, 2.6) if malignant else rng.uniform(0.6, 1.4))

    # Posterior features grow with the way through the lesion, and stand behind it only.
    behind = gaussian_filter1d(np.cumsum(soft, axis=0) / (2 * b), 3.0, axis=1) * (1 - soft)
    cyst = witness or (not malignant and rng.random() < 0.4)
    if malignant:
        level, posterior = rng.uniform(-47, -39), -rng.uniform(9, 20) if rng.random() < 0.75 else rng.uniform(-2, 3)
    elif cyst:
        level, posterior = rng.uniform(-60, -52), rng.uniform(7, 12)
    else:
        level, posterior = rng.uniform(-45, -37), rng.uniform(2, 7) if rng.random() < 0.7 else rng.uniform(-6, 1)
    rim = gaussian_filter(soft, 3.5 if malignant else 1.2) * (1 - soft)  # echogenic halo, or a thin capsule
    echo += rng.uniform(0, 12) * rim + posterior * behind
    inner = level + (1.0 if cyst else 2.5) * _noise(echo.shape, (3, 4), rng)
    echo += soft * (inner - echo)
    if rng.random() < (0.4 if malignant else 0.15):  # calcifications
        rows, columns = np.nonzero(mask)
        for spot in rng.integers(0, len(rows), rng.integers(3, 9)):
            echo[rows[spot] : rows[spot] + 2, columns[spot] : columns[spot] + 2] += 18
    return mask


def _speckle(echo: np.ndarray, rng: Generator, looks: int = 3) -> np.ndarray:
    """Fully developed speckle: mean of `looks` envelopes, float [height, width], each of mean square 10**(echo / 10).

    For one look, a scatterer of random amplitude and phase in each pixel is blurred by a Gaussian pulse, wider across
    the beam than along it. Where `echo` (dB) is even, the envelope is Rayleigh distributed, with a mean of 1.91
    standard deviations; `looks` independent ones, as in compound imaging, raise that by looks**0.5 (Wagner et al.).
    """
    scatter = rng.standard_normal((looks, 2, *echo.shape)) * 10 ** (echo / 20)
    field = gaussian_filter(scatter, (0, 0, *PULSE))
    energy = 1 / (4 * np.pi * PULSE[0] * PULSE[1])  # what the blur leaves of white noise
    return np.hypot(field[:, 0], field[:, 1]).mean(axis=0) / np.sqrt(2 * energy)


def _grey(envelope: np.ndarray) -> np.ndarray:
    """Log compression: uint8, 0 at -60 dB and below, 255 at 0 dB and above."""
    level = 20 * np.log10(np.maximum(envelope, 1e-6))
    return np.clip(255 * (1 + level / RANGE_DB), 0, 255).astype(np.uint8)


def _colour_flow(image: Image.Image, region: np.ndarray, rng: Generator) -> None:
    """Draw a Doppler box with vessels around the lesion (`region`, bool [height, width]) into the RGB image."""
    rows, columns = np.nonzero(region)
    box = (max(columns.min() - 25, 2), max(rows.min() - 20, 8))
    box += (min(columns.max() + 25, image.width - 3), min(rows.max() + 20, image.height - 3))
    flow, speed = _noise(region.shape, (3, 5), rng), _noise(region.shape, (6, 9), rng)
    vessel = (flow > 1.6) & ~region
    vessel[: box[1]] = vessel[box[3] :] = vessel[:, : box[0]] = vessel[:, box[2] :] = False
    light = np.clip(130 + 60 * (flow - 1.6) + 60 * np.abs(speed), 0, 255)[..., None]
    colours = np.where(speed[..., None] > 0, light * (1, 0.35, 0), light * (0, 0.4, 1))  # to the probe: red
    pixels = np.where(vessel[..., None], colours, np.asarray(image)).astype(np.uint8)
    image.paste(Image.fromarray(pixels))
    ImageDraw.Draw(image).rectangle([int(v) for v in box], outline=(110, 110, 60))


def _marks(image: Image.Image, region: np.ndarray, number: int, doppler: bool, rng: Generator) -> None:
    """Burn callipers, text and pictogram into the RGB image, by its number; `region` is the first lesion (bool)."""
    draw, (width, height) = ImageDraw.Draw(image), image.size
    colour = (255, 255, 0) if doppler else (235, 235, 235)
    if number % 4 == 2 or doppler:
        rows, columns = np.nonzero(region)
        if not len(rows):  # normals are measured too, at some place, so that crosses do not tell the class
            rows = rng.uniform(0.2, 0.5) * height + np.array([0, 0.2 * height])
            columns = rng.uniform(0.2, 0.6) * width + np.array([0, 0.25 * width])
        left, right, top, bottom = (int(v) for v in (columns.min(), columns.max(), rows.min(), rows.max()))
        x, y = (left + right) // 2, (top + bottom) // 2
        draw.point([(i, y) for i in range(left, right, 4)] + [(x, i) for i in range(top, bottom, 4)], fill=colour)
        for x, y in ((left, y), (right, y), (x, top), (x, bottom)):
            draw.line((x - 3, y, x + 3, y), fill=colour)
            draw.line((x, y - 3, x, y + 3), fill=colour)
    if number % 3 == 0:
        text = f"{rng.choice(['RT', 'LT'])} {rng.choice(['UOQ', 'UIQ', 'LOQ', 'AXILLA'])}"
        draw.text((int(rng.integers(6, width // 2)), height - 22), text, fill=colour, font=ImageFont.load_default(11))
    if number % 5 == 1:
        x, y, turn = width - 20, height - 18, rng.uniform(0, np.pi)
        draw.circle((x, y), 12, outline=colour)
        draw.circle((x, y), 1, fill=colour)
        x, y = x + 8 * np.cos(turn), y + 8 * np.sin(turn)
        draw.line((x - 4, y, x + 4, y), fill=colour, width=2)  # the probe


class Screen(NamedTuple):
    """What a scanner shows and stores: a phantom within what it writes.

    Attributes:
        image: uint8 (480, 640).
        tissue: bool (480, 640), the phantom's place.
        texts: where each kind of text stands, bool (480, 640); `remark` moves in the tissue, `body mark` stays in it
            but for the probe; `logo` is always the same, the others differ beside the tissue.
    """

    image: np.ndarray
    tissue: np.ndarray
    texts: dict[str, np.ndarray]


def screen(number: int, seed: int = 0) -> Screen:
    """Draw one screen of a scanner; number and seed make patient, date and tissue."""
    rng = np.random.default_rng([seed, 3, number])
    echo = _tissue(180, 240, rng)
    _add_lesion(echo, str(rng.choice(["benign", "malignant"])), (0, 1), False, rng)
    image, tissue = np.zeros((480, 640), np.uint8), np.zeros((480, 640), bool)
    place = np.s_[80:404, 100:532]
    tissue[place] = True
    image[place] = cv2.resize(_grey(_speckle(echo, rng)), (432, 324), interpolation=cv2.INTER_CUBIC)
    image[80:404, 600:612] = np.linspace(255, 0, 324).astype(np.uint8)[:, None]  # the bar of greys
    family, given = ("".join(rng.choice(list("AEIKLMNORSTU"), rng.integers(4, 12))) for _ in range(2))
    day = "{:02}.{:02}.20{:02} {:02}:{:02}".format(*rng.integers((1, 1, 10, 7, 0), (29, 13, 26, 19, 60)))
    at = (int(rng.integers(140, 360)), int(rng.integers(300, 390)))
    words = {
        "name": [(f"{family}, {given}", (16, 28), 0.6)],
        "date": [(day, (440, 28), 0.5), (f"ID {rng.integers(10**5, 10**8)}", (16, 54), 0.45)],
        "settings": [
            (f"Gn {rng.integers(30, 70)}", (12, 200), 0.45),
            (f"D {rng.uniform(3, 6):.1f} cm", (12, 224), 0.45),
        ],
        "logo": [("PHANTOM", (540, 464), 0.7)],
        "remark": [(f"{rng.choice(['RT', 'LT'])} {rng.integers(1, 13)}H", at, 0.5)],
    }
    texts = {}
    for kind, lines in words.items():
        layer = np.zeros_like(image)
        for text, origin, size in lines:
            cv2.putText(layer, text, origin, cv2.FONT_HERSHEY_SIMPLEX, size, 230, 1, cv2.LINE_AA)
        if kind == "logo":
            cv2.circle(layer, (60, 444), 18, 230, -1)
        image, texts[kind] = np.maximum(image, layer), layer > CHANGED_BY_TEXT
    sign = texts["body mark"] = np.zeros_like(tissue)
    sign[340:404, 462:532] = True
    image[sign] = 130
    cv2.circle(image, (497, 376), 22, 90, 2)
    angle = rng.uniform(0, 2 * np.pi)
    cv2.circle(image, (497 + round(14 * np.cos(angle)), 376 + round(14 * np.sin(angle))), 5, 230, -1)  # the probe
    return Screen(image, tissue & ~sign, texts)
