"""The demo's page in a real browser: each tab is clicked through, and no request leaves localhost.

Skipped where gradio, playwright or a Chromium is missing: pip install gradio playwright, apt-get
install chromium.
"""

import io
import shutil
import socket

import numpy as np
import pytest
from PIL import Image

from fsq_jax import runs
from tests import tiny

pytest.importorskip("gradio", reason="the demo needs gradio")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(not BROWSER, reason="there is no chromium here")
SECONDS = 120_000  # of patience, in milliseconds: programs are compiled at the first click


@pytest.fixture(scope="module")
def address(trained, tmp_path_factory):
    """Where the page of a tokenizer, a masked transformer and a depth model is served."""
    from fsq_jax.demo import pages

    folder = tmp_path_factory.mktemp("uvim")
    base = tiny.untrained(tiny.label_coder(), folder / "base")
    lm = tiny.untrained(tiny.code_model(base), folder / "lm")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = (trained.tokenizer, trained.transformer, lm)
    predictors = {path: runs.load(path, overrides={"eval_batch_size": 8}) for path in paths}
    page = pages.launch(predictors, "127.0.0.1", port, browser=False, block=False)
    yield f"http://127.0.0.1:{port}"
    page.close()


@pytest.fixture(scope="module")
def opened(address):
    """(the page in a browser, the addresses that it asked for, what its console complained of)."""
    asked, complaints = [], []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1100})
        page.set_default_timeout(SECONDS)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(address)
        page.get_by_role("tab", name="Tokenizer").wait_for()
        yield page, asked, complaints
        browser.close()


def shown(page, label: str) -> np.ndarray:
    """The picture under a label on the open tab, once there is one."""
    image = page.locator(f".block:visible:has([data-testid=block-label]:has-text({label!r})) img")
    image.first.wait_for()
    response = page.request.get(image.first.get_attribute("src"))
    return np.asarray(Image.open(io.BytesIO(response.body())).convert("RGB"))


def brush(page, label: str) -> None:
    """A stroke through the middle of an image editor."""
    canvas = page.locator(f".block:visible:has-text({label!r}) canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 60, y)
    page.mouse.down()
    page.mouse.move(x + 60, y + 10, steps=10)
    page.mouse.up()


def test_a_tokenizer(opened):
    page, _, _ = opened
    page.get_by_role("button", name="Encode and decode").click()
    assert shown(page, "Reconstruction").shape == (384, 384, 3)
    before = shown(page, "Decoded")
    brush(page, "Codes to paint on")
    page.get_by_role("button", name="Paint and decode").click()
    page.wait_for_timeout(500)
    for _ in range(60):
        if (shown(page, "Decoded") != before).any():
            break
        page.wait_for_timeout(500)
    assert (shown(page, "Decoded") != before).any()


def test_a_masked_transformer(opened):
    page, _, _ = opened
    page.get_by_role("tab", name="MaskGIT").click()
    page.get_by_role("button", name="Draw").click()
    page.get_by_text("0 of 16 tokens are open.").first.wait_for()
    assert shown(page, "Samples").shape[2] == 3 and shown(page, "Steps").shape[2] == 3
    page.get_by_role("tab", name="In-painting").click()
    page.get_by_role("button", name="Complete").click()
    page.get_by_text("Nothing is painted over").first.wait_for()
    brush(page, "Brush over what is to be drawn again")
    page.get_by_role("button", name="Complete").click()
    page.locator("p:visible", has_text="0 of 16 tokens are open.").wait_for()
    assert shown(page, "Completions").shape[2] == 3


def test_labels_of_a_picture(opened):
    page, _, _ = opened
    page.get_by_role("tab", name="UViM: depth").click()
    page.get_by_role("button", name="Predict depth").click()
    assert shown(page, "Depth").shape == (384, 384, 3)


def test_no_request_leaves_this_machine(opened, address):
    _, asked, complaints = opened
    elsewhere = [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    assert asked and not elsewhere
    assert not complaints
