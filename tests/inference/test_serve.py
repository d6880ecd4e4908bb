"""The web page, in a headless browser."""

import socket
import urllib.request

import cv2
import pytest

from groupdetr_d2 import Predictor
from groupdetr_d2.errors import UserError
from groupdetr_d2.inference import page as page_module
from tests.browser import open_page
from tests.inference.test_predict import make_checkpoint, picture

pytest.importorskip("gradio", reason="gradio (the extra `serve`) is not installed")


@pytest.fixture
def address(tmp_path):
    with socket.socket() as free:
        free.bind((page_module.HOST, 0))
        port = free.getsockname()[1]
    page = page_module.build_page(Predictor(make_checkpoint(tmp_path, threshold=0.01)), 0.02)
    page_module.launch_page(page, port, max_megabytes=0.05, waits=False)
    yield f"http://{page_module.HOST}:{port}"
    page.close()


def rows_of(page):
    return page.locator("#objects tr:has(td)")


def test_an_image_goes_in_and_boxes_come_out(tmp_path, address):
    """Upload, another group, a threshold above everything."""
    cv2.imwrite(str(tmp_path / "small.png"), picture(0, (60, 90)))
    with open_page(address) as page:
        upload = page.locator("input[type=file]").first
        upload.set_input_files(str(tmp_path / "small.png"))
        rows_of(page).first.wait_for(timeout=30_000)
        before = page.locator("#objects").inner_text()
        assert rows_of(page).first.inner_text().split()[0] in ("cat", "dog")
        pictures = page.evaluate("[...document.images].map(i => i.naturalWidth)")
        assert pictures.count(90) == 2

        page.get_by_label("query group").first.click()
        page.get_by_role("option", name="2").click()
        changed = "before => document.querySelector('#objects').innerText !== before"
        page.wait_for_function(changed, arg=before, timeout=30_000)

        slider = page.locator("input[type=range]").first
        slider.focus()
        page.keyboard.press("End")
        slider.dispatch_event("pointerup")
        page.get_by_text("nothing has a score above").wait_for(timeout=30_000)
        page.screenshot(path=str(tmp_path / "page.png"))


@pytest.mark.parametrize("name", ["wide.png", "heavy.jpg"])
def test_what_is_too_large_is_refused(tmp_path, address, name):
    """27,000,000 pixels in a small file, and a large file."""
    cv2.imwrite(str(tmp_path / "wide.png"), picture(0, (10, 10)).repeat(30, 0).repeat(90, 1))
    (tmp_path / "heavy.jpg").write_bytes(b"x" * 100_000)
    with open_page(address) as page:
        page.locator("input[type=file]").first.set_input_files(str(tmp_path / name))
        page.locator(".toast-body, [data-testid=toast-body], .error").first.wait_for(timeout=30_000)
        assert rows_of(page).count() == 0


def test_the_page_is_for_this_machine_alone(address):
    assert urllib.request.urlopen(address, timeout=10).status == 200
    port = int(address.rpartition(":")[2])
    with socket.socket() as other, pytest.raises(OSError):
        other.settimeout(2)
        other.connect((socket.gethostbyname(socket.gethostname()) or "0.0.0.0", port))
        if other.getpeername()[0].startswith("127."):
            raise OSError("this machine's name is its loopback address")


def test_a_missing_gradio_is_said(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match="pip install 'groupdetr_d2.serve.'"):
        page_module.import_gradio()
