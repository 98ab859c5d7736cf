"""The page in a real browser: Debian's chromium, driven by playwright, with no network."""

import json
import shutil

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from pages import TOKEN, block, serving, write_images
from playwright import sync_api

from bus_smp.data.images import read_mask
from bus_smp.serve.records import read_records

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        # every name but the page's own address leads nowhere
        offline = "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", offline])
        yield chromium
        chromium.close()


class Tab:
    """A tab with the page; every error in its console fails the test."""

    def __init__(self, browser, served, width=1280, height=800):
        self.page = browser.new_page(viewport={"width": width, "height": height})
        self.faults, self.requests = [], []
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", lambda message: message.type == "error" and self.faults.append(message.text))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(f"http://127.0.0.1:{served.port}/#{TOKEN}")

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.page.close()
        assert kind or not self.faults, self.faults

    def wait(self, selector):
        self.page.locator(selector).wait_for(timeout=30_000)

    def press(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)

    def text(self, selector):
        return self.page.locator(selector).inner_text()

    def ready(self, words):
        """The form shows this button."""
        self.wait(f"#form:not([hidden]) button:text('{words}')")


def test_images_are_read_blind_with_the_keyboard_only_and_no_byte_of_the_answer_comes_first(
    tmp_path, browser
):
    paths = write_images(tmp_path, 3)
    with serving(tmp_path / "to", paths) as served, Tab(browser, served) as tab:
        for number in range(3):
            tab.ready("Store my answer")
            assert tab.text("#name") == paths[number].name
            assert not [
                url
                for url in tab.requests
                if f"c{number + 1}/0/answer" in url or f"c{number + 1}/0/mask" in url
            ]
            # a lesion, benign, BI-RADS 3, 70 %, oval; the rest is left
            tab.press("2", "1", "3", "7", "0", "Enter", "1", "Control+Enter")
            tab.ready("Save and go on")
            assert "malignant" in tab.text("#verdict")
            tab.press("3")
            tab.page.keyboard.type("it is a cyst")
            tab.press("Control+Enter")
        tab.wait("#status:text('All images are done')")
        assert all(url.startswith(f"http://127.0.0.1:{served.port}/") for url in tab.requests)
        assert TOKEN not in "".join(tab.requests) and "#" not in tab.page.url
    records = read_records(tmp_path / "to")
    assert [record["kind"] for record in records] == ["session", *["own", "shown", "final"] * 3]
    assert records[1]["answers"] == {
        "lesion": "yes", "class": "benign", "birads": "3", "confidence": 70, "shape": "oval",
    }  # fmt: skip
    assert records[3]["answers"]["reason"] == "it is a cyst" and records[3]["changed_pixels"] == 0


def test_the_outline_is_corrected_with_mouse_and_keys_and_saved_as_it_was_shown(tmp_path, browser):
    with (
        serving(tmp_path / "to", write_images(tmp_path, 1), mode="concurrent") as served,
        Tab(browser, served) as tab,
    ):
        tab.ready("Save and go on")
        box = tab.page.locator("#canvas").bounding_box()
        scale = min(box["width"] / 50, box["height"] / 40)

        def at(x, y):
            left, top = (box["width"] - 50 * scale) / 2, (box["height"] - 40 * scale) / 2
            return box["x"] + left + x * scale, box["y"] + top + y * scale

        # a stroke with the mouse, undone and done again; an eraser by the keyboard: a cursor in the middle, ten to the left
        tab.press("b", "[", "[", "[", "[")
        tab.page.mouse.move(*at(35, 30))
        tab.page.mouse.down()
        tab.page.mouse.move(*at(45, 30), steps=5)
        tab.page.mouse.up()
        tab.press("Control+z", "Control+y", "e", "Shift+ArrowLeft", "Shift+ArrowLeft", "Space", "Space")
        tab.wait("#facts .lesions")
        tab.page.reload()
        tab.wait("#status:text('brought back')")
        # a lesion, malignant, BI-RADS 4, 90 %, agree in part
        tab.press("q", "2", "2", "4", "9", "0", "Control+Enter")
        tab.wait("#status:text('Not answered yet')")
        tab.press("2", "Control+Enter")
        tab.wait("#status:text('Saved with your outline')")
    record = read_records(tmp_path / "to")[-1]
    saved = read_mask([tmp_path / "to" / record["mask_after"]["file"]], "color", "malignant")
    before = block(None, _Blank).mask
    # the stroke is a band of brush width 4 between its ends, and the eraser took a disc
    assert (saved[29:31, 35:45] == 2).all() and not saved[34:].any()
    assert saved[(saved != before)].size == record["changed_pixels"] > 40


class _Blank:
    pixels = np.zeros((40, 50, 3), np.uint8)


@pytest.mark.parametrize("width", [400, pytest.param(1280, marks=pytest.mark.slow)])
def test_axe_finds_nothing_in_any_state(tmp_path, browser, width):
    paths = write_images(tmp_path, 2)
    paths[1].write_bytes(b"no image")
    with serving(tmp_path / "to", paths) as served:
        context = browser.new_context(bypass_csp=True)
        page = context.new_page()
        page.set_viewport_size({"width": width, "height": 800})

        def check(state):
            found = Axe().run(page)
            assert not found.violations_count, f"{state}: {found.generate_report()}"
            shown = page.locator("#warning").bounding_box()
            assert shown["y"] >= 0 and shown["x"] + shown["width"] <= width, state
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), state

        page.goto(f"http://127.0.0.1:{served.port}/")
        page.locator("#message.error").wait_for()
        check("without the link's secret")
        page.goto(f"http://127.0.0.1:{served.port}/#{TOKEN}")
        page.reload()
        page.locator("#form:not([hidden])").wait_for()
        check("own answer")
        for key in ("2", "1", "3", "7", "Control+Enter"):
            page.keyboard.press(key)
        page.locator("#verdict:not([hidden])").wait_for()
        check("revealed")
        page.locator("#help-open").click()
        check("keys")
        page.keyboard.press("Escape")
        page.keyboard.press("j")
        page.locator("#message.error").wait_for()
        assert "no PNG" in page.locator("#message").inner_text()
        check("a file that cannot be read")
        context.close()


def test_a_reload_comes_back_to_the_open_image_with_what_was_answered(tmp_path, browser):
    paths = write_images(tmp_path, 3)
    with serving(tmp_path / "to", paths) as served, Tab(browser, served) as tab:
        tab.ready("Store my answer")
        tab.press("j")
        tab.wait(f"#name:text('{paths[1].name}')")
        tab.ready("Store my answer")
        tab.press("2", "1")
        tab.page.reload()
        tab.ready("Store my answer")
        assert tab.text("#name") == paths[1].name
        assert tab.page.locator("#form input[value=benign]").is_checked()


def test_a_dropped_file_is_read_and_a_second_tab_is_told(tmp_path, browser):
    (path,) = write_images(tmp_path, 1)
    context = browser.new_context()
    with serving(tmp_path / "to", [], mode="none") as served:
        first = context.new_page()
        first.goto(f"http://127.0.0.1:{served.port}/#{TOKEN}")
        first.locator("#message:text('Drop images')").wait_for()
        first.locator("#files").set_input_files([str(path)])
        first.locator("#form:not([hidden])").wait_for()
        assert first.locator("#name").inner_text() == path.name
        second = context.new_page()
        second.goto(f"http://127.0.0.1:{served.port}/#{TOKEN}")
        second.locator("#files").set_input_files([str(path)])
        second.locator("#status:text('another tab')").wait_for()
        context.close()
    assert "DOE" not in json.dumps(read_records(tmp_path / "to"))
