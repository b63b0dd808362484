"""How often the annotation server decodes an image: once while somebody works on it; and its colours."""

import json
import os
import shutil
import subprocess

import numpy as np
import pytest
from label_server import APP, SHIM, environment
from PIL import Image

from lib.images import read_grey, read_shown

# The page's own functions, called as the server calls them, with a count of what is decoded
CODE = """
import io, json, os, sys
import breast_ultrasound.images as bundle_images
decoded, decode = [], bundle_images.open_image
bundle_images.open_image = lambda file: decoded.append(os.path.basename(file)) or decode(file)

import numpy as np
from fastapi import UploadFile
from PIL import Image
from lib import images, page
from main import App

app = App(*sys.argv[1:3], {"bundle": sys.argv[3]})
page.app_instance = lambda: app
first = app.datastore().list_images()[0]
counts = {}

def counted(step, *calls):
    images._decoded.cache_clear(), images._size.cache_clear(), decoded.clear()
    for call in calls:
        call()
    counts[step] = list(decoded)

def save(image, reader):
    height, width = page.grey(image).shape
    mask = io.BytesIO()
    Image.fromarray(np.full((height, width), 255, np.uint8)).save(mask, "png")
    decoded.clear(), images._decoded.cache_clear(), images._size.cache_clear()
    mask.seek(0)
    page.save(image, reader, False, '{"class": "benign"}', UploadFile(mask, filename="mask.png"))

counted(
    "show",
    lambda: page.next_image(page.NextImage(), "a"),
    lambda: page.image(first),
    lambda: page.reading(first, "a"),
    lambda: page.thumbnail(first),
)
counted("submit", lambda: save(first, "a"))
counted("box", lambda: page.ask_box(page.DrawnBox(image=first, box=(9, 9, 50, 50))))
save(first, "b")
counted("agreement", lambda: page.agreement("c"))
print(json.dumps(counts))
"""


def test_an_image_is_shown_in_its_colours_where_it_has_any(tmp_path):
    grey = np.random.default_rng(0).integers(0, 255, (40, 50), np.uint8)
    coloured = np.stack([grey] * 3, axis=2)
    coloured[5:9, 5:9] = (200, 60, 20)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey).convert("RGB").save(tmp_path / "lossy.jpg")
    Image.fromarray(coloured).save(tmp_path / "colours.png")
    Image.fromarray(coloured).quantize().save(tmp_path / "palette.png")
    for name in ("grey.png", "lossy.jpg"):
        assert np.array_equal(read_shown(tmp_path / name), read_grey(tmp_path / name))
    assert np.array_equal(read_shown(tmp_path / "colours.png"), coloured)
    assert read_grey(tmp_path / "colours.png").shape == (40, 50)
    assert read_shown(tmp_path / "palette.png").shape == (40, 50, 3)


@pytest.mark.slow
def test_an_image_is_decoded_once_to_show_it_and_once_to_submit_its_label(label_venv, small_bundle, prepared, tmp_path):
    studies = tmp_path / "studies"
    studies.mkdir()
    for file in sorted((prepared / "images").glob("benign*.png"))[:2]:
        shutil.copy(file, studies)
    env = environment(label_venv, PYTHONPATH=os.pathsep.join(map(str, (APP, small_bundle, SHIM))))
    command = [label_venv / "bin" / "python", "-c", CODE, APP, studies, small_bundle]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    image = min(file.name for file in studies.glob("*.png"))
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "show": [image],
        "submit": [image, "sent.png"],
        "box": [image],
        "agreement": [],  # of masks alone
    }
