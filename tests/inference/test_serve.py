"""The web page, in a headless browser."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import cv2
import numpy as np
import pytest

from groupdetr_d2 import Predictor
from groupdetr_d2.data.image_file import ImageReadError
from groupdetr_d2.errors import UserError
from groupdetr_d2.inference import page as page_module
from tests import ROOT
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
        assert pictures.count(90) == 1

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


def status_of(address, path="/", headers=None, data=None):
    request = urllib.request.Request(address + path, headers=headers or {}, data=data)
    try:
        return urllib.request.urlopen(request, timeout=10).status
    except urllib.error.HTTPError as error:
        return error.code


UPLOAD = (
    b'--X\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n'
    b"Content-Type: image/png\r\n\r\nabc\r\n--X--\r\n"
)


def test_pages_of_other_sites_are_refused(address):
    """Their origin is another one; a name that points here (DNS rebinding) is another host."""
    form = {"Content-Type": "multipart/form-data; boundary=X"}
    own, other = {"Origin": address}, {"Origin": "https://evil.example"}
    assert status_of(address) == status_of(address, headers=own) == 200
    assert status_of(address, headers={"Host": "evil.example"}) == 403
    assert status_of(address, "/gradio_api/upload", form | other, UPLOAD) == 403
    assert status_of(address, "/gradio_api/upload", form | own, UPLOAD) == 200


def test_uploads_are_removed_at_the_end(tmp_path):
    """Ended by SIGTERM, as by a service manager."""
    weights = make_checkpoint(tmp_path, threshold=0.01)
    with socket.socket() as free:
        free.bind((page_module.HOST, 0))
        port = free.getsockname()[1]
    command = ["serve", "--weights", str(weights), "--port", str(port)]
    (tmp_path / "temporary").mkdir()
    running = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "groupdetr_d2", *command],
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
        cwd=ROOT,
    )
    address = f"http://{page_module.HOST}:{port}"
    form = {"Content-Type": "multipart/form-data; boundary=X"}
    wait_for(lambda: status_of(address) == 200)
    assert status_of(address, "/gradio_api/upload", form, UPLOAD) == 200
    assert any(p.is_file() for p in (tmp_path / "temporary").rglob("*"))
    running.send_signal(signal.SIGTERM)
    assert running.wait(30) == 0
    assert not [p for p in (tmp_path / "temporary").rglob("*") if p.is_file()]


def wait_for(is_true, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if is_true():
                return
        time.sleep(0.3)
    raise TimeoutError


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no image", "no image that can be read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image that can be read"),
        ("large", "more than 0.02 megapixels"),
    ],
)
def test_what_is_wrong_with_a_picture_is_said(tmp_path, content, message):
    path = tmp_path / "upload.png"
    if content == "large":
        cv2.imwrite(str(path), np.zeros((200, 200, 3), np.uint8))
    else:
        path.write_bytes(content)
    with pytest.raises(ImageReadError, match=message):
        page_module.check_pixels(str(path), 0.02)


def test_the_page_is_for_this_machine_alone(address):
    assert urllib.request.urlopen(address, timeout=10).status == 200
    port = int(address.rpartition(":")[2])
    with socket.socket() as other, pytest.raises(OSError):
        other.settimeout(2)
        other.connect((socket.gethostbyname(socket.gethostname()) or "0.0.0.0", port))
        if other.getpeername()[0].startswith("127."):
            raise OSError("this machine's name is its loopback address")


def test_a_missing_gradio_is_said(monkeypatch):

    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match="pip install 'groupdetr_d2.serve.'"):
        page_module.import_gradio()
