"""Pictures of every state of the annotation page, to be looked at: wide, tablet, phone; dark, light, forced colours.

    python tests/screenshots.py --url http://127.0.0.1:8000/annotate/ --output_dir runs/screenshots

The server works on a folder of at least twelve images, whose labels are changed; two readers, "first" and "second",
label some of them differently. Ends with an error where the page's console has one.
"""

import json
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bundle"))

from breast_ultrasound.cli import run  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu"]
WIDTHS = {"wide": (1280, 900), "tablet": (820, 1180), "phone": (390, 844)}
LOOKS = {"dark": {}, "light": {}, "forced": {"forced_colors": "active"}}
CUT_OFF = "net::ERR_FAILED"  # what the console says of the requests that are cut off here
NOTHING_LEFT = {"image": None, "again": False, "left_out": [], "other_window": None}
RUNNING = {"status": "RUNNING", "started": "2026-01-01 12:00:00", "done": 0.4, "failed": ""}
OUTCOME = "not in use: score 0.665 against 0.964 on 3 labels held out, 1 of them drawn without a suggestion"


def screenshots(url: str, output_dir: Path) -> None:
    """Take the pictures.

    Args:
        url: of the page.
        output_dir: is made.

    Raises:
        ValueError: the page's console has an error.
    """
    from playwright.sync_api import sync_playwright

    output_dir.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        errors = []
        for width, size in WIDTHS.items():
            for look, options in LOOKS.items():
                viewport = {"width": size[0], "height": size[1]}
                context = browser.new_context(viewport=viewport, has_touch=width != "wide", **options)
                page = context.new_page()
                page.on("console", lambda m: m.type == "error" and CUT_OFF not in m.text and errors.append(m.text))
                page.on("pageerror", lambda error: errors.append(str(error)))
                states(page, url, look, lambda name: page.screenshot(path=output_dir / f"{name}_{width}_{look}.png"))
                context.close()
        browser.close()
    if errors:
        raise ValueError(f"the console is not empty: {errors[0]}")


def states(page, url, look, take) -> None:
    """Bring the page into one state after another, and take a picture of each."""

    def key(*keys):
        for name in keys:
            page.keyboard.press(name)
        page.wait_for_timeout(400)

    def opened(reader):
        page.goto(url)
        page.wait_for_selector("#login[open]")
        if reader == "first":
            take("01_login")
        page.fill("#reader", reader)
        key("Enter")
        page.wait_for_function("() => document.querySelector('#name').textContent")
        page.wait_for_timeout(800)

    page.add_init_script(f"localStorage.theme = '{'light' if look == 'light' else 'dark'}'")
    opened("first")
    take("02_first_image")
    key("o")
    box = page.locator("#view").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    drag(page, (x - 60, y - 40), (x + 60, y + 40))
    key("2", "u")
    take("03_drawn")
    key("n")
    page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
    take("04_opened_details")
    key("Enter")
    page.evaluate("sessionStorage.clear(); localStorage.removeItem('reader')")
    opened("second")
    key("Delete", "o")
    drag(page, (x - 90, y), (x + 20, y + 70))
    key("3", "Enter")
    page.wait_for_timeout(500)
    for name in ("images", "training", "agreement", "help"):
        page.locator(f"[data-open={name}]").first.click()
        page.wait_for_timeout(1500)
        take(f"05_{name}")
        if name == "agreement":
            page.locator("#differing button").first.click()
            page.wait_for_selector("#outlines button")
            page.wait_for_timeout(500)
            take("06_settle")
        else:
            key("Escape")
    answered(page, "training", RUNNING | {"history": [{"time": "2026-01-01 11:00:00", "outcome": OUTCOME}]})
    key("t")
    page.wait_for_timeout(500)
    take("07_training_runs")
    key("Escape")
    page.route("**/api/final*", lambda route: route.abort())
    page.locator("#outlines button").first.click()
    key("Enter")
    page.wait_for_function("() => document.querySelector('#saving').textContent.includes('not saved yet')")
    take("08_not_saved")
    page.unroute("**/api/final*")
    page.wait_for_function("() => document.querySelector('#saving').textContent === ''")
    for name, next_image in (
        ("09_no_answer", None),
        ("10_ended", NOTHING_LEFT | {"labelled": 14, "of": 14}),
        ("11_empty_folder", NOTHING_LEFT | {"labelled": 0, "of": 0}),
    ):
        page.evaluate("addEventListener('pagehide', () => sessionStorage.clear())")  # it goes on where it was, else
        answered(page, "next", next_image)
        page.goto(url)
        page.wait_for_function("() => waiting.textContent || !ended.hidden")
        page.wait_for_timeout(500)
        take(name)
    page.goto(f"{url}login.html#wrong")
    take("12_wrong_token")


def answered(page, call, content) -> None:
    """Give an answer of our own to a call of the page; None: cut it off."""
    page.unroute(f"**/api/{call}*")
    body = json.dumps(content)
    page.route(f"**/api/{call}*", lambda route: route.fulfill(body=body) if content else route.abort())


def drag(page, start, end) -> None:
    """Draw with the mouse."""
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(*end, steps=5)
    page.mouse.up()


if __name__ == "__main__":
    run(screenshots)
