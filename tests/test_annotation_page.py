"""The page to annotate in, in headless Chromium on the real label server."""

import contextlib
import io
import json
import shutil

import numpy as np
import pytest
from conftest import CLASS_NAMES, ROOT
from label_server import serve_app
from PIL import Image
from test_pages import CHROMIUM, DESK

PAGE = ROOT / "label_app" / "page"
REAL = ROOT.parent / "shared" / "data" / "Dataset_BUSI_with_GT"
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync"
browser_test = pytest.mark.skipif(not CHROMIUM, reason="no Chromium here; on Debian: apt-get install chromium")


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api").sync_playwright()
    with playwright as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def server(label_venv, tmp_path_factory, prepared, small_bundle):
    """A server on phantoms whose suggestions are never withheld; `studies` is its folder. Each test has a reader."""
    studies = tmp_path_factory.mktemp("page") / "studies"
    shutil.copytree(prepared / "images", studies)
    options = ["--without_suggestion", "0"]
    with serve_app(label_venv, studies, small_bundle, studies.parent / "server.log", *options) as server:
        server.studies = studies
        yield server


@contextlib.contextmanager
def opened(browser, server, reader, size=DESK, faults=(), **options):
    """The page of a reader, with an image in it; errors in its console other than `faults` fail the test."""
    context = browser.new_context(viewport=size, **options)
    context.add_init_script(f"if (!sessionStorage.reader) sessionStorage.reader = {json.dumps(reader)}")
    page = context.new_page()
    found = []
    page.on("console", lambda message: found.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: found.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith((server.url, "data:")) else found.append(r.url))
    page.goto(f"{server.url}/annotate/")
    ready(page)
    yield page
    assert [text for text in found if not any(fault in text for fault in faults)] == []
    context.close()


def ready(page, other_than=None):
    """Wait until an image is shown, another one than before where that is given; return its id."""
    page.wait_for_function(
        "before => { const name = document.querySelector('#name').textContent; "
        "return name && name !== before && document.querySelector('[data-class]') }",
        arg=other_than,
    )
    return page.inner_text("#name")


def told(page, text):
    """Wait until the page's message has a text in it."""
    page.wait_for_function("text => document.querySelector('#message').textContent.includes(text)", arg=text)


def to_screen(page, image, x, y):
    """Where a point of the image (centre of a pixel) is on the screen at the zoom that shows it whole."""
    box = page.locator("#view").bounding_box()
    scale = min(box["width"] / image[1], box["height"] / image[0])
    left, top = (box["width"] - scale * image[1]) / 2, (box["height"] - scale * image[0]) / 2
    return box["x"] + left + (x + 0.5) * scale, box["y"] + top + (y + 0.5) * scale


def drag(page, start, end, steps=20, **options):
    page.mouse.move(*start)
    page.mouse.down(**options)
    page.mouse.move(*end, steps=steps)
    page.mouse.up(**options)


def submitted(server, page, reader, name, tag="reader_"):
    """Submit, and return the mask on the disk as bool, and its info."""
    page.keyboard.press("Enter")
    page.wait_for_function("name => document.querySelector('#name').textContent !== name", arg=name)
    mask = np.asarray(Image.open(server.studies / "labels" / f"{tag}{reader}" / f"{name}.png"))
    info = server.request("GET", f"/datastore/label/info?label={name}&tag={tag}{reader}").json()
    assert set(np.unique(mask)) <= {0, 255}
    return mask > 0, info


def dice(first, second):
    return 2 * (first & second).sum() / (first.sum() + second.sum())


def capsule(shape, start, end, radius):
    """Pixels whose centre lies within a radius of a line, all in pixels of the image (centres at whole numbers)."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    (x0, y0), (x1, y1) = start, end
    length = max((x1 - x0) ** 2 + (y1 - y0) ** 2, 1e-9)
    along = np.clip(((columns - x0) * (x1 - x0) + (rows - y0) * (y1 - y0)) / length, 0, 1)
    return np.hypot(columns - x0 - along * (x1 - x0), rows - y0 - along * (y1 - y0)) <= radius


def size_of(server, name):
    """Height and width of an image of the folder."""
    return Image.open(io.BytesIO(server.request("GET", f"/annotate/api/image?image={name}").content)).size[::-1]


@pytest.mark.slow
@browser_test
class TestInTheBrowser:
    @pytest.mark.parametrize("ratio", [1, 2])
    def test_a_stroke_and_a_class_land_on_the_disk_pixel_for_pixel(self, browser, server, ratio):
        reader = f"stroke{ratio}"
        with opened(browser, server, reader, device_scale_factor=ratio) as page:
            name = ready(page)
            image = size_of(server, name)
            page.keyboard.press("n")  # from an empty mask
            start, end = (image[1] // 4, image[0] // 3), (image[1] // 2, image[0] // 2)
            drag(page, to_screen(page, image, *start), to_screen(page, image, *end))
            page.keyboard.press("2")
            mask, info = submitted(server, page, reader, name)
            assert dice(mask, capsule(image, start, end, 6)) > 0.99
            assert info["class"] == CLASS_NAMES[1] and info["reader"] == reader
            final = np.asarray(Image.open(server.studies / "labels" / "final" / f"{name}.png")) > 0
            assert np.array_equal(final, mask)
            assert page.inner_text("#count").startswith("1 of ")

    def test_tools_undo_and_the_slider_do_what_they_say(self, browser, server):
        reader = "tools"
        with opened(browser, server, reader) as page:
            name = ready(page)
            image = size_of(server, name)
            height, width = image
            page.keyboard.press("n")

            def box(key, left, top, right, bottom, **options):
                page.keyboard.press(key)
                drag(page, to_screen(page, image, left, top), to_screen(page, image, right, bottom), **options)

            rows, columns = np.mgrid[:height, :width]
            left, top, right, bottom = width // 4, height // 4, width // 2, height // 2
            box("o", left, top, right, bottom)
            a, b = (right - left) / 2, (bottom - top) / 2
            ellipse = np.hypot((columns - left - a) / a, (rows - top - b) / b) <= 1
            page.keyboard.press("l")
            corners = [(left, top), (right, top), (right, bottom)]
            page.mouse.move(*to_screen(page, image, *corners[0]))
            page.mouse.down()
            for corner in corners[1:]:
                page.mouse.move(*to_screen(page, image, *corner), steps=10)
            page.mouse.up()
            triangle = (columns - left) * (bottom - top) >= (rows - top) * (right - left)
            inside = (columns >= left) & (columns <= right) & (rows >= top) & (rows <= bottom)
            expected = ellipse | (triangle & inside)
            middle = (int(left + a), int(top + b))
            hole = capsule(image, middle, middle, 6)
            page.keyboard.press("e")
            drag(page, to_screen(page, image, *middle), to_screen(page, image, *middle), steps=1)
            page.keyboard.press("2")
            for press, mask in (
                ("", expected & ~hole),
                ("Control+z", expected),
                ("Control+y", expected & ~hole),
                ("f", expected),
                ("Control+z", expected & ~hole),
            ):
                if press:
                    page.keyboard.press(press)
                if press == "f":
                    page.mouse.click(*to_screen(page, image, *middle))
                drawn, _ = submitted(server, page, reader, name)
                assert dice(drawn, mask) > 0.97, press
                page.keyboard.press("p")
                page.wait_for_function("name => document.querySelector('#name').textContent === name", arg=name)
            box("o", left, top, right, bottom, button="right")  # takes away
            assert dice(submitted(server, page, reader, name)[0], triangle & inside & ~ellipse) > 0.9

    def test_the_slider_cuts_the_models_map_and_the_box_asks_the_model_again(self, browser, server):
        reader = "slider"
        with opened(browser, server, reader) as page:
            name = ready(page)
            image = size_of(server, name)
            page.keyboard.press("2")
            areas = []
            for press in (",", ".", "."):
                page.keyboard.press(press)
                areas.append(
                    page.evaluate(
                        "JSON.parse(localStorage.getItem(Object.keys(localStorage).find(k => "
                        "k.startsWith('draft/slider'))))"
                    ).get("runs")
                )
            area = [sum(runs[1::2]) for runs in areas]
            assert area[0] >= area[1] >= area[2] and area[0] > area[2]
            page.keyboard.press("m")
            box = image[1] // 4, image[0] // 4, image[1] // 2, image[0] // 2
            with page.expect_response("**/api/box") as asked:
                drag(page, to_screen(page, image, *box[:2]), to_screen(page, image, *box[2:]))
            assert asked.value.ok and asked.value.request.post_data_json["box"] == pytest.approx(box, abs=2)
            told(page, "in your box")
            page.keyboard.press("r")
            mask, _ = submitted(server, page, reader, name)
            suggestion, _ = server.infer("breast_ultrasound", name)
            assert np.array_equal(mask, suggestion > 0)

    def test_a_draft_survives_a_reload_and_a_save_that_fails_is_told(self, browser, server):
        reader = "draft"
        with opened(browser, server, reader, faults=["net::ERR_FAILED"]) as page:
            name = ready(page)
            image = size_of(server, name)
            page.keyboard.press("n")
            start, end = (40, 40), (image[1] // 2, 60)
            drag(page, to_screen(page, image, *start), to_screen(page, image, *end))
            page.keyboard.press("3")
            page.reload()
            assert ready(page) == name and "draft" in page.inner_text("#message")
            page.route("**/api/label*", lambda route: route.abort())
            page.keyboard.press("Enter")
            told(page, "Not saved")
            assert page.inner_text("#name") == name
            page.unroute("**/api/label*")
            mask, info = submitted(server, page, reader, name)
            assert dice(mask, capsule(image, start, end, 6)) > 0.99 and info["class"] == CLASS_NAMES[2]
            assert page.evaluate("Object.keys(localStorage).filter(k => k.startsWith('draft/'))") == []

    def test_the_keyboard_alone_is_enough(self, browser, server):
        reader = "keyboard"
        with opened(browser, server, reader) as page:
            name = ready(page)
            image = size_of(server, name)
            for press in ["n", *["]"] * 4, "Space", *["ArrowRight"] * 20, "Space", "2"]:
                page.keyboard.press(press)
            mask, info = submitted(server, page, reader, name)
            size = 12 * 1.2**4
            centre = image[1] / 2 - 0.5, image[0] / 2 - 0.5
            assert dice(mask, capsule(image, centre, (centre[0] + 5 * size, centre[1]), size / 2)) > 0.99
            name = ready(page)
            page.keyboard.press("x")
            mask, info = submitted(server, page, reader, name)
            assert info["cannot_tell"] and "class" not in info and not mask.any()
            name = ready(page)
            page.keyboard.press("n")
            mask, info = submitted(server, page, reader, name)
            assert info["class"] == "normal" and not mask.any()
            page.keyboard.press("?")
            listed = page.locator("#keys tr").count()
            assert listed > 25 and page.locator("#help").is_visible()
            page.keyboard.press("Escape")
            assert page.locator("#help").is_hidden()

    def test_a_label_that_contradicts_itself_is_not_sent(self, browser, server):
        with opened(browser, server, "refused") as page:
            name = ready(page)
            page.keyboard.press("Enter")
            assert "class first" in page.inner_text("#message")
            page.keyboard.press("n")
            page.keyboard.press("2")
            page.keyboard.press("Enter")
            assert "outline the lesion" in page.inner_text("#message") and page.inner_text("#name") == name

    def test_the_models_class_is_shown_after_the_readers(self, browser, server):
        with opened(browser, server, "blind") as page:
            ready(page)
            assert not any(name in page.inner_text("#model") for name in CLASS_NAMES)
            page.keyboard.press("2")
            assert all(name in page.inner_text("#model") for name in CLASS_NAMES)

    def test_pen_and_fingers(self, browser, server):
        reader = "tablet"
        size = {"width": 820, "height": 1180}
        with opened(browser, server, reader, size, has_touch=True) as page:
            name = ready(page)
            image = size_of(server, name)
            page.keyboard.press("n")
            cdp = page.context.new_cdp_session(page)
            start, end = (30, 40), (image[1] // 2, 50)

            def touch(kind, *points):
                points = [dict(zip("xy", point), id=i) for i, point in enumerate(points)]
                cdp.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

            a, b = to_screen(page, image, *start), to_screen(page, image, *end)
            touch("touchStart", a)
            touch("touchMove", b)
            touch("touchEnd")
            # Two fingers zoom about their middle and draw nothing; back again, so that the next stroke fits
            touch("touchStart", a, b)
            touch("touchMove", (a[0] - 30, a[1]), (b[0] + 30, b[1]))
            touch("touchEnd")
            page.keyboard.press("0")
            for kind, point, buttons in (("mousePressed", a, 1), ("mouseMoved", a, 1), ("mouseReleased", a, 0)):
                cdp.send(
                    "Input.dispatchMouseEvent",
                    {
                        "type": kind,
                        "x": point[0],
                        "y": point[1],
                        "button": "left",
                        "buttons": buttons,
                        "clickCount": 1,
                        "pointerType": "pen",
                    },
                )
            touch("touchStart", to_screen(page, image, 60, image[0] // 2))  # the resting hand, after a pen
            touch("touchMove", to_screen(page, image, 90, image[0] // 2))
            touch("touchEnd")
            page.keyboard.press("2")
            mask, info = submitted(server, page, reader, name)
            assert dice(mask, capsule(image, start, end, 6)) > 0.98
