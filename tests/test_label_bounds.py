"""What the label server takes and keeps, request by request: bounds, the token, labels that stay, names, exports."""

import io
import json
import os
import shutil
import time
import zipfile

import numpy as np
import pytest
from label_process import InProcess
from label_server import png_bytes
from PIL import Image

from breast_ultrasound.data import load_datalist, read_class_names
from breast_ultrasound.files import sha256

CLASSES = ["BI-RADS 2", "BI-RADS 5", "cyst"]
TOKEN = "日本 \"o'"
BEARER = {"Authorization": f"Bearer {TOKEN}".encode().decode("latin-1")}
SIZE = (50, 40)
MASK = np.zeros(SIZE[::-1], bool)
MASK[5:20, 5:30] = True
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def own(tmp_path_factory, small_bundle):
    """A bundle of classes with capitals, in which nothing is called normal."""
    bundle = tmp_path_factory.mktemp("own") / "bundle"
    shutil.copytree(small_bundle, bundle)
    file = bundle / "models" / "model.json"
    settings = json.loads(file.read_text()) | {"class_names": CLASSES}
    file.write_text(json.dumps({"weights_sha256": sha256(file.with_suffix(".pt")), **settings}))
    return bundle


@pytest.fixture(scope="module")
def server(tmp_path_factory, label_venv, own):
    """The app, behind a token; `studies` is its folder."""
    folder = tmp_path_factory.mktemp("bounds")
    studies = folder / "studies"
    studies.mkdir()
    draw = np.random.default_rng(0)
    for place in [studies / f"i{n}.png" for n in range(3)] + [studies / "scan.png", folder / "far" / "scan.png"]:
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(draw.integers(0, 255, SIZE[::-1], np.uint8)).save(place)
    (studies / "other.png").symlink_to(folder / "far" / "scan.png")
    (studies / "a\\b.png").write_bytes((studies / "i0.png").read_bytes())
    os.mkfifo(studies / "pipe.png")
    (studies / "models").mkdir()
    for name in ("uncertainty.json", "disagreement.json", ".training.json"):
        (studies / "models" / name).write_text('{"cut')
    with InProcess(label_venv, studies, own, folder / "log", TOKEN) as server:
        server.studies = studies
        yield server


def label(server, image, code=200, mask=MASK, reader="ann", **params):
    """Submit a label as the page does."""
    files = {"mask": ("m.png", mask if isinstance(mask, bytes) else png_bytes(mask))}
    data = {"params": json.dumps(params)}
    path = f"/annotate/api/label?image={image}&reader={reader}"
    answer = server.request("PUT", path, headers=BEARER, files=files, data=data)
    assert answer.status == code, answer.content
    return answer.json()


def test_a_folder_with_a_pipe_a_backslash_and_cut_caches_is_served(server):
    given = server.request("POST", "/annotate/api/next?reader=x", headers=BEARER, json={}).json()
    assert given["image"] == "i0" and given["of"] == 5
    for order in ("uncertainty", "disagreement"):
        answer = server.request("POST", "/annotate/api/next?reader=x", headers=BEARER, json={"order": order})
        assert answer.status == 200 and answer.json()["image"]


@pytest.mark.parametrize(
    "method, path, content, most",
    [
        ("POST", "/annotate/login", "multipart/form-data; boundary=b", 1024),
        ("POST", "/annotate/login", "application/x-www-form-urlencoded", 1024),
        ("POST", "/annotate/api/next", "application/json", 2**15),
        ("POST", "/annotate/api/box", "application/json", 2**15),
        ("PUT", "/annotate/api/label?image=i0&reader=a", "multipart/form-data; boundary=b", 100 * 2**20),
        ("POST", "/annotate/api/images", "multipart/form-data; boundary=b", 100 * 2**20),
    ],
)
def test_a_body_of_no_announced_length_is_cut_off(server, method, path, content, most):
    part = b'--b\r\nContent-Disposition: form-data; name="token"; filename="m"\r\n\r\n' + b"x" * 2**16
    answer = server.request(method, path, 0, headers={**BEARER, "Content-Type": content}, data=part)
    assert answer.status == 413 and most <= answer.taken < most + 2**18


def test_any_token_lets_in_by_form_cookie_and_header(server):
    config = "/annotate/api/config"
    form = server.request("POST", "/annotate/login", data={"token": f" {TOKEN} "})
    cookie = form.headers["set-cookie"].partition(";")[0]
    assert form.status == 303 and form.headers["location"] == "/annotate/"
    assert server.request("GET", config, headers={"Cookie": cookie}).status == 200
    assert server.request("GET", config, headers={**BEARER, "Cookie": "label_token=stale"}).status == 200
    assert server.request("GET", config).status == 401
    for guess in (TOKEN.encode().decode("latin-1"), '"open"'):  # the cookie is no way to the token
        assert server.request("GET", config, headers={"Cookie": f"label_token={guess}"}).status == 401


def test_guesses_of_an_address_wait_for_each_other_by_whatever_way(server):
    bearer = ("GET", "/annotate/api/config", 1, "10.0.0.9", {"headers": {"Authorization": "Bearer no"}})
    form = ("POST", "/annotate/login", 1, "10.0.0.9", {"data": {"token": "no"}})
    start = time.time()
    answers = server.requests([bearer, bearer, form])
    assert time.time() - start >= 3
    assert [answer.status for answer in answers] == [401, 401, 303] and answers[2].headers["location"].endswith("wrong")
    start = time.time()
    ours = ("GET", "/annotate/api/config", 1, "10.0.0.8", {"headers": BEARER})
    assert server.requests([bearer, ours])[1].status == 200 and time.time() - start < 2


def test_classes_with_capitals_are_kept_as_they_are_spelled(server):
    for given, kept in (("BI-RADS 2", "BI-RADS 2"), ("bi-rads  5", "BI-RADS 5"), ("CYST", "cyst")):
        label(server, "i0", **{"class": given})
        info = server.request("GET", "/datastore/label/info?label=i0&tag=reader_ann", headers=BEARER).json()
        assert info["class"] == kept
    label(server, "i0", mask=np.zeros_like(MASK), **{"class": "BI-RADS 2"})  # where no class is called normal
    assert "use BI-RADS 2, BI-RADS 5, cyst" in label(server, "i0", 422, **{"class": "normal"})["detail"]


def test_a_label_stays_until_its_successor_is_safe(server):
    label(server, "i1", **{"class": "cyst"})
    file = server.studies / "labels" / "reader_ann" / "i1.png"
    before = file.read_bytes()
    for mask in (MASK[:-1], b"no image"):
        label(server, "i1", 422, mask, class_unknown=True)
        assert file.read_bytes() == before
    label(server, "i1", class_unknown=True)
    info = server.request("GET", "/datastore/label/info?label=i1&tag=reader_ann", headers=BEARER).json()
    assert info["class_unknown"] and "class" not in info


def test_an_image_with_labels_is_not_removed_and_of_a_link_the_link_alone(server):
    label(server, "i2", **{"class": "cyst"})
    answer = server.request("DELETE", "/datastore/?id=i2", headers=BEARER)
    assert answer.status == 409 and "has labels (reader_ann, final); remove them first" in answer.json()["detail"]
    (server.studies / "link.png").symlink_to(server.studies.parent / "far" / "scan.png")
    assert server.request("DELETE", "/datastore/image?id=link", headers=BEARER).status == 200
    assert not (server.studies / "link.png").is_symlink() and (server.studies.parent / "far" / "scan.png").is_file()


def test_an_export_tells_its_classes_and_links_apart(server, tmp_path):
    for name, given in (("scan", "BI-RADS 2"), ("other", "BI-RADS 5")):
        label(server, name, **{"class": given})
    answer = server.request("GET", "/annotate/api/export?reader=ann", headers=BEARER)
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        archive.extractall(tmp_path)
        assert len(archive.namelist()) == len(set(archive.namelist()))
    datalist = str(tmp_path / "datalist.json")
    names = read_class_names(datalist, ["normal", "benign", "malignant"])
    assert names == CLASSES
    items = load_datalist(datalist, "training+validation", str(tmp_path), names)
    found = {item["image"].rpartition("/")[2]: names[item["class"]] for item in items}
    assert (found["scan.png"], found["other.png"]) == ("BI-RADS 2", "BI-RADS 5")
    for name in ("scan", "other"):
        assert (tmp_path / "images" / f"{name}.png").read_bytes() == (server.studies / f"{name}.png").read_bytes()


def test_an_image_is_told_by_its_content_and_the_folder(server):
    first, again, other = (
        server.request("GET", f"/annotate/api/image?image={name}", headers=BEARER).headers["etag"]
        for name in ("i0", "i0", "i1")
    )
    assert first == again != other
    assert len(server.request("GET", "/annotate/api/config", headers=BEARER).json()["folder"]) == 12


def test_a_folder_of_labels_that_is_gone_is_told_and_taken_when_it_is_back(server):
    label(server, "i2", **{"class": "cyst"})
    labels = server.studies / "labels"
    labels.rename(server.studies / "moved")
    told = label(server, "i2", code=503, **{"class": "cyst"})["detail"]
    assert told == "the folder studies/labels is gone; put it back, or make an empty one"
    assert server.request("GET", "/annotate/api/images?reader=ann", headers=BEARER).status == 503
    (server.studies / "moved").rename(labels)
    label(server, "i2", **{"class": "BI-RADS 2"})
