"""From a file to grey pixels, and from the network's scores to a mask and a class with probabilities."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence

import cv2
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor, PILReader, PILWriter
from monai.networks.layers import gaussian_1d
from monai.transforms import (
    BorderPad,
    InvertibleTransform,
    LoadImaged,
    MapTransform,
    Resize,
    SaveImaged,
    SpatialCrop,
    Transform,
)
from monai.utils import convert_to_dst_type, convert_to_tensor, ensure_tuple, ensure_tuple_rep
from PIL import Image

from .calibration import NEUTRAL, offsets
from .files import write_whole
from .images import NORMAL, check_contrast, open_image, to_contrasted_grey, to_mask
from .input_check import facts_of

logger = logging.getLogger(__name__)
# Where pydicom is installed, MONAI's loader says at each start that a GPU decoder is missing, which nothing here uses.
warnings.filterwarnings("ignore", "NvImgCodecPydicomReader")
logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)


class ImageFileReader(PILReader):
    """MONAI's ``PILReader`` for what ``open_image`` opens; ``converter`` takes the image and gives an array.

    With ``look``, the metadata has what ``input_check.facts_of`` notes of an image.
    """

    def __init__(self, converter: Callable[[Image.Image], np.ndarray], look: bool = False) -> None:
        super().__init__(converter)
        self.look = look

    def read(self, data: Sequence[str] | str, **kwargs) -> Image.Image:
        """Read one file.

        Raises:
            ValueError: naming the file and what is wrong with it.
        """
        (file,) = ensure_tuple(data)
        try:
            image = open_image(file)
            unseen = image.info["frames"] > 1 and "box" not in image.info  # of DICOM each frame can be asked for
            if unseen:
                logger.info(f"{file}: first of {image.info['frames']} frames used")
            pixels = self.converter(image)
            facts = facts_of(image, pixels, image.info.get("box")) if self.look else {}
            converted = Image.fromarray(pixels)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
        converted.info |= {"box": image.info.get("box"), "unseen_frames": int(unseen), "facts": facts}
        return converted

    def _get_meta_dict(self, img: Image.Image) -> dict:
        """What MONAI tells, whether there are frames that nothing looks at, and of DICOM the box that shows tissue."""
        box = img.info["box"]
        told = {"unseen_frames": img.info["unseen_frames"]} | ({} if box is None else {"box": np.array(box)})
        told |= img.info["facts"]
        return super()._get_meta_dict(img) | told


class SaveMaskd(SaveImaged):
    """MONAI's ``SaveImaged`` that writes no mask of an image that ``input_check.InputCheckd`` refused."""

    def __call__(self, data: Mapping[Hashable, object]) -> dict:
        """Return the item; the mask's metadata says where it was saved."""
        return super().__call__(data) if "class" in data["result"] else dict(data)


class WholePILWriter(PILWriter):
    """MONAI's ``PILWriter`` whose images appear whole or not at all, and PNGs in half the time."""

    def set_data_array(self, data_array, **kwargs) -> None:
        """Take a mask (1, W, H); MONAI's own method would squeeze a height of one pixel away too."""
        self.data_obj = data_array[0]

    def write(self, filename, verbose: bool = False, **kwargs) -> None:
        """Write the image set before to ``filename``."""
        kwargs = {"compress_level": 1, **kwargs}  # a mask stays a few kilobytes, in half the time
        write_whole(filename, lambda p: super(WholePILWriter, self).write(p, verbose=verbose, **kwargs))


def crop_to_box(image: MetaTensor) -> MetaTensor:
    """An image (W, H) cut to the ``box`` of its metadata (left, top, width, height), if it has one; invertible.

    Raises:
        ValueError: the box shows one grey alone.
    """
    box = image.meta.get("box")
    if box is None or tuple(box) == (0, 0, *image.shape):
        return image
    left, top, width, height = map(int, box)
    return check_contrast(SpatialCrop(roi_start=(left, top), roi_end=(left + width, top + height))(image[None])[0])


class LoadGreyd(LoadImaged, InvertibleTransform):
    """MONAI's ``LoadImaged`` that reads 8-bit grey by ``to_grey``, as float32 (width, height) in [0, 255].

    Of a DICOM object with a region of tissue it is that region; ``inverse`` puts zeros around it again. A file that
    ``open_image`` or ``to_contrasted_grey`` refuse is an error; MONAI's own would try its other readers.

    Args:
        keys: of the files.
        allow_missing_keys: whether an item may lack a key.
        look: whether the images' metadata is to have what ``input_check.InputCheckd`` needs.
    """

    converter = staticmethod(to_contrasted_grey)

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False, look: bool = False) -> None:
        super().__init__(keys, allow_missing_keys=allow_missing_keys)
        self.reader = ImageFileReader(self.converter, look)

    def __call__(self, data: Mapping[Hashable, object], reader: object = None) -> dict:
        """Return a copy of the item with images in place of the files."""
        item = super().__call__(data, self.reader)
        return item | {key: crop_to_box(item[key]) for key in self.key_iterator(item)}

    def inverse(self, data: Mapping[Hashable, torch.Tensor]) -> dict:
        """Return a copy of the item with what is (1, W, H) as large as the files' images."""
        item = dict(data)
        for key in self.key_iterator(item):
            operations = getattr(item[key], "applied_operations", None)
            if operations and operations[-1]["class"] == SpatialCrop.__name__:
                pad = BorderPad(operations.pop()["extra_info"]["cropped"])
                with pad.trace_transform(False):
                    item[key] = pad(item[key])
        return item


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

    ``pred`` of ``{pred, class_logits}`` (and ``embedding``) and, where there is one, ``label`` of ``{label, class}``
    become the entries ``pred``, ``class_logits`` (``embedding``), ``label`` and ``true_class``, without metadata.
    """

    def __call__(self, data: Mapping[Hashable, object]) -> dict:
        """Return a copy of the item with the entries laid flat."""
        item = dict(data)
        outputs, targets = item["pred"], item.get("label")
        item |= {**outputs, "pred": convert_to_tensor(outputs["pred"])}
        if targets is not None:
            item |= {"label": convert_to_tensor(targets["label"]), "true_class": targets["class"]}
        return item


class ClassResultd(Transform):
    """Turn ``class_logits`` (K,) into ``class_probs`` (K,) and a plain ``result`` with class and probabilities.

    MONAI Label sends ``result`` to its clients along with the mask. With a calibration, ``result`` also says whether
    the image is ``suspicious`` (probability of the ``suspicious_classes`` together at or above the stored operating
    point) and whether the class is ``unsure`` (largest probability below the stored limit). Both limits were chosen at
    the prevalence of the calibration, and there they are applied: another ``prevalence`` changes class and
    probabilities alone, not which images are suspicious.

    Args:
        class_names: names in the order of the class indices.
        calibration: as ``calibration.load_calibration`` returns it; none leaves the probabilities as they are.
    """

    def __init__(self, class_names: Sequence[str], calibration: Mapping[str, float | None] | None = None) -> None:
        self.class_names = list(class_names)
        self.calibration = {**NEUTRAL, **(calibration or {})}
        suspicious = self.calibration["suspicious_classes"]
        self.suspicious = [self.class_names.index(name) for name in suspicious if name in self.class_names]
        if self.calibration["malignancy_threshold"] is not None and len(self.suspicious) < len(suspicious):
            logger.info(f"no class is called {', '.join(suspicious)}: nothing is said to be suspicious")
            self.calibration["malignancy_threshold"] = None
        self.shift, self.fitted_shift = (
            torch.tensor(offsets(self.calibration, self.class_names, shifted)) for shifted in (True, False)
        )

    def __call__(self, data: Mapping[Hashable, object]) -> dict:
        """Return a copy of the item with the two entries added and the logits taken away."""
        item = dict(data)
        logits = item.pop("class_logits").float() / self.calibration["temperature"]
        probabilities, fitted = (torch.softmax(logits + b.to(logits), dim=-1) for b in (self.shift, self.fitted_shift))
        item["class_probs"] = probabilities
        values, limited = ([round(float(p), 6) for p in given] for given in (probabilities, fitted))
        item["result"] = {
            "class": self.class_names[int(probabilities.argmax())],
            "classification": [{"label": name, "score": p} for name, p in zip(self.class_names, values)],
        }
        if self.calibration["malignancy_threshold"] is not None:
            together = sum(limited[index] for index in self.suspicious)
            item["result"]["suspicious"] = together >= self.calibration["malignancy_threshold"]
        if self.calibration["unsure_below"] is not None:
            item["result"]["unsure"] = max(limited) < self.calibration["unsure_below"]
        return item


class LesionMaskd(Transform):
    """Turn the lesion's probabilities ``pred`` (1, M, N) into its mask (1, M, N), 0 or 1, uint8.

    Connected parts (8 neighbours) that are small or doubtful are erased. The class has no say: a mask that it erased
    might be a cancer's. ``erased`` of the item says whether ``component_threshold`` erased all that was large enough,
    ``component_probability`` the largest mean probability of a part that was (0 where there is none): whatever
    ``component_threshold`` is, a mask has any pixel where that probability reaches it. ``parts`` has all that were
    large enough: their numbers from 1 on in an int32 array (M, N), and their mean probabilities in this order.

    Args:
        threshold: smallest probability of a lesion pixel, in (0, 1).
        smallest_fraction: area of the smallest part that is kept, as a fraction of the image, in [0, 1).
        component_threshold: smallest mean probability of a part that is kept, in [0, 1).
    """

    def __init__(
        self, threshold: float = 0.5, smallest_fraction: float = 0.0, component_threshold: float = 0.0
    ) -> None:
        self.threshold = threshold
        self.smallest_fraction = smallest_fraction
        self.component_threshold = component_threshold

    def __call__(self, data: Mapping[Hashable, object]) -> dict:
        """Return a copy of the item with ``pred`` replaced, and the three others added."""
        item = {**data, "erased": False, "component_probability": 0.0}
        probabilities = item["pred"][0].float().cpu().numpy()
        mask = (probabilities >= self.threshold).astype(np.uint8)
        column, row, width, height = cv2.boundingRect(mask)  # the rest holds no part
        box = np.s_[row : row + height, column : column + width]
        item["parts"] = (np.zeros(mask.shape, np.int32), [])
        if width:
            _, parts, stats, _ = cv2.connectedComponentsWithStats(mask[box], connectivity=8)
            areas = stats[:, cv2.CC_STAT_AREA]
            sums = np.bincount(parts.ravel(), weights=probabilities[box].ravel(), minlength=len(areas))
            large = areas >= self.smallest_fraction * mask.size
            large[0] = False  # what lies between the parts
            kept = large & (sums >= self.component_threshold * areas)
            mask[box] = kept[parts]
            item["erased"] = bool(large.any() and not kept.any())
            found = sums[large] / areas[large]
            item["component_probability"] = float(found.max(initial=0.0))
            item["parts"][0][box] = (np.cumsum(large) * large)[parts]
            item["parts"][1].extend(found.tolist())
        item["pred"] = convert_to_dst_type(mask[None], item["pred"], dtype=torch.uint8)[0]  # with its file's name
        return item


def disagreement(class_name: str, has_mask: bool, class_names: Sequence[str], suspicious: bool = False) -> str:
    """The one rule of which class contradicts which mask.

    Args:
        class_name: of an image.
        has_mask: whether the image's mask has any pixel.
        class_names: of the set. Without a class called ``normal`` any mask goes with any class.
        suspicious: whether a normal image is suspicious, as ``ClassResultd`` says it.

    Returns:
        ``normal with a mask``, ``benign without a mask`` (or whatever the class is called), ``suspicious without a
        mask``; empty where nothing contradicts.
    """
    if NORMAL not in class_names:
        return ""
    if has_mask:
        return f"{NORMAL} with a mask" if class_name == NORMAL else ""
    if class_name != NORMAL:
        return f"{class_name} without a mask"
    return "suspicious without a mask" if suspicious else ""


class Disagreementd(Transform):
    """Say in ``result["disagreement"]``, as ``disagreement`` words it, where mask ``pred`` and class contradict each
    other; two predictions, neither overrules.

    Args:
        class_names: names in the order of the class indices.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = list(class_names)

    def __call__(self, data: Mapping[Hashable, object]) -> dict:
        """Return a copy of the item with the entry added to its ``result``."""
        item = dict(data)
        result, has_mask = item["result"], bool(item["pred"].any())
        reason = disagreement(result["class"], has_mask, self.class_names, bool(result.get("suspicious")))
        item["result"] = {**result, "disagreement": reason}
        return item
