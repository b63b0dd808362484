"""A study with several readers on the real server: roles and tokens, who reads what, disagreement shown and settled."""

import base64
import csv
import io
import json
import shutil
import zipfile

import numpy as np
import pytest
import requests
from label_server import png_bytes, serve_app
from PIL import Image
from test_annotation_page import browser, browser_test, put, saved, told  # noqa: F401
from test_pages import DESK

pytestmark = pytest.mark.slow
READERS = {"Anna": "reader", "Dr. Böhm": "reader", "Chief": "adjudicator"}
API = "/annotate/api"


@pytest.fixture(scope="module")
def server(label_venv, tmp_path_factory, prepared, small_bundle):
    """A server that listens to the network; `tokens` are its readers', `names` its images."""
    studies = tmp_path_factory.mktemp("study") / "studies"
    studies.mkdir()
    for file in sorted((prepared / "images").glob("*.png"))[:10]:
        shutil.copy(file, studies)
    study = {"readers": READERS, "overlap": 0.4, "fields": {"BI-RADS": ["2", "4a"]}, "hide_names": True}
    (studies / "study.json").write_text(json.dumps(study))
    options = ["--host", "0.0.0.0", "--token", "master", "--names", "0.0.0.0,127.0.0.1", "--without_suggestion", "0.5"]
    with serve_app(label_venv, studies, small_bundle, studies.parent / "server.log", *options) as server:
        server.studies = studies
        server.tokens = json.loads((studies / ".tokens.json").read_text())
        server.names = sorted(file.stem for file in studies.glob("*.png"))
        yield server


def asked(server, reader, method, path, code=200, **options):
    """What a reader's own token is answered."""
    headers = {"Authorization": f"Bearer {server.tokens[reader]}"}
    return server.request(method, path, code, headers=headers, **options)


def rectangle(server, name, left, right):
    """A mask of the image's size, with a rectangle in it."""
    content = server.request("GET", f"{API}/image?image={name}").content
    mask = np.zeros(np.asarray(Image.open(io.BytesIO(content))).shape, bool)
    mask[10:40, left:right] = True
    return mask


def label(server, reader, name, mask, code=200, **said):
    """A reader's label, with her own token."""
    data, files = {"params": json.dumps(said)}, {"mask": ("mask.png", png_bytes(mask))}
    return asked(server, reader, "PUT", f"{API}/label", code, params={"image": name}, data=data, files=files).json()


def test_each_reader_has_her_own_token_and_sees_nothing_of_the_others(server):
    log = server.log.read_text()
    for name, role in READERS.items():
        assert f"Token of {name} ({role}): {server.tokens[name]}" in log
    assert (server.studies / ".tokens.json").stat().st_mode & 0o77 == 0
    assert requests.get(server.url + f"{API}/config").status_code == 401
    found = asked(server, "Anna", "GET", f"{API}/config").json()
    assert found["reader"] == "Anna" and found["readers"] == {"Anna": "reader"}
    for path, code in (
        (f"{API}/agreement", 403),
        (f"{API}/export", 403),
        (f"{API}/outlines?image={server.names[0]}", 403),
        (f"{API}/version?image={server.names[0]}&version=x&final=true", 403),
        (f"{API}/images?reader=Chief", 403),  # her token says who she is
        ("/datastore/?output=all", 403),
        (f"/datastore/label?label={server.names[0]}&tag=reader_Anna", 403),
        (f"{API}/images", 200),
    ):
        asked(server, "Anna", "GET", path, code)
    asked(server, "Anna", "POST", "/train/breast_ultrasound", 403, json={})
    asked(server, "Chief", "GET", f"{API}/agreement")
    asked(server, "Chief", "GET", "/datastore/?output=all", 403)
    server.request("GET", f"{API}/images?reader=Nobody", 403)
    assert "Nobody is no reader" in server.request("GET", f"{API}/images?reader=Nobody", 403).json()["detail"]


def test_readers_get_their_images_with_and_without_suggestion(server):
    own = {}
    for reader in ("Anna", "Dr. Böhm"):
        own[reader] = [entry["image"] for entry in asked(server, reader, "GET", f"{API}/images").json()]
        following = asked(server, reader, "POST", f"{API}/next", json={}).json()
        assert following["of"] == len(own[reader]) == 7
        assert following["image"] == own[reader][0]  # names are hidden: in an order that tells nothing, here as there
    assert len(set(own["Anna"]) & set(own["Dr. Böhm"])) == 4  # 0.4 of ten
    assert set(own["Anna"]) | set(own["Dr. Böhm"]) == set(server.names)
    withheld = {}
    for reader in READERS:
        found = [
            asked(server, reader, "GET", f"{API}/reading?image={name}").json()["withheld"] for name in server.names
        ]
        withheld[reader] = found
        assert sum(found) == 5
    assert withheld["Anna"] != withheld["Dr. Böhm"] != withheld["Chief"]


def test_a_label_sent_twice_is_kept_once_and_one_unseen_is_not_replaced(server):
    name, log = server.names[-1], server.studies / "annotation_log.csv"
    mask = rectangle(server, name, 10, 50)
    for _ in range(2):  # the first answer was lost on its way
        label(server, "Anna", name, mask, **{"class": "benign"}, submission="one", seconds=3.0, flag=True)
    found = label(server, "Anna", name, mask, 409, **{"class": "benign"}, submission="two")
    assert "another window" in found["detail"]
    label(
        server, "Anna", name, mask, **{"class": "malignant"}, submission="two", replaces="one", fields={"BI-RADS": "4a"}
    )
    label(server, "Anna", name, mask, 422, **{"class": "benign"}, fields={"BI-RADS": "5"})
    with open(log, newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["image"] == name]
    assert [(line["class"], line["revision"], line["flag"]) for line in lines] == [
        ("benign", "0", "1"),
        ("malignant", "1", "0"),
    ]


def test_labels_that_differ_train_nothing_until_an_adjudicator_settles_them(server):
    name = server.names[0]
    final = server.studies / "labels" / "final" / f"{name}.png"
    masks = {"Anna": rectangle(server, name, 10, 50), "Dr. Böhm": rectangle(server, name, 30, 70)}
    label(server, "Anna", name, masks["Anna"], **{"class": "benign"})
    assert np.array_equal(np.asarray(Image.open(final)) > 0, masks["Anna"])
    label(server, "Dr. Böhm", name, masks["Dr. Böhm"], **{"class": "benign"})
    assert not final.is_file()
    found = asked(server, "Chief", "GET", f"{API}/agreement").json()
    assert {"image": name, "source": ""} in found["differing"]
    (pair,) = [p for p in found["pairs"] if (p["first"], p["second"]) == ("Anna", "Dr. Böhm")]
    assert pair["dice"] == pytest.approx(0.5) and name in pair["differing"]
    outlines = asked(server, "Chief", "GET", f"{API}/outlines?image={name}").json()
    assert [label["reader"] for label in outlines["labels"]] == ["Anna", "Dr. Böhm"]
    ways = {
        way: np.asarray(Image.open(io.BytesIO(base64.b64decode(png)))) > 0 for way, png in outlines["consensus"].items()
    }
    assert np.array_equal(ways["majority"], masks["Anna"] & masks["Dr. Böhm"]) and ways["staple"].any()

    def settled(mask, submission, replaces=None):
        data = {"params": json.dumps({"class": "benign", "submission": submission, "replaces": replaces})}
        files = {"mask": ("mask.png", png_bytes(mask))}
        return asked(server, "Chief", "PUT", f"{API}/final", params={"image": name}, data=data, files=files).json()

    assert settled(masks["Dr. Böhm"], "a") == {"source": "reader"}
    assert settled(ways["majority"], "b", "a") == {"source": "majority"}
    assert settled(rectangle(server, name, 12, 55), "c", "b") == {"source": "adjudicator"}
    assert {"image": name, "source": "adjudicator"} in asked(server, "Chief", "GET", f"{API}/agreement").json()[
        "differing"
    ]
    label(server, "Anna", name, masks["Anna"], **{"class": "malignant"}, flag=True)  # changes nothing any more
    seen = {"Anna": {"Anna": ["flagged"]}, "Dr. Böhm": {"Dr. Böhm": []}}
    seen["Chief"] = seen["Anna"] | seen["Dr. Böhm"]
    for reader, doubts in seen.items():
        entries = {entry["image"]: entry["by"] for entry in asked(server, reader, "GET", f"{API}/images").json()}
        assert name not in entries or {by["reader"]: by["doubts"] for by in entries[name]} == doubts, reader
    assert np.array_equal(np.asarray(Image.open(final)) > 0, rectangle(server, name, 12, 55))
    # Earlier versions are there to be brought back
    versions = asked(server, "Chief", "GET", f"{API}/outlines?image={name}").json()["versions"]
    query = {"image": name, "version": versions[-1], "final": True}
    earlier = asked(server, "Chief", "GET", f"{API}/version", params=query).json()
    assert earlier["source"] == "majority"
    content = asked(server, "Chief", "GET", f"{API}/export").content
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        rows = list(csv.DictReader(io.StringIO(archive.read("labels.csv").decode())))
    (row,) = [row for row in rows if row["image"] == name and row["label"] == "final"]
    assert (row["source"], row["adjudicator"]) == ("adjudicator", "Chief") and row["reader"] == "Anna; Dr. Böhm"
    assert [r["BI-RADS"] for r in rows if r["image"] == server.names[-1] and r["reader"] == "Anna"] == ["4a", "4a"]


@browser_test
def test_an_adjudicator_settles_in_the_page(browser, server):  # noqa: F811
    name = server.names[1]
    label(server, "Anna", name, rectangle(server, name, 10, 40), **{"class": "benign"})
    label(server, "Dr. Böhm", name, rectangle(server, name, 50, 90), **{"class": "malignant"})
    page = browser.new_page(viewport=DESK)
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{server.url}/annotate/")
    page.get_by_label("Token").fill(server.tokens["Chief"])
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('#name')?.textContent")
    assert page.inner_text("#who") == "Chief"
    page.keyboard.press("a")
    page.locator("#differing button", has_text=name).click()
    page.wait_for_selector("#outlines button")
    texts = page.locator("#outlines p").all_inner_texts()
    assert [" ".join(text.split()) for text in texts[:2]] == ["accept Anna benign", "accept Dr. Böhm malignant"]
    page.get_by_role("button", name="accept Dr. Böhm").click()
    assert page.locator("[data-class=malignant][aria-pressed=true]").count() == 1
    page.keyboard.press("Enter")
    page.wait_for_function("name => document.querySelector('#name').textContent !== name", arg=name)
    saved(page)
    mask = np.asarray(Image.open(server.studies / "labels" / "final" / f"{name}.png")) > 0
    assert np.array_equal(mask, rectangle(server, name, 50, 90))
    page.close()
    # A reader does not even see the names of images and the buttons
    page = browser.new_page(viewport=DESK)
    page.goto(f"{server.url}/annotate/")
    page.get_by_label("Token").fill(server.tokens["Anna"])
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('#name')?.textContent")
    assert page.inner_text("#name").startswith("image ") and page.locator("[data-open=agreement]").first.is_hidden()
    page.locator("#fields select").select_option("4a")
    page.keyboard.press("a")
    told(page, "Only adjudicators")
    assert page.locator("#agreement").is_hidden() and errors == []
    page.close()
