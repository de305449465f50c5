"""The demo in a real browser, as a visitor uses it: `pytest -m slow tests/spaces`."""

from __future__ import annotations

import shutil
import time
import warnings

import pytest
import soundfile
from audio_files import RATE, tone

from melreformer_hf.cli.demo import load_app
from melreformer_hf.pipelines.pipeline_mel_reformer import MelReformerPipeline

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")),
        reason="needs Chromium and its driver: apt-get install chromium chromium-driver",
    ),
]
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
)
# Loudest sample and length of the file behind the download button of the whole piece.
DECODE = """
const done = arguments[arguments.length - 1];
(async () => {
  const link = [...document.querySelectorAll("a[download]")].find(a => a.href.endsWith(".wav") && a.offsetParent);
  const bytes = await (await fetch(link.href)).arrayBuffer();
  const sound = await new AudioContext().decodeAudioData(bytes);
  done([sound.duration, sound.getChannelData(0).reduce((peak, x) => Math.max(peak, Math.abs(x)), 0)]);
})().catch(error => done(String(error)));
"""
LIVE = """
return [...document.querySelectorAll("audio")].filter(a => a.src.startsWith("blob:") && a.currentTime > 0.3).length
"""
PICTURES = """
return [...document.querySelectorAll(".picture img")].filter(i => i.offsetParent && i.naturalWidth > 100).length
"""


@pytest.fixture(scope="module")
def address():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Gradio and its servers
        app = load_app()
        demo = app.build_demo(MelReformerPipeline.from_pretrained("piano-tiny"))
        _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", **app.launch_settings())
        yield url
        demo.close()


@pytest.fixture
def browser(tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install '.[test]'")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1280,1000"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    driver.set_script_timeout(60)
    yield driver
    driver.quit()


def wait_for(condition, what: str, seconds: float = 120):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = condition()
        if found:
            return found
        time.sleep(0.3)
    raise AssertionError(f"waited {seconds:.0f} s for {what}")


def press(browser, name: str) -> None:
    wait_for(lambda: [e for e in browser.find_elements("id", name) if e.is_displayed()], f"the button {name}")[
        0
    ].click()


def text_of(browser) -> str:
    return browser.find_element("tag name", "body").text


def severe(browser) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_a_visitor_generates_and_hears_music(address, browser):
    browser.get(address)
    press(browser, "generate")
    if shutil.which("ffmpeg"):
        wait_for(lambda: browser.execute_script(LIVE), "the live player to play")
    wait_for(lambda: "20.0 s of music in" in text_of(browser), "the whole piece")
    duration, peak = wait_for(lambda: browser.execute_async_script(DECODE), "the file of the whole piece")
    assert abs(duration - 20) < 0.1 and peak > 0.01
    assert browser.execute_script(PICTURES) == 2
    assert severe(browser) == []


def test_a_visitor_expands_a_recording_on_a_phone(address, browser, tmp_path):
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    browser.get(address)
    tabs = wait_for(lambda: browser.find_elements("css selector", "button[role=tab]"), "the tabs")
    next(tab for tab in tabs if tab.is_displayed() and "Expand" in tab.text).click()
    press(browser, "expand")
    wait_for(lambda: "Upload or record something first." in text_of(browser), "the error")
    soundfile.write(tmp_path / "tone.wav", tone(3.0), RATE)
    browser.find_element("css selector", "#recording input[type=file]").send_keys(str(tmp_path / "tone.wav"))
    wait_for(lambda: "0:03" in text_of(browser), "the uploaded recording")
    browser.execute_script("document.querySelectorAll('.toast-close').forEach(button => button.click())")
    press(browser, "expand")
    wait_for(lambda: "From the idea of 3.0 s of tone.wav" in text_of(browser), "the expansion")
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    assert browser.execute_script(PICTURES) == 2
    assert severe(browser) == []
