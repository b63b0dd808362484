"""Whether an image is one that the network can know: its pixels, its distance from the training images, their copies.

What a DICOM header tells is looked at before, in ``breast_ultrasound.dicom``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from monai.transforms import Transform
from PIL import Image

from .images import is_deep, thumbnail
from .weights import load_tensors

logger = logging.getLogger(__name__)
OK, LOOK, REFUSED = "ok", "look", "refused"
REMEDY = "fit it again with scripts/fit_input_check.py, or remove the file"
SIDE = 256  # pixels; grey levels are judged at this size
CENTRE = slice(SIDE // 4, 3 * SIDE // 4)
EDGE = 4  # pixels at an image's border whose thin lines are no marks
SMALLEST = 16  # pixels of a side
# Limits of the rules below. Behind each: the most extreme of 2,465 images of BUSI, BUS-BRA, BrEaST and BUS-UCLM
COLOURED = 0.01  # of the pixels; 0.009
CONTRAST = 60  # grey levels between the 1st and the 99th percentile; 70
DARK, LIGHT = 0.85, 0.5  # of the pixels; 0.53, 0.30
STRUCTURE = 0.7  # correlation of neighbours; 0.83
SEAM = 8.0  # step between two columns, in medians of all; one of four others is a double image too
TURNED = 45  # grey levels by which the upper third is darker; two are beyond
STROKE = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))  # wider than a stroke
MARKS = 120  # pixels of thin bright strokes; 1 % of the unmarked images of BUSI have more, 82 % of the marked ones


class Finding(NamedTuple):
    """What speaks against an image.

    Attributes:
        result: ``look`` or ``refused``.
        reason: in words.
    """

    result: str
    reason: str


class Picture:
    """An image as the rules look at it.

    Args:
        grey: uint8 (rows, columns), as the network's preprocessing takes it.
        colours: uint8 (rows, columns, 3); None of a grey image.
    """

    def __init__(self, grey: np.ndarray, colours: np.ndarray | None = None) -> None:
        self.grey, self.colours = grey, colours

    @cached_property
    def small(self) -> np.ndarray:
        """Grey levels, float32 (256, 256)."""
        return cv2.resize(self.grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)


def too_small(picture: Picture) -> str:
    """Nothing can be told of a thumbnail."""
    height, width = picture.grey.shape
    return f"{width} x {height} pixels, too small" if min(height, width) < SMALLEST else ""


def coloured(picture: Picture) -> str:
    """Colour Doppler, elastography, a photograph; a scanner's coloured signs are fewer."""
    if picture.colours is None:
        return ""
    red, green, blue = (picture.colours[..., channel] for channel in range(3))
    spread = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    share = float((spread > 40).mean())
    return f"colour in {share:.0%} of its pixels: Doppler, elastography or no ultrasound" if share > COLOURED else ""


def blank(picture: Picture) -> str:
    """A frozen or empty screen."""
    counts = np.bincount(picture.grey.ravel(), minlength=256).cumsum()
    low, high = np.searchsorted(counts, [0.01 * counts[-1], 0.99 * counts[-1]])
    return f"hardly any contrast, grey levels {low} to {high}" if high - low < CONTRAST else ""


def mostly_dark(picture: Picture) -> str:
    """Light text on black, or a picture that fills a corner of the screen."""
    share = float((picture.small < 8).mean())
    return f"black in {share:.0%} of its pixels" if share > DARK else ""


def mostly_light(picture: Picture) -> str:
    """A page, a chart."""
    share = float((picture.small > 200).mean())
    return f"white in {share:.0%} of its pixels" if share > LIGHT else ""


def unstructured(picture: Picture) -> str:
    """Noise: speckle has a size, so that neighbours are alike."""
    values = picture.small - picture.small.mean()
    neighbours = (values[:, 1:] * values[:, :-1]).mean() + (values[1:] * values[:-1]).mean()
    return "noise without structure" if neighbours < 2 * STRUCTURE * (values**2).mean() else ""


def gap(picture: Picture) -> str:
    """A dark column near the middle, with a picture on either side."""
    dark = (picture.small[:, CENTRE] < 12).mean(0)
    beside = min(picture.small[:, : CENTRE.start].mean(), picture.small[:, CENTRE.stop :].mean())
    return "two pictures side by side" if dark.max() > 0.95 and beside > 20 else ""


def seam(picture: Picture) -> str:
    """A step from one column to the next, down the whole picture."""
    steps = np.abs(np.diff(picture.small, axis=1)).mean(0)
    return "perhaps two pictures side by side" if steps[CENTRE].max() > SEAM * np.median(steps) else ""


def turned(picture: Picture) -> str:
    """Ultrasound fades with depth."""
    third = SIDE // 3
    return (
        "darker above than below: inverted, or upside down?"
        if picture.small[-third:].mean() - picture.small[:third].mean() > TURNED
        else ""
    )


def marked(picture: Picture) -> str:
    """Text, calipers, a pictogram."""
    return "text or marks in the picture" if mark_pixels(picture.grey).sum() > MARKS else ""


def mark_pixels(grey: np.ndarray) -> np.ndarray:
    """Thin bright strokes, bool (rows, columns): what is written into a picture, and few sharp reflections."""
    strokes = (cv2.morphologyEx(grey, cv2.MORPH_TOPHAT, STROKE) > 120) & (grey >= 200)
    strokes[:EDGE] = strokes[-EDGE:] = False
    strokes[:, :EDGE] = strokes[:, -EDGE:] = False
    return strokes


Rule = Callable[[Picture], str]  # gives the reason; empty where it does not hold
REFUSING: tuple[Rule, ...] = (too_small, coloured, blank, mostly_dark, mostly_light, unstructured, gap)
DOUBTING: tuple[Rule, ...] = (seam, turned, marked)


def pixel_finding(picture: Picture) -> Finding | None:
    """The first reason to refuse a picture, else all reasons to look at it; None where there is none."""
    for rule in REFUSING:
        if reason := rule(picture):
            return Finding(REFUSED, reason)
    reasons = [reason for rule in DOUBTING if (reason := rule(picture))]
    return Finding(LOOK, "; ".join(reasons)) if reasons else None


def facts_of(image: Image.Image | np.ndarray, grey: np.ndarray, box: tuple[int, int, int, int] | None) -> dict:
    """What the check notes of an image before it is resized: plain entries for its metadata.

    Args:
        image: as it was given, whose colours count: Pillow's, or an array (rows, columns[, channels]).
        grey: what was made of it, uint8 (rows, columns).
        box: left, top, width and height of the part that is looked at; None for all.

    Returns:
        ``check`` and ``reason`` of its pixels, and ``fingerprint`` in hexadecimal digits.
    """
    colours = None
    if isinstance(image, Image.Image):
        if not is_deep(image) and image.mode not in ("1", "L", "LA"):
            colours = np.asarray(image.convert("RGB"))
    elif image.ndim == 3 and image.shape[2] >= 3 and image.dtype == np.uint8:
        colours = image[..., :3]
    if box is not None:
        left, top, width, height = box
        part = np.s_[top : top + height, left : left + width]
        grey, colours = grey[part], None if colours is None else colours[part]
    finding = pixel_finding(Picture(grey, colours)) or Finding(OK, "")
    return {"check": finding.result, "reason": finding.reason, "fingerprint": fingerprint(grey).hex()}


FREQUENCIES = 16  # of a thumbnail's cosine transform along each side, whose signs are kept
ODD = np.packbits(np.tile(np.arange(FREQUENCIES) % 2 == 1, FREQUENCIES))  # those that a mirror turns
SAME = 52  # bits of 256 in which copies differ at most; on BUSI no two images of different scans share more than 70


def fingerprint(grey: np.ndarray) -> bytes:
    """32 bytes that copies of an image share, resized, compressed or at another gain: the signs of its thumbnail's
    lowest frequencies (a perceptual hash). No image can be made of it."""
    frequencies = cv2.dct(thumbnail(grey).astype(np.float32))[:FREQUENCIES, :FREQUENCIES]
    frequencies[0, 0] = 0  # the mean
    return np.packbits(frequencies > 0).tobytes()


def is_copy(found: bytes, of: np.ndarray) -> bool:
    """Whether a fingerprint is one of others, uint8 (N, 32), or its mirror image."""
    own = np.frombuffer(found, np.uint8)
    both = np.stack([own, own ^ ODD])[:, None] ^ of
    return bool((np.unpackbits(both, axis=2).sum(2, dtype=int) <= SAME).any())


class Reference:
    """What the training images look like to a network; ``scripts/fit_input_check.py`` of the project fits it.

    Args:
        content: ``depths``, from the shallowest to the deepest: ``mean`` (C,), ``whitening`` (C, C), and the distances
            ``look`` and ``refuse``; ``fingerprints``, uint8 (N, 32).
    """

    def __init__(self, content: Mapping) -> None:
        self.depths = content["depths"]
        self.fingerprints = content["fingerprints"].numpy()

    def distances(self, embedding: torch.Tensor) -> list[float]:
        """Mahalanobis distance of an embedding at each depth, over the root of its dimension: about 1 in training.

        Args:
            embedding: float (sum of C,), as a network gives it.
        """
        parts = embedding.cpu().split([len(depth["mean"]) for depth in self.depths])
        whitened = [d["whitening"] @ (part - d["mean"]) for d, part in zip(self.depths, parts)]
        return [float(values.square().mean().sqrt()) for values in whitened]

    def finding(self, embedding: torch.Tensor) -> Finding | None:
        """What an embedding says of its image; None where it is near enough at all depths."""
        found = self.distances(embedding)
        shares = [(distance / d["refuse"], distance / d["look"]) for distance, d in zip(found, self.depths)]
        if max(share for share, _ in shares) > 1:
            return Finding(REFUSED, "unlike every training image")
        if max(share for _, share in shares) > 1:
            return Finding(LOOK, "unlike most training images")
        return None


def load_reference(path: str, weights_sha256: str) -> Reference | None:
    """Read what ``scripts/fit_input_check.py`` wrote beside the weights; None where it is missing or of others.

    Raises:
        ValueError: the file is damaged.
    """
    if not Path(path).is_file():
        logger.info(f"{path}: missing, the input check looks at pixels alone")
        return None
    content = load_tensors(path)
    try:
        if content["weights_sha256"] != weights_sha256:
            logger.info(f"{path}: made for other weights, the input check looks at pixels alone; {REMEDY}")
            return None
        return Reference(content)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: no reference of the input check ({type(error).__name__}); {REMEDY}") from None


class InputCheckd(Transform):
    """Say in ``result`` whether the network can know an image: ``check`` is ok, look or refused, ``reason`` why.

    A refused image has no other entry in its ``result``, and no mask: it stands behind all that makes them. Pixels are
    judged where the image is read, by ``facts_of``.

    Args:
        path: file of the reference; without it distance and copies are not looked at.
        weights_sha256: of the weights that it has to belong to.
        predict_refused: whether a refused image keeps class and mask.
    """

    def __init__(self, path: str, weights_sha256: str, predict_refused: bool = False) -> None:
        self.reference = load_reference(path, weights_sha256)
        self.predict_refused = predict_refused

    def __call__(self, data: Mapping[Hashable, object]) -> dict:
        """Return a copy of the item with the entries added to its ``result`` and ``embedding`` taken away."""
        item = dict(data)
        embedding, facts = item.pop("embedding", None), getattr(item["image"], "meta", {})
        findings = [Finding(facts["check"], facts["reason"])] if facts.get("check", OK) != OK else []
        if self.reference and "fingerprint" in facts:
            if is_copy(bytes.fromhex(facts["fingerprint"]), self.reference.fingerprints):
                findings.append(Finding(LOOK, "copy of a training image"))
        if self.reference and embedding is not None:
            found = self.reference.finding(embedding)
            findings += [found] if found else []
        refused = [finding for finding in findings if finding.result == REFUSED]
        result = REFUSED if refused else LOOK if findings else OK
        told = {"check": result, "reason": "; ".join(finding.reason for finding in refused or findings)}
        if refused and not self.predict_refused:
            item["pred"] = torch.zeros_like(item["pred"])
            item["result"] = told
        else:
            item["result"] = {**item["result"], **told}
        return item
