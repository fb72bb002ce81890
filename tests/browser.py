"""The page in headless Chromium: every control used, nothing logged, nothing asked of elsewhere.

Run by `make demo-test`, which needs Debian's packages chromium and chromium-driver; it writes the
screenshots of docs/demo.md anew. It is not part of `make test`.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from test_trajectory import model

ROOT = Path(__file__).parents[1]
SHOTS = os.environ.get("SHOTS", "")
"""The folder of screenshots, from the repository's; none are taken where it is empty."""
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--hide-scrollbars", "--force-color-profile=srgb"),
)
PATIENCE = 120
"""Seconds for one answer of the page, on a machine that is busy."""
REST = 0.4
"""Seconds after which a control that was moved has asked."""
STILL = 2
"""Such times without a request, after which the page is at rest."""
MANY = 2**13
"""Colours above which a screenshot is that of a photograph, and is reduced to 256."""
TABS = ("corrupt", "sample", "restore")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The real command, with a small model of classes beside the bundled ones."""
    home = tmp_path_factory.mktemp("demo")
    model(conditional=True).save_pretrained(home / "pets")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "sfumato", "demo", "pets", "--port", str(port)]
    with subprocess.Popen(
        command, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None and running.stderr is not None
        try:
            said = running.stdout.readline()
            assert said.startswith(f"Sfumato is at http://127.0.0.1:{port}"), running.stderr.read()
            yield f"http://127.0.0.1:{port}"
        finally:
            running.send_signal(signal.SIGINT)
        assert running.wait(20) in (0, 130)
        assert "Traceback" not in running.stderr.read()


@pytest.fixture(scope="module")
def browser(address, tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "/usr/bin/chromium"
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver") or "/usr/bin/chromedriver")
    found = webdriver.Chrome(options=options, service=service)
    yield found
    found.quit()


class Page:
    """What a user sees and does."""

    def __init__(self, browser: webdriver.Chrome, address: str) -> None:
        self.browser = browser
        self.address = address

    def open(self, tab: str, width: int = 1400, height: int = 880, theme: str = "light") -> None:
        self.size(width, height)
        scheme = [{"name": "prefers-color-scheme", "value": theme}]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        self.browser.get("about:blank")
        self.browser.get(f"{self.address}/#{tab}")
        self.settle()

    def size(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def settle(self) -> None:
        """Wait until the page has asked what it asks and heard the answers, for a while.

        An answer, such as what a model can do, may lead to the next request.
        """
        root = self.browser.find_element(By.TAG_NAME, "html")
        still = 0
        while still < STILL:
            time.sleep(REST)
            busy = root.get_attribute("aria-busy") != "false"
            still = 0 if busy else still + 1
            WebDriverWait(self.browser, PATIENCE).until(
                lambda _: root.get_attribute("aria-busy") == "false"
            )

    def all(self, selector: str, within: str = "section:not([hidden])") -> list:
        found = self.browser.find_elements(By.CSS_SELECTOR, f"{within} {selector}")
        return [element for element in found if element.is_displayed()]

    def one(self, selector: str):
        (found,) = self.all(selector)
        return found

    def named(self, label: str, kind: str = "*"):
        """The control with this label."""
        path = f"//section[not(@hidden)]//label[normalize-space()='{label}']"
        (found,) = self.browser.find_elements(By.XPATH, path)
        return self.browser.find_element(By.ID, found.get_attribute("for"))

    def button(self, text: str):
        path = f"//section[not(@hidden)]//button[normalize-space()='{text}']"
        (found,) = self.browser.find_elements(By.XPATH, path)
        return found

    def move(self, label: str, share: float) -> None:
        """A slider to a share of its length, as a hand does."""
        self.browser.execute_script(
            "arguments[0].value = arguments[1] * arguments[0].max;"
            "arguments[0].dispatchEvent(new Event('input', {bubbles: true}))",
            self.named(label),
            share,
        )
        self.settle()

    def choose(self, label: str, value: str) -> None:
        Select(self.named(label)).select_by_value(value)
        self.settle()

    def error(self) -> str:
        return " ".join(found.text for found in self.all(".error:not(.note)"))

    def until(self, told: Callable[[], bool]) -> None:
        """Wait for what is `told` after several requests, between which the page is at rest."""
        WebDriverWait(self.browser, PATIENCE).until(lambda _: told())

    def drawn(self, selector: str) -> bytes:
        """What a canvas shows."""
        found = self.one(selector)
        return base64.b64decode(
            self.browser.execute_script("return arguments[0].toDataURL().split(',')[1]", found)
        )

    def upload(self, path: Path) -> None:
        (chooser,) = self.browser.find_elements(
            By.CSS_SELECTOR, "section:not([hidden]) input[type=file]"
        )
        chooser.send_keys(str(path))
        self.settle()

    def shoot(self, name: str) -> None:
        self.browser.execute_script("document.activeElement.blur()")
        data = base64.b64decode(self.browser.get_screenshot_as_base64())
        picture = Image.open(io.BytesIO(data)).convert("RGB")
        if len(picture.getcolors(2**24) or ()) > MANY:
            picture = picture.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        picture.save(ROOT / SHOTS / f"{name}.png", optimize=True)


@pytest.fixture
def page(browser, address):
    """The page; after a test, its log must be empty and all requests have gone to its server."""
    found = Page(browser, address)
    browser.get_log("browser"), browser.get_log("performance")
    yield found
    logged = [entry["message"] for entry in browser.get_log("browser")]
    assert logged == []
    told = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {
        event["params"]["request"]["url"]
        for event in told
        if event["method"] == "Network.requestWillBeSent"
    }
    local = (address, "data:", "chrome://")  # the browser has pages of its own
    assert address + "/main.js" in asked and not [url for url in asked if not url.startswith(local)]


@pytest.fixture
def photo(tmp_path) -> Path:
    values = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(values).save(tmp_path / "mine.png")
    return tmp_path / "mine.png"


def test_the_time_slider_corrupts_at_once(page):
    page.open("corrupt")
    clean = page.drawn(".picture canvas")
    page.move("Time t", 0.9)
    assert page.drawn(".picture canvas") != clean
    page.move("Time t", 0.0)
    first = page.drawn(".strip li:first-child canvas")
    assert Image.open(io.BytesIO(page.drawn(".picture canvas"))).tobytes() == (
        Image.open(io.BytesIO(first)).tobytes()
    )
    page.all(".strip button")[-1].click()
    page.settle()
    assert "t = 1," in page.one(".picture figcaption").text
    assert page.error() == ""


def test_every_method_shows_its_levels(page):
    page.open("corrupt")
    names = [option.get_attribute("value") for option in Select(page.named("Method")).options]
    for name in names:
        page.choose("Method", name)
        assert page.error() == "" and page.one("h1").text and page.one(".formula").text
        if name == "soft":
            assert any(power.text == "min(t / 0.25, 1)" for power in page.all(".formula sup"))
        assert page.all(".panel .bare input, .panel .bare select")


@pytest.mark.parametrize("tab", TABS)
def test_every_control_is_used_once(page, tab):
    """Each slider by a key, each list by its second choice and back, the rest by a click."""
    page.open(tab)
    if tab != "corrupt":
        page.move("Steps", 0.2)
    count = len(page.all(".panel input, .panel select, .panel button"))
    used = 0
    for i in range(count):
        # Looked up anew: a choice of another model or operator renews the controls after it.
        found = page.all(".panel input, .panel select, .panel button")
        if i >= len(found) or not found[i].is_enabled():
            continue
        use(found[i])
        used += 1
        page.settle()
        assert page.error() == "" or page.error().endswith("."), page.error()
    assert used >= 8
    assert page.all("canvas")


def use(control) -> None:
    kind = control.get_attribute("type")
    if control.tag_name == "select":
        choices = Select(control)
        first = choices.options.index(choices.first_selected_option)
        choices.select_by_index((first + 1) % len(choices.options))
        time.sleep(REST)
        choices.select_by_index(first)
    elif kind == "range":
        control.send_keys(Keys.ARROW_LEFT)
    elif kind == "number":
        control.send_keys(Keys.ARROW_UP, Keys.TAB)
    elif "Open" not in control.text:
        control.click()


def test_an_upload_is_corrupted_and_restored(page, photo):
    page.open("corrupt")
    page.upload(photo)
    assert "60 × 40 pixels" in page.one(".picture figcaption").text
    page.open("restore")
    page.move("Steps", 0.2)
    before = page.drawn(".row .picture:nth-child(1) canvas")
    page.upload(photo)
    assert "mine.png" in page.one(".hint").text and page.error() == ""
    assert page.drawn(".row .picture:nth-child(1) canvas") != before
    assert len(page.all(".row .picture")) == 4
    page.browser.find_element(By.CSS_SELECTOR, "section:not([hidden]) .check input").click()
    page.settle()
    assert len(page.all(".row .picture")) == 3


def test_samples_are_watched_and_gone_back_to(page):
    page.open("sample")
    page.move("Steps", 0.5)
    end = page.drawn(".trio .picture:nth-child(1) canvas")
    assert page.drawn(".trio .picture:nth-child(2) canvas") == end
    page.all(".strip button")[0].click()
    noise = page.drawn(".trio .picture:nth-child(1) canvas")
    assert noise != end != page.drawn(".trio .picture:nth-child(2) canvas") != noise
    page.move("Step", 1.0)
    assert page.drawn(".trio .picture:nth-child(1) canvas") == end


def test_classes_and_guidance_change_the_samples(page):
    page.open("sample")
    assert Select(page.named("Model")).first_selected_option.text == "pets"
    page.move("Steps", 0.2)
    canvas = ".trio .picture:nth-child(2) canvas"
    page.all(".strip button")[0].click()
    seen = [page.drawn(canvas)]
    page.choose("Class", "2")
    page.all(".strip button")[0].click()
    seen.append(page.drawn(canvas))
    page.move("Guidance", 0.5)
    page.all(".strip button")[0].click()
    seen.append(page.drawn(canvas))
    assert len({*seen}) == 3


def test_a_slider_stops_a_long_run_and_escape_too(page):
    page.open("sample")
    page.choose("Model", "fashion-soft")
    script = "arguments[0].value = arguments[0].max; arguments[0].dispatchEvent(new Event('input'))"
    page.browser.execute_script(script, page.named("Steps"))
    WebDriverWait(page.browser, PATIENCE).until(lambda _: page.all(".progress.running"))
    page.move("Steps", 0.2)
    assert "4 of 4" in page.one(".steps output").text or not page.all(".progress.running")
    page.browser.execute_script(script, page.named("Steps"))
    WebDriverWait(page.browser, PATIENCE).until(lambda _: page.all(".progress.running"))
    page.browser.find_element(By.TAG_NAME, "body").send_keys(Keys.ESCAPE)
    page.settle()
    assert not page.all(".progress.running")


def test_the_keyboard_alone_is_enough(page):
    page.open("corrupt")
    tab = page.browser.find_element(By.ID, "tab-corrupt")
    tab.send_keys(Keys.ARROW_RIGHT)
    page.settle()
    assert page.browser.switch_to.active_element.get_attribute("id") == "tab-sample"
    assert page.one("h1").text
    page.browser.switch_to.active_element.send_keys(Keys.ARROW_LEFT)
    page.settle()
    slider = page.named("Time t")
    before = slider.get_attribute("aria-valuetext")
    slider.send_keys(Keys.ARROW_RIGHT)
    page.settle()
    assert slider.get_attribute("aria-valuetext") != before
    for control in page.all("input, select, button, canvas:not([aria-hidden])"):
        assert control.accessible_name, control.get_attribute("outerHTML")


def test_the_theme_is_chosen_and_kept(page):
    page.open("corrupt", theme="light")
    light = page.browser.find_element(By.TAG_NAME, "html").value_of_css_property("background-color")
    page.browser.find_element(By.ID, "theme").click()
    root = page.browser.find_element(By.TAG_NAME, "html")
    dark = root.value_of_css_property("background-color")
    assert dark != light
    page.open("corrupt", theme="light")
    root = page.browser.find_element(By.TAG_NAME, "html")
    assert root.value_of_css_property("background-color") == dark
    page.browser.execute_script("localStorage.clear()")


@pytest.mark.parametrize("tab", TABS)
def test_nothing_is_wider_than_the_window(page, tab):
    page.open(tab)
    for width in (360, 700, 1000, 1900):
        page.size(width, 880)
        reach = page.browser.execute_script("return document.documentElement.scrollWidth")
        assert reach <= width


def test_a_refusal_is_one_sentence_on_the_page(page):
    page.open("restore")
    page.move("Steps", 0.2)
    page.choose("Model", "fashion-soft-4")
    page.until(lambda: page.error().startswith("restorations need estimates of the mean"))
    page.choose("Model", "fashion-soft")
    page.until(lambda: page.error() == "")


@pytest.mark.skipif(not SHOTS, reason="screenshots are taken where SHOTS names their folder")
def test_screenshots(page):
    page.open("corrupt")
    page.shoot("demo")
    page.open("sample")
    page.choose("Model", "fashion-soft")
    page.all(".strip button")[5].click()
    page.shoot("demo-sample")
    page.open("restore", height=1000, theme="dark")
    page.choose("Model", "fashion-soft")
    page.all(".strip button")[5].click()
    page.shoot("demo-restore")
