"""The page makes a mask from a map as the bundle does, pixel by pixel; and what the map's 8 bits cost."""

import base64
import json
import shutil
import subprocess

import numpy as np
import pytest
import torch
from scipy import ndimage

from breast_ultrasound.transforms import LesionMaskd
from conftest import ROOT
from lib.pixels import STEPS, to_steps

NODE = shutil.which("node")
KNOBS = ("mask_threshold", "smallest_fraction", "component_threshold")
SLIDER = [step / 100 for step in range(5, 96)]
needs_node = pytest.mark.skipif(not NODE, reason="no node here; on Debian: apt-get install nodejs")


def page_masks(cases, tmp_path):
    """What the page's own code makes of maps in steps, each with the three knobs, as bool arrays."""
    (tmp_path / "cases.json").write_text(
        json.dumps(
            [
                {
                    "width": steps.shape[1],
                    "height": steps.shape[0],
                    "data": base64.b64encode(steps.tobytes()).decode(),
                    "steps": STEPS,
                    "rule": dict(zip(KNOBS, knobs)),
                }
                for steps, knobs in cases
            ]
        )
    )
    command = [NODE, ROOT / "tests" / "mask_rule.mjs", ROOT / "label_app" / "page" / "mask.js", tmp_path / "cases.json"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pixels = [np.frombuffer(base64.b64decode(mask), np.uint8) for mask in json.loads(done.stdout)]
    return [mask.reshape(steps.shape) > 0 for mask, (steps, _) in zip(pixels, cases)]


def bundle_mask(probability, knobs):
    """What the bundle makes of a map of probabilities (height, width)."""
    return LesionMaskd(*knobs)({"pred": torch.from_numpy(probability[None])})["pred"][0].numpy() > 0


def random_maps(count, seed):
    """Maps (height, width), float32: noise of one pixel, which has many corners and ties, or blobs of several sizes."""
    random = np.random.default_rng(seed)
    for number in range(count):
        shape = random.integers(1, 60, 2)
        blurred = ndimage.gaussian_filter(random.normal(size=shape), number % 4)
        probability = 1 / (1 + np.exp(-4 * blurred / (blurred.std() or 1)))
        if number % 3 == 0:
            probability = probability.round(2)  # on the slider's steps
        yield probability.astype(np.float32)


def random_knobs(random):
    choices = SLIDER, [0, 0.002, 0.01, 0.05], [0, 0.5, 0.6, 0.75]
    return tuple(float(random.choice(values)) for values in choices)  # as JSON has them; NumPy's own would widen maps


@needs_node
def test_the_pages_mask_is_the_bundles_on_the_map_that_the_page_gets(tmp_path):
    random = np.random.default_rng(1)
    cases = [(to_steps(probability), random_knobs(random)) for probability in random_maps(600, 0)]
    erased = 0
    for (steps, knobs), mask in zip(cases, page_masks(cases, tmp_path)):
        probability = ((steps + 0.5) / STEPS).astype(np.float32)
        assert np.array_equal(mask, bundle_mask(probability, knobs)), knobs
        erased += (mask != (probability >= np.float32(knobs[0]))).any()
    assert erased > 100


@needs_node
def test_the_two_cases_that_the_page_once_got_wrong(tmp_path):
    two_parts = np.zeros((40, 40), np.float32)
    two_parts[5:15, 5:15], two_parts[20:30, 20:30] = 0.9, 0.45
    diagonal = np.zeros((40, 40), np.float32)
    diagonal[range(6), range(6)] = 0.9
    cases = [(to_steps(two_parts), (0.3, 0.002, 0.6)), (to_steps(diagonal), (0.3, 0.002, 0.6))]
    assert [int(mask.sum()) for mask in page_masks(cases, tmp_path)] == [100, 6]


def test_every_threshold_of_the_slider_cuts_steps_as_it_cuts_probabilities():
    limits = np.array(SLIDER, np.float32)
    ties = np.concatenate([limits, np.nextafter(limits, np.float32(0)), np.nextafter(limits, np.float32(1)), [0, 1]])
    for threshold in SLIDER:
        decoded = ((to_steps(ties) + 0.5) / STEPS).astype(np.float32)
        assert np.array_equal(decoded >= threshold, ties.astype(np.float32) >= threshold), threshold


@needs_node
def test_eight_bits_cost_only_parts_whose_mean_is_within_half_a_step_of_the_limit(tmp_path):
    random = np.random.default_rng(2)
    maps = list(random_maps(600, 3))
    cases = [(to_steps(probability), random_knobs(random)) for probability in maps]
    different = 0
    for probability, (_, knobs), mask in zip(maps, cases, page_masks(cases, tmp_path)):
        parts, count = ndimage.label(probability >= np.float32(knobs[0]), np.ones((3, 3)))
        for part in range(1, count + 1):
            of_part = parts == part
            kept = bundle_mask(probability, knobs)[of_part]
            if not np.array_equal(mask[of_part], kept):
                different += 1
                assert abs(probability[of_part].mean() - knobs[2]) <= 0.5 / STEPS + 1e-6
        assert not mask[parts == 0].any()
    assert different < 20
