"""The Space's app in headless Chromium at phone width: upload a clip, type a question, see moments."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from modeling_svitt_ego.hub.space import write_space
from tests.helpers.tiny_data import write_video
from tests.helpers.tiny_folder import save_tiny_folder

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def app(tmp_path):
    """The address of the running app, which must not need the package."""
    pytest.importorskip("gradio")
    model = save_tiny_folder(tmp_path / "model", text={"max_position_embeddings": 32})
    folder = write_space(str(model), tmp_path / "space")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"GRADIO_SERVER_PORT": str(port), "GRADIO_SERVER_NAME": "127.0.0.1"}
    environment |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    with open(tmp_path / "app.log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    address = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(300):
            assert process.poll() is None, (tmp_path / "app.log").read_text()[-3000:]
            try:
                urllib.request.urlopen(address).read()
                break
            except OSError:
                time.sleep(1)
        yield address
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_visitor_finds_moments_on_a_phone(app, tmp_path):
    """Catches an app that starts and does nothing, an error in the console, and a page wider than a phone."""
    playwright = pytest.importorskip("playwright.sync_api")
    write_video(tmp_path / "clip.mp4", 40, size=(96, 128))
    errors = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.set_default_timeout(600_000)
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(app)
        page.set_input_files("#video input[type=file]", str(tmp_path / "clip.mp4"))
        page.wait_for_selector("#video video")
        page.fill("#query textarea, #query input", "#C C picks up the cup")
        page.click("#find")
        page.wait_for_function(
            "['#moments tbody tr', '#pictures img'].every((found) => document.querySelectorAll(found).length > 0)"
        )
        assert "0:01.0" in page.inner_text("#moments")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        browser.close()
    assert not errors
