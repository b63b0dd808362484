"""The pages work in a real browser: headless Chromium, at a desk and on a phone, with an accessibility check."""

import csv
import json
import shutil
import subprocess
import sys
from importlib.resources import files

import numpy as np
import pytest
from PIL import Image

from conftest import CLASS_NAMES, ROOT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium here; on Debian: apt-get install chromium"),
]
EVALUATION = ROOT / "study" / "results" / "evaluations" / "testing"
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
COLUMNS = ["filename", "class", *(f"p_{name}" for name in CLASS_NAMES), "lesion_area_px", "suspicious", "unsure"]


@pytest.fixture(scope="module")
def pages(prepared, tmp_path_factory):
    """Pages on the phantoms, the report and predictions with mistakes of every kind; and one on an evaluation."""
    folder = tmp_path_factory.mktemp("pages")
    lists = json.loads((prepared / "datalist.json").read_text())
    items = lists["training"] + lists["validation"] + lists["testing"]
    random, rows = np.random.default_rng(0), []
    (folder / "predictions").mkdir()
    for i, item in enumerate(items):
        name = item["image"].removeprefix("images/")
        mask = np.asarray(Image.open(prepared / item["label"]))
        mask = np.roll(mask, (0, 20, 400)[i % 3], axis=1) if mask.any() else np.zeros_like(mask)
        if not mask.any() and i % 2:
            mask = mask.copy()
            mask[40:80, 40:90] = 255
        Image.fromarray(mask).save(folder / "predictions" / f"{name.removesuffix('.png')}_seg.png")
        p = random.dirichlet(np.where(np.arange(3) == (item["class"] + (i % 4 == 0)) % 3, 6, 1))
        unsure = "yes" if p.max() < 0.6 else "no"
        row = [name, CLASS_NAMES[p.argmax()], *p.round(6), int((mask > 0).sum()), "yes" if p[2] > 0.3 else "no", unsure]
        rows.append(dict(zip(COLUMNS, row)))
    with open(folder / "predictions" / "predictions.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    show = ["scripts/show_predictions.py", "--predictions", folder / "predictions", "--images", prepared / "images"]
    show += [
        "--labels",
        prepared / "labels",
        "--datalist",
        prepared / "datalist.json",
        "--output_dir",
        folder / "shown",
    ]
    for command in (
        show,
        ["scripts/explore.py", "--dataset_dir", prepared, "--output_dir", folder / "report", "--count", "2"],
        ["scripts/report.py", "--evaluation", EVALUATION, "--output_dir", folder / "evaluation", "--draws", "100"],
    ):
        done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    true = {item["image"].removeprefix("images/"): item["class_name"] for item in items}
    paths = {"report": folder / "report" / "report.html", "predictions": folder / "shown" / "index.html"}
    return {**paths, "evaluation": folder / "evaluation" / "index.html"}, rows, true


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium. It needs no network, and as root no sandbox."""
    playwright = pytest.importorskip("playwright.sync_api").sync_playwright()
    with playwright as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def opened(browser, path, viewport):
    """A page whose console errors and requests beyond its folder fail the test."""
    page = browser.new_page(viewport=viewport)
    page.faults = []
    page.on("console", lambda message: page.faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("requestfailed", lambda request: page.faults.append(request.url))
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else page.faults.append(r.url))
    page.goto(path.as_uri())
    return page


@pytest.mark.parametrize("name", ["report", "predictions", "evaluation"])
@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_a_page_loads_fits_and_is_accessible(pages, browser, name, viewport):
    page = opened(browser, pages[0][name], viewport)
    # Images far below load when they come into sight; here, all at once.
    page.evaluate("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
    page.wait_for_function("[...document.images].every(i => i.complete)")
    assert page.evaluate("document.images.length") > 5
    assert page.evaluate("[...document.images].filter(i => !i.naturalWidth).map(i => i.src)") == []
    assert page.evaluate("[...document.images].filter(i => !i.alt).length") == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]  # nothing sticks out
    assert "not a medical device" in page.inner_text("footer").lower()
    page.evaluate(files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run()")
    assert [(v["id"], [node["html"][:200] for node in v["nodes"][:3]]) for v in found["violations"]] == []
    assert {"color-contrast", "image-alt", "landmark-one-main"} <= {rule["id"] for rule in found["passes"]}
    for link in page.query_selector_all("nav a"):
        assert page.query_selector(link.get_attribute("href"))
    assert page.faults == []
    page.close()


def shown(page, column):
    """Text of a column in the rows that can be seen."""
    script = "c => [...document.querySelectorAll('#images tbody tr')].filter(r => r.offsetParent)"
    return page.evaluate(script + ".map(r => r.querySelector(`td[data-label='${c}']`).dataset.value)", column)


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_predictions_are_sorted_and_filtered(pages, browser, viewport):
    paths, rows, true = pages
    page = opened(browser, paths["predictions"], viewport)
    assert len(shown(page, "Image")) == len(rows)
    top = [max(row[f"p_{name}"] for name in CLASS_NAMES) for row in rows]
    button = page.get_by_role("button", name="Probability")
    button.focus()
    page.keyboard.press("Enter")  # the keyboard is enough
    assert [float(v) for v in shown(page, "Probability")] == pytest.approx(sorted(top))
    button.click()
    assert [float(v) for v in shown(page, "Probability")] == pytest.approx(sorted(top, reverse=True))
    assert page.locator("th[aria-sort=descending]").inner_text().startswith("Probability")
    page.get_by_role("button", name="Dice").click()
    dice = [float(v) for v in shown(page, "Dice")]
    assert dice == sorted(dice) and len(set(dice)) > 3

    page.locator("select[name=class]").select_option("benign")
    benign = {row["filename"] for row in rows if row["class"] == "benign"}
    assert set(shown(page, "Image")) == benign
    assert page.inner_text("output") == f"{len(benign)} of {len(rows)} images"
    page.locator("select[name=class]").select_option("")
    page.locator("select[name=error]").select_option("wrong class")
    wrong = {row["filename"] for row in rows if row["class"] != true[row["filename"]]}
    assert set(shown(page, "Image")) == wrong and 0 < len(wrong) < len(rows)
    page.locator("select[name=error]").select_option("unsure")
    unsure = {row["filename"] for row in rows if row["unsure"] == "yes"}
    assert set(shown(page, "Image")) == unsure and 0 < len(unsure) < len(rows)
    page.locator("select[name=true]").select_option("malignant")
    assert set(shown(page, "Image")) == {name for name in unsure if true[name] == "malignant"}
    assert page.faults == []
    page.close()


def test_galleries_show_the_failures_with_probability_and_doubt(pages, browser):
    paths, rows, true = pages
    page = opened(browser, paths["predictions"], DESK)

    def gallery(title):
        section = page.locator("section", has=page.get_by_role("heading", name=title))
        return section.locator("figcaption").all_inner_texts()

    missed = {row["filename"] for row in rows if true[row["filename"]] == "malignant" and row["class"] != "malignant"}
    assert missed <= {text.splitlines()[0] for text in gallery("Missed malignant images")} and missed
    false = {row["filename"] for row in rows if true[row["filename"]] == "normal" and row["lesion_area_px"]}
    assert {text.splitlines()[0] for text in gallery("False masks")} >= false and false
    worst = gallery("Worst masks")
    dice = [float(text.rsplit("Dice ", 1)[1]) for text in worst]
    assert dice == sorted(dice) and len(dice) == 12
    by_name = {row["filename"]: row for row in rows}
    for text in worst:
        row = by_name[text.splitlines()[0]]
        assert f"{row['class']} {row['p_' + row['class']]:.2f}" in text
        assert (", unsure" in text) == (row["unsure"] == "yes")
    page.close()


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_a_grid_and_a_large_image_with_the_outline_on_or_off(pages, browser, viewport):
    paths, rows, _ = pages
    page = opened(browser, paths["predictions"], viewport)
    page.get_by_role("button", name="Grid").click()
    boxes = [row.bounding_box() for row in page.query_selector_all("#images tbody tr")[:2]]
    if viewport == DESK:
        assert boxes[0]["y"] == boxes[1]["y"] and boxes[1]["x"] > boxes[0]["x"]  # side by side
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    page.locator("select[name=class]").select_option("benign")  # filters hold in the grid too
    assert len(shown(page, "Image")) == sum(row["class"] == "benign" for row in rows)
    page.locator("#images a.large:visible").first.click()
    large = page.locator("#large")
    page.wait_for_function("document.querySelector('#large').naturalWidth > 0")
    outlined = large.get_attribute("src")
    page.get_by_role("button", name="Outline").click()
    page.wait_for_function("document.querySelector('#large').complete")
    assert large.get_attribute("src") == f"plain/{outlined}" and page.evaluate("large.naturalWidth") > 0
    assert page.locator("#outline").get_attribute("aria-pressed") == "false"
    page.keyboard.press("Escape")
    assert not large.is_visible() and page.faults == []
    page.close()
