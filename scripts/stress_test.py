"""Evaluate trained weights on altered copies of the testing pictures: robustness and shortcuts.

    python scripts/stress_test.py --dataset_dir runs/busi --ckpt_dir runs/models --output_dir runs/stress

Robustness: noise, gain, blur, low resolution and JPEG, at three strengths each. Shortcuts: what the class rests on
where the lesion is blacked out, where only the lesion or only its surroundings are left, and where burned-in marks
are erased. Out: a folder with `metrics.json` and `pictures.csv` for each condition; the altered pictures are
removed again. Run again after an interruption, it goes on where it stopped. Other options go to the evaluation as
they are. Research software, not a medical device.
"""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import fire
import numpy as np
from command_line import as_arguments
from PIL import Image
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bundle"))

from scripts.files import sha256  # noqa: E402
from scripts.files import write_json  # noqa: E402
from scripts.transforms import to_grey, to_mask  # noqa: E402

NOISE = (10, 20, 40)  # standard deviation in grey levels of 255, white
GAIN = (0.5, 1.5, 2.0)  # factor of all grey levels, clipped at 255
BLUR = (1, 2, 4)  # standard deviation of a Gaussian in pixels
LOW_RESOLUTION = (2, 4, 8)  # factor of shrinking before the picture is enlarged again
JPEG = (50, 25, 10)  # quality
MARK_LEVEL = 240  # burned-in marks are brighter than nearly all tissue
MARK_WIDTH = 7  # and thinner than this, in pixels


def noise(image, mask, strength, random):
    """White noise; the file's name seeds it."""
    return np.clip(image + random.normal(0, strength, image.shape), 0, 255).astype(np.uint8)


def gain(image, mask, strength, random):
    """Brighter or darker."""
    return np.clip(image * float(strength), 0, 255).astype(np.uint8)


def blur(image, mask, strength, random):
    """Gaussian blur."""
    return cv2.GaussianBlur(image, (0, 0), strength)


def low_resolution(image, mask, strength, random):
    """Shrunk, then enlarged to its size again."""
    height, width = image.shape
    small = cv2.resize(image, (max(1, width // strength), max(1, height // strength)), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def jpeg(image, mask, strength, random):
    """Compressed and decoded again."""
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, strength])[1], cv2.IMREAD_GRAYSCALE)


def lesion_blacked_out(image, mask, strength, random):
    """The bounding box of the lesion in black, so that neither texture nor outline is left."""
    image = image.copy()
    image[_box(mask)] = 0
    return image


def lesion_only(image, mask, strength, random):
    """All but the bounding box of the lesion in black; pictures without lesion stay as they are."""
    if not mask.any():
        return image
    result = np.zeros_like(image)
    result[_box(mask)] = image[_box(mask)]
    return result


def background_only(image, mask, strength, random):
    """The bounding box of the lesion filled in from its rim (Telea, J. Graphics Tools 2004)."""
    box = np.zeros_like(image)
    box[_box(mask)] = 255
    return cv2.inpaint(image, box, 5, cv2.INPAINT_TELEA) if mask.any() else image


def marks_erased(image, mask, strength, random):
    """Thin bright lines and signs filled in from their rim."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (MARK_WIDTH, MARK_WIDTH))
    thin = cv2.morphologyEx(image, cv2.MORPH_TOPHAT, kernel) > 60
    marks = (thin & (image >= MARK_LEVEL)).astype(np.uint8)
    return cv2.inpaint(image, cv2.dilate(marks, np.ones((3, 3), np.uint8)), 3, cv2.INPAINT_TELEA)


def _box(mask):
    rows, columns = np.nonzero(mask)
    if len(rows) == 0:
        return slice(0, 0), slice(0, 0)
    return slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)


CONDITIONS = {"unaltered": (lambda image, mask, strength, random: image, None)}
for _function, _strengths in (
    (noise, NOISE),
    (gain, GAIN),
    (blur, BLUR),
    (low_resolution, LOW_RESOLUTION),
    (jpeg, JPEG),
):
    CONDITIONS |= {f"{_function.__name__}_{s}": (_function, s) for s in _strengths}
CONDITIONS |= {f.__name__: (f, None) for f in (lesion_blacked_out, lesion_only, background_only, marks_erased)}


def stress_test(dataset_dir="", ckpt_dir="", output_dir="", *extra, **options):
    """Alter, evaluate, remove, condition by condition.

    Args:
        dataset_dir: folder made by scripts/prepare_busi.py.
        ckpt_dir: folder of the weights.
        output_dir: folder of all results.
        options: options of the bundle, such as image_size or datalist.

    Raises:
        ValueError: a folder is missing, or an evaluation failed.
        FileNotFoundError: there is no datalist, or no weights.
    """
    if options.pop("help", None):
        print(__doc__)
        return
    if extra or "" in (dataset_dir, ckpt_dir, output_dir) or True in (dataset_dir, ckpt_dir, output_dir):
        raise ValueError("give --dataset_dir, --ckpt_dir, --output_dir and options of the bundle, each with a value")
    dataset, output = Path(str(dataset_dir)), Path(str(output_dir)).resolve()
    datalist = Path(str(options.pop("datalist", dataset / "datalist.json")))
    if not datalist.is_file():
        raise FileNotFoundError(f"{datalist}: missing; prepare the folder with scripts/prepare_busi.py")
    model = Path(str(ckpt_dir)) / "model.pt"
    if not model.is_file():
        raise FileNotFoundError(f"{model}: missing; pass the --ckpt_dir of the weights")
    weights = sha256(model)
    items = json.loads(datalist.read_text(encoding="utf-8"))["testing"]
    for name, (function, strength) in tqdm(CONDITIONS.items(), desc="conditions"):
        folder = output / name
        if _evaluated(folder) == weights:
            continue
        altered = folder / "altered"
        shutil.rmtree(altered, ignore_errors=True)
        for item in items:
            _alter(dataset, altered, item, function, strength)
        write_json(altered / "datalist.json", {"training": [], "validation": [], "testing": items})
        configs = "['bundle/configs/train.json','bundle/configs/evaluate.json']"
        command = ["-m", "monai.bundle", "run", "evaluating", "--config_file", configs, "--bundle_root", "bundle"]
        command += ["--dataset_dir", str(altered), "--ckpt_dir", str(Path(str(ckpt_dir)).resolve())]
        command += ["--output_dir", str(folder), *as_arguments(options)]
        done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"{name} failed: {done.stderr.strip().splitlines()[-1]} ($ python {shlex.join(command)})")
        shutil.rmtree(altered)
    print(f"{len(items)} pictures under {len(CONDITIONS)} conditions: {output}")


def _evaluated(folder):
    """Hash of the weights that an earlier run evaluated; none where it did not come to that."""
    metrics = folder / "metrics.json"
    return json.loads(metrics.read_text(encoding="utf-8"))["weights_sha256"] if metrics.is_file() else None


def _alter(dataset, folder, item, function, strength):
    with Image.open(dataset / item["image"]) as image, Image.open(dataset / item["label"]) as label:
        image, mask = np.asarray(to_grey(image)), np.asarray(to_mask(label))
    random = np.random.default_rng(list(item["image"].encode()))
    for key, pixels in (("image", function(image, mask, strength, random)), ("label", mask)):
        file = folder / item[key]
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)


if __name__ == "__main__":
    try:
        fire.Fire(stress_test)
    except (OSError, ValueError) as error:
        sys.exit(f"stress_test: {error}")
