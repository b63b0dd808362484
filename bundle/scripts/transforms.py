"""From a file to grey pixels, and from the network's scores to a mask and a class with probabilities."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import PILReader
from monai.networks.layers import gaussian_1d
from monai.transforms import InvertibleTransform, LoadImaged, MapTransform, Resize, Transform
from monai.utils import convert_to_dst_type, convert_to_tensor, ensure_tuple, ensure_tuple_rep
from PIL import Image, ImageOps

from .calibration import NEUTRAL

logger = logging.getLogger(__name__)
NORMAL, MALIGNANT = "normal", "malignant"  # names of classes that mean something here
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF")  # by content; EPS would start Ghostscript
MOST_PIXELS = 100_000_000  # a file of a few kilobytes can unpack to gigabytes
FEW_VALUES = 8  # a mask of no more values than this holds labels; soft edges and JPEG bring more


def open_image(file: str | Path) -> Image.Image:
    """Decode the first frame of an image file, turned as its EXIF orientation says: as a viewer shows it.

    ``filename`` is the file, ``info["frames"]`` the number of its frames.

    Raises:
        ValueError: the file is damaged, of a format that is not in ``FORMATS``, or above ``MOST_PIXELS``, which its
            header tells. The caller names the file.
        OSError: the system cannot read the file; the message names it.
    """
    try:
        # By name, Pillow 13 maps an uncompressed TIFF into memory and mixes up width and height of a turned one.
        with open(file, "rb") as stream, Image.open(stream, formats=FORMATS) as image:
            check_pixels(image.size)
            if image.format == "PNG":  # whose checksums decoding does not look at
                with Image.open(file, formats=FORMATS) as again:
                    again.verify()
            frames = getattr(image, "n_frames", 1)
            ImageOps.exif_transpose(image, in_place=True)  # decodes it
            image.filename, image.info["frames"] = str(file), frames
            return image
    except Image.DecompressionBombError:
        raise ValueError(f"more than {MOST_PIXELS // 10**6} megapixels; make it smaller") from None
    except Image.UnidentifiedImageError:
        reason = "empty file (0 bytes)" if not Path(file).stat().st_size else "not PNG, JPEG, BMP, TIFF, WebP or GIF"
        raise ValueError(reason) from None
    except Exception as error:  # Pillow raises half a dozen types, SyntaxError and struct.error among them
        if isinstance(error, MemoryError) or getattr(error, "errno", None):
            raise
        raise ValueError(str(error) or type(error).__name__) from None


def check_pixels(size: Sequence[int]) -> None:
    """Refuse a size (width, height, ...) above ``MOST_PIXELS`` before anything of it is decoded.

    Raises:
        ValueError: saying so.
    """
    if math.prod(size) > MOST_PIXELS:
        sides = " x ".join(map(str, size))
        raise ValueError(f"{sides} is more than {MOST_PIXELS // 10**6} megapixels; make it smaller")


def to_grey(image: Image.Image) -> np.ndarray:
    """The one rule for grey: an image of any mode as uint8 (height, width).

    Grey of 8 bits stays as it is. Colour is weighted as in ITU-R BT.601 (Pillow's ``L``), a palette by its colours,
    other colour spaces (CMYK, LAB, HSV, YCbCr) through Pillow's RGB; alpha is ignored. Integers of more bits and floats
    stay as they are where all of them are whole numbers from 0 to 255; otherwise the largest becomes 255 and 0 (or the
    smallest, where there are negative ones) becomes 0.

    Raises:
        ValueError: NaN or infinite values, or no pixel.
    """
    if min(image.size) == 0:
        raise ValueError("no pixel in it")
    if is_deep(image):
        return _deep_to_grey(np.asarray(image))
    return np.asarray(_plain(image).convert("L"))


def check_contrast(grey: np.ndarray) -> np.ndarray:
    """Return the image as it is. Of one grey alone, standardising would leave the network scaled rounding noise.

    Raises:
        ValueError: every pixel has the same value.
    """
    if grey.min() == grey.max():
        raise ValueError("one grey alone, no image of anything")
    return grey


def to_contrasted_grey(image: Image.Image) -> np.ndarray:
    """``to_grey`` for what the network is to see.

    Raises:
        ValueError: as ``to_grey`` and ``check_contrast``.
    """
    return check_contrast(to_grey(image))


def array_to_grey(array: np.ndarray) -> np.ndarray:
    """``to_grey`` for an array of any number type: grey (rows, columns), or colour (rows, columns, channels) with one
    channel, red, green and blue, or these and alpha.

    Raises:
        ValueError: another shape or type, NaN or infinite values, no pixel, or more than ``MOST_PIXELS``.
    """
    array = np.asarray(array)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or array.ndim == 3 and array.shape[2] not in (3, 4):
        raise ValueError(f"an array of shape {array.shape}; pass (rows, columns) or (rows, columns, 3 or 4)")
    if array.dtype.kind not in "buif":
        raise ValueError(f"an array of {array.dtype}; pass whole or floating-point numbers")
    check_pixels(array.shape[1::-1])
    if array.dtype in (np.uint8, bool) or not array.size:
        return to_grey(Image.fromarray(array))
    if array.ndim == 3:
        array = array[..., :3] @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    return _deep_to_grey(array)


def _deep_to_grey(values: np.ndarray) -> np.ndarray:
    """``to_grey`` for integers of more than 8 bits and for floats."""
    values = values.astype(np.float64)
    _check_finite(values)
    low, high = min(0.0, values.min()), values.max()
    if low < 0 or high > 255 or (values % 1).any():
        values = (values - low) * (255 / (high - low or 1))
    return values.round().astype(np.uint8)


def to_mask(image: Image.Image, note: Callable[[str], object] | None = None) -> np.ndarray:
    """The one rule for masks: an image of any mode as uint8 (height, width) of 0 and 255 (lesion).

    A mask has 0 and one other value, whichever (0/1, 0/255, 1 bit, a colour on black, a palette by its colours). What
    is transparent is background; where the rest has one colour, it is the lesion. Soft edges and the noise of JPEG
    around two values are cut in the middle.

    Args:
        image: as ``open_image`` gives it.
        note: is told where a mask was cut; the log by default.

    Raises:
        ValueError: several greys or colours, NaN or infinite values, or no pixel.
    """
    if min(image.size) == 0:
        raise ValueError("no pixel in it")
    note = note or (lambda text: logger.info(f"{getattr(image, 'filename', 'mask')}: {text}"))
    if is_deep(image):
        return two_values(np.asarray(image), note)
    if image.mode in ("1", "L") and not image.has_transparency_data:
        return two_values(np.asarray(image.convert("L")), note)
    colours = np.asarray(_plain(image).convert("RGBA"))
    opaque, values = colours[..., 3] > 127, colours[..., :3].max(axis=2)
    if not opaque.all():
        inside = colours[opaque, :3]
        if not len(inside) or not np.ptp(inside, axis=0).any():
            return opaque * np.uint8(255)
        values = values * opaque
    mask = two_values(values, note)
    lesion = colours[mask > 0, :3] / values[mask > 0, None]  # brightness apart, as soft edges vary it
    if len(lesion) and (np.abs(lesion - np.median(lesion, axis=0)).max(axis=1) > 0.5).mean() > 0.02:
        raise ValueError("several colours; paint the lesion in one colour on black")
    return mask


def two_values(values: np.ndarray, note: Callable[[str], object] = logger.info) -> np.ndarray:
    """``to_mask`` for numbers of any shape and kind: 0 and 255 in uint8.

    Raises:
        ValueError: several values that are no noise around two, or NaN or infinite ones.
    """
    _check_finite(values)
    found, counts = np.unique(values, return_counts=True)
    if len(found) == 1 or (len(found) == 2 and found[0] == 0):
        return np.where(values != 0, np.uint8(255), np.uint8(0))
    middle, top = found[-1] / 2, found[-1]
    if len(found) > FEW_VALUES and found[0] >= 0 and found[0] < 0.1 * top:
        low, high = (found[part][counts[part].argmax()] for part in (found <= middle, found > middle))
        between = counts[(found > low) & (found < high)]
        soft = counts[(found > 0.25 * top) & (found < 0.75 * top)].sum()
        near = low < 0.1 * top and high > 0.9 * top and soft < counts[found > middle].sum() / 2
        if near and between.max() < between.sum() / 2:
            cut = (low + high) / 2
            note(f"greys around {low:g} and {high:g}, cut at {cut:g}")
            return np.where(values > cut, np.uint8(255), np.uint8(0))
    some = ", ".join(f"{value:g}" for value in found[:5]) + (", ..." if len(found) > 5 else "")
    raise ValueError(f"several greys ({some}); paint the lesion in one value and the rest in 0")


def is_deep(image: Image.Image) -> bool:
    """Whether an image holds integers of more than 8 bits, or floats."""
    return image.mode.startswith(("I", "F"))


def _check_finite(values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise ValueError("holds NaN or infinite values; save it as a grey PNG")


def _plain(image: Image.Image) -> Image.Image:
    """An image of a mode that Pillow converts to grey and to RGBA."""
    if image.mode in ("1", "L", "LA", "RGB", "RGBA"):
        return image
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


class ImageFileReader(PILReader):
    """MONAI's ``PILReader`` for what ``open_image`` opens; ``converter`` takes the image and gives an array."""

    def read(self, data: Sequence[str] | str, **kwargs) -> Image.Image:
        """Read one file.

        Raises:
            ValueError: naming the file and what is wrong with it.
        """
        (file,) = ensure_tuple(data)
        try:
            image = open_image(file)
            if image.info["frames"] > 1:
                logger.info(f"{file}: first of {image.info['frames']} frames used")
            return Image.fromarray(self.converter(image))
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None


class LoadGreyd(LoadImaged):
    """MONAI's ``LoadImaged`` that reads 8-bit grey by ``to_grey``, as float32 (width, height) in [0, 255].

    A file that ``open_image`` or ``to_contrasted_grey`` refuse is an error; MONAI's own would try its other readers.

    Args:
        keys: of the files.
        allow_missing_keys: whether an item may lack a key.
    """

    converter = staticmethod(to_contrasted_grey)

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys=allow_missing_keys)
        self.reader = ImageFileReader(self.converter)

    def __call__(self, data: Mapping[Hashable, object], reader: object = None) -> dict:
        """Return a copy of the item with images in place of the files."""
        return super().__call__(data, self.reader)


class LoadMaskd(LoadGreyd):
    """``LoadGreyd`` for masks, by ``to_mask``: 0 and 255.

    Args:
        keys: of the files.
        image_key: of the loaded image, whose size a mask must have.
        allow_missing_keys: whether an item may lack a key.
    """

    converter = staticmethod(to_mask)

    def __init__(self, keys: KeysCollection, image_key: str = "image", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, object], reader: object = None) -> dict:
        """Return a copy of the item with masks in place of the files.

        Raises:
            ValueError: a mask has another size than its image.
        """
        item = super().__call__(data)
        for key in self.key_iterator(item):
            if item[key].shape != item[self.image_key].shape:
                sizes = "{} x {} pixels, its image {} x {}".format(*item[key].shape, *item[self.image_key].shape)
                raise ValueError(f"{data[key]}: {sizes}; export the mask in the size of the image")
        return item


def shape_at_area(shape: Sequence[int], side: int) -> tuple[int, int]:
    """The shape (M, N) with the area of a square of ``side`` pixels and the proportions of ``shape``, sides rounded."""
    scale = side / (shape[0] * shape[1]) ** 0.5
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


class ResizeToAread(MapTransform, InvertibleTransform):
    """Resize images (C, M, N) to the area of a square, with their shape kept, and smooth what shrinks before.

    A lesion that is taller than wide is suspect (BI-RADS), and each hospital's images have proportions of their own:
    a resize to a square would take the sign away and leave the hospital's stretch instead. The smoothing's standard
    deviation is (factor of shrinking - 1) / 2 pixels along each side with zeros outside, as in ``Resize`` with
    ``anti_aliasing``, whose general convolution takes ten times as long as OpenCV's.

    Args:
        keys: of the images.
        side: of the square whose area they get, in pixels.
        mode: ``bilinear``, or ``nearest`` for a mask, which is not smoothed; one for each key.
        allow_missing_keys: whether an item may lack a key.
    """

    def __init__(
        self, keys: KeysCollection, side: int, mode: str | Sequence[str] = "bilinear", allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.side = side
        self.mode = ensure_tuple_rep(mode, len(self.keys))

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict:
        """Return a copy of the item with images of the new size, float32."""
        item = dict(data)
        for key, mode in self.key_iterator(item, self.mode):
            image = item[key]
            shape = shape_at_area(image.shape[1:], self.side)
            factors = [side / target for side, target in zip(image.shape[1:], shape)]
            if mode != "nearest" and max(factors) > 1:
                rows, columns = (gaussian_1d(torch.tensor(max(0.0, (f - 1) / 2))).numpy() for f in factors)
                channels = np.asarray(image, dtype=np.float32)
                smooth = [cv2.sepFilter2D(c, -1, columns, rows, borderType=cv2.BORDER_CONSTANT) for c in channels]
                image = convert_to_dst_type(np.stack(smooth), image, dtype=torch.float32)[0]
            item[key] = Resize(shape, mode=mode)(image)
        return item

    def inverse(self, data: Mapping[Hashable, torch.Tensor]) -> dict:
        """Return a copy of the item with images of their old size."""
        item = dict(data)
        for key in self.key_iterator(item):
            resize = Resize(self.side)
            item[key] = resize.inverse_transform(item[key], resize.pop_transform(item[key], check=False))
        return item


class SplitOutputsd(Transform):
    """Lay the dictionaries of the network and of ``prepare_batch`` flat, since MONAI's transforms take tensors.

    ``pred`` of ``{pred, class_logits}`` and, where there is one, ``label`` of ``{label, class}`` become the entries
    ``pred``, ``class_logits``, ``label`` and ``true_class``, without metadata.
    """

    def __call__(self, data: Mapping[Hashable, object]) -> dict:
        """Return a copy of the item with the entries laid flat."""
        item = dict(data)
        outputs, targets = item["pred"], item.get("label")
        item |= {"pred": convert_to_tensor(outputs["pred"]), "class_logits": outputs["class_logits"]}
        if targets is not None:
            item |= {"label": convert_to_tensor(targets["label"]), "true_class": targets["class"]}
        return item


class ClassResultd(Transform):
    """Turn ``class_logits`` (K,) into ``class_probs`` (K,) and a plain ``result`` with class and probabilities.

    MONAI Label sends ``result`` to its clients along with the mask. With a calibration, ``result`` also says whether
    the image is ``suspicious`` (probability of the class named malignant at or above the stored operating point) and
    whether the class is ``unsure`` (largest probability below the stored limit).

    Args:
        class_names: names in the order of the class indices.
        calibration: as ``scripts.calibration.load_calibration`` returns it; none leaves the probabilities as they are.
    """

    def __init__(self, class_names: Sequence[str], calibration: Mapping[str, float | None] | None = None) -> None:
        self.class_names = list(class_names)
        self.calibration = {**NEUTRAL, **(calibration or {})}
        if self.calibration["malignancy_threshold"] is not None and MALIGNANT not in self.class_names:
            logger.info(f"no class is called {MALIGNANT}: nothing is said to be suspicious")
            self.calibration["malignancy_threshold"] = None

    def __call__(self, data: Mapping[Hashable, object]) -> dict:
        """Return a copy of the item with the two entries added and the logits taken away."""
        item = dict(data)
        probabilities = torch.softmax(item.pop("class_logits").float() / self.calibration["temperature"], dim=-1)
        item["class_probs"] = probabilities
        values = [round(float(p), 6) for p in probabilities]
        item["result"] = {
            "class": self.class_names[int(probabilities.argmax())],
            "classification": [{"label": name, "score": p} for name, p in zip(self.class_names, values)],
        }
        if self.calibration["malignancy_threshold"] is not None:
            malignant = values[self.class_names.index(MALIGNANT)]
            item["result"]["suspicious"] = malignant >= self.calibration["malignancy_threshold"]
        if self.calibration["unsure_below"] is not None:
            item["result"]["unsure"] = max(values) < self.calibration["unsure_below"]
        return item


class LesionMaskd(Transform):
    """Turn the lesion's probabilities ``pred`` (1, M, N) into its mask (1, M, N), 0 or 1, uint8.

    Connected parts (8 neighbours) that are small or doubtful are erased. The class has no say: a mask that it erased
    might be a cancer's.

    Args:
        threshold: smallest probability of a lesion pixel, in (0, 1).
        smallest_fraction: area of the smallest part that is kept, as a fraction of the image, in [0, 1).
        part_threshold: smallest mean probability of a part that is kept, in [0, 1).
    """

    def __init__(self, threshold: float = 0.5, smallest_fraction: float = 0.0, part_threshold: float = 0.0) -> None:
        self.threshold = threshold
        self.smallest_fraction = smallest_fraction
        self.part_threshold = part_threshold

    def __call__(self, data: Mapping[Hashable, object]) -> dict:
        """Return a copy of the item with ``pred`` replaced."""
        item = dict(data)
        probabilities = item["pred"][0].float().cpu().numpy()
        mask = (probabilities >= self.threshold).astype(np.uint8)
        column, row, width, height = cv2.boundingRect(mask)  # the rest holds no part
        box = np.s_[row : row + height, column : column + width]
        if width:
            _, parts, stats, _ = cv2.connectedComponentsWithStats(mask[box], connectivity=8)
            areas = stats[:, cv2.CC_STAT_AREA]
            sums = np.bincount(parts.ravel(), weights=probabilities[box].ravel(), minlength=len(areas))
            kept = (areas >= self.smallest_fraction * mask.size) & (sums >= self.part_threshold * areas)
            kept[0] = False  # what lies between the parts
            mask[box] = kept[parts]
        item["pred"] = convert_to_dst_type(mask[None], item["pred"], dtype=torch.uint8)[0]  # with its file's name
        return item


class Disagreementd(Transform):
    """Say in ``result`` where mask ``pred`` and class contradict each other; two predictions, neither overrules.

    ``result["disagreement"]`` is empty where they agree, else one of ``normal with a mask``, ``benign without a mask``
    (the class that was predicted) and ``suspicious without a mask``. Without a class called ``normal`` it is empty.

    Args:
        class_names: names in the order of the class indices.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = list(class_names)

    def __call__(self, data: Mapping[Hashable, object]) -> dict:
        """Return a copy of the item with the entry added to its ``result``."""
        item = dict(data)
        result, has_mask = item["result"], bool(item["pred"].any())
        reason = ""
        if NORMAL in self.class_names:
            if has_mask and result["class"] == NORMAL:
                reason = f"{NORMAL} with a mask"
            elif not has_mask and result["class"] != NORMAL:
                reason = f"{result['class']} without a mask"
            elif not has_mask and result.get("suspicious"):
                reason = "suspicious without a mask"
        item["result"] = {**result, "disagreement": reason}
        return item
