"""The demo in a real browser, as a visitor uses it: `pytest -m slow tests/spaces`."""

from __future__ import annotations

import gc
import json
import shutil
import time
import warnings

import numpy as np
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
# Length, loudest sample and share of silence of the file of the piece.
DECODE = """
const done = arguments[arguments.length - 1];
(async () => {
  const link = [...document.querySelectorAll("a")].find(a => a.href.endsWith("piece.wav") && a.offsetParent);
  const bytes = await (await fetch(link.href)).arrayBuffer();
  const sound = await new AudioContext().decodeAudioData(bytes);
  const samples = sound.getChannelData(0);
  const quiet = samples.reduce((count, x) => count + (Math.abs(x) < 1e-4 ? 1 : 0), 0) / samples.length;
  done([sound.duration, samples.reduce((peak, x) => Math.max(peak, Math.abs(x)), 0), quiet]);
})().catch(error => done(null));
"""
LIVE = """
return [...document.querySelectorAll("audio")].filter(a => a.src.startsWith("blob:") && a.currentTime > 0.3).length
"""
# Of every player that plays: whether it is shown.
PLAYING = """
return [...document.querySelectorAll("audio")].filter(a => !a.paused && a.currentTime > 0.1).map(a => !!a.offsetParent)
"""
# Of every picture that is shown: the share of pixels that are neither paper, ink nor grey.
COLOURED = """
return [...document.querySelectorAll(".picture img")].filter(i => i.offsetParent && i.naturalWidth > 100).map(image => {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
  let coloured = 0;
  for (let k = 0; k < data.length; k += 4)
    coloured += Math.max(data[k], data[k+1], data[k+2]) - Math.min(data[k], data[k+1], data[k+2]) > 20 ? 1 : 0;
  return coloured / (canvas.width * canvas.height);
});
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
        gc.collect()  # event loops and sockets that Gradio's server leaves open would fail the session at its end


@pytest.fixture
def browser(tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install '.[test]'")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1280,1000"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    driver.set_script_timeout(60)
    yield driver
    driver.quit()


def wait_for(condition, what: str, seconds: float = 240):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = condition()
        if found:
            return found
        time.sleep(0.3)
    raise AssertionError(f"waited {seconds:.0f} s for {what}")


def shown(browser, selector: str, text: str = "") -> list:
    found = browser.find_elements("css selector", selector)
    return [element for element in found if element.is_displayed() and text in element.text]


def press(browser, name: str) -> None:
    wait_for(lambda: shown(browser, f"#{name}"), f"the button {name}")[0].click()


def open_expand_tab(browser, address: str) -> None:
    browser.get(address)
    wait_for(lambda: shown(browser, "button[role=tab]", "Expand"), "the tabs")[0].click()


def upload(browser, path) -> None:
    wait_for(lambda: browser.find_elements("css selector", "#recording input[type=file]"), "the upload")[0].send_keys(
        str(path)
    )


def text_of(browser) -> str:
    return browser.find_element("tag name", "body").text


def severe(browser) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def outside_requests(browser, address: str) -> list[str]:
    """What the page asked of anybody but the demo itself; the browser's own start page does not count."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    urls = [request["request"]["url"] for request in requests]
    assert any(url.startswith(address) for url in urls)
    return [url for url in urls if not url.startswith((address, "data:", "blob:", "chrome:", "chrome-untrusted:"))]


def test_a_visitor_generates_and_hears_music(address, browser):
    browser.get(address)
    wait_for(lambda: shown(browser, "#generate"), "the page")
    wait_for(lambda: browser.execute_script(COLOURED) == [0, 0], "two empty figures")
    shown(browser, "button", "10 s, seed 1")[0].click()
    wait_for(lambda: shown(browser, "input[type=number]")[0].get_attribute("value") == "10", "the example's length")
    press(browser, "generate")
    if shutil.which("ffmpeg"):
        wait_for(lambda: browser.execute_script(LIVE), "the live player to play")
    wait_for(lambda: "10.0 s of music in" in text_of(browser), "the whole piece")
    assert "Seed 1." in text_of(browser)
    duration, peak, quiet = wait_for(lambda: browser.execute_async_script(DECODE), "the file of the whole piece")
    assert abs(duration - 10) < 0.1 and peak > 0.01 and quiet < 0.5
    idea, mel = browser.execute_script(COLOURED)
    assert idea > 0.3 and mel > 0.3
    assert severe(browser) == []
    assert outside_requests(browser, address) == []


def test_stop_ends_a_piece(address, browser):
    browser.get(address)
    wait_for(lambda: shown(browser, "button", "60 s, seed 42"), "the examples")[0].click()
    wait_for(lambda: shown(browser, "input[type=number]")[0].get_attribute("value") == "60", "the example's length")
    press(browser, "generate")
    wait_for(lambda: "s are made ..." in text_of(browser), "the first seconds")
    press(browser, "stop")
    wait_for(lambda: "Stopped after" in text_of(browser), "the end")
    assert browser.execute_script("return [...document.querySelectorAll('audio')].every(a => a.paused)")
    duration, peak, _ = wait_for(lambda: browser.execute_async_script(DECODE), "the file of what was made")
    assert 0.5 < duration < 60 and peak > 0.01
    press(browser, "generate")  # the place is free again
    wait_for(lambda: "Drawing an idea" in text_of(browser) or "Expanding the idea" in text_of(browser), "a new piece")
    press(browser, "stop")


def test_tabs_do_not_play_together(address, browser, tmp_path):
    if not shutil.which("ffmpeg"):
        pytest.skip("needs ffmpeg: apt-get install ffmpeg")
    browser.get(address)
    wait_for(lambda: shown(browser, "button", "60 s, seed 42"), "the examples")[0].click()
    wait_for(lambda: shown(browser, "input[type=number]")[0].get_attribute("value") == "60", "the example's length")
    press(browser, "generate")
    wait_for(lambda: browser.execute_script(PLAYING) == [True], "the player of the first tab")
    shown(browser, "button[role=tab]", "Expand")[0].click()
    wait_for(lambda: browser.execute_script(PLAYING) == [], "the first tab to fall silent")
    until = time.monotonic() + 3
    while time.monotonic() < until:  # further seconds of the piece arrive and are not heard
        assert browser.execute_script(PLAYING) == []
        time.sleep(0.3)
    soundfile.write(tmp_path / "tone.wav", tone(6.0), RATE)
    upload(browser, tmp_path / "tone.wav")
    wait_for(lambda: "0:06" in text_of(browser), "the uploaded recording")
    press(browser, "expand")
    wait_for(lambda: browser.execute_script(PLAYING) == [True], "the player of the second tab, alone")
    shown(browser, "button[role=tab]", "Generate")[0].click()
    wait_for(lambda: browser.execute_script(PLAYING) == [], "the second tab to fall silent")
    wait_for(lambda: "Stopped after" in text_of(browser), "the first tab's piece to have ended")


def test_a_visitor_expands_a_recording_on_a_phone(address, browser, tmp_path):
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    open_expand_tab(browser, address)
    press(browser, "expand")
    wait_for(lambda: "Upload or record something first." in text_of(browser), "the error")
    soundfile.write(tmp_path / "tone.wav", tone(3.0), RATE)
    upload(browser, tmp_path / "tone.wav")
    wait_for(lambda: "0:03" in text_of(browser), "the uploaded recording")
    browser.execute_script("document.querySelectorAll('.toast-close').forEach(button => button.click())")
    press(browser, "expand")
    wait_for(lambda: "From the idea of 3.0 s of tone.wav" in text_of(browser), "the expansion")
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    duration, peak, _ = wait_for(lambda: browser.execute_async_script(DECODE), "the file of the whole piece")
    assert abs(duration - 3) < 0.1 and peak > 0.01
    assert all(share > 0.2 for share in browser.execute_script(COLOURED))
    assert severe(browser) == []
    assert outside_requests(browser, address) == []


def test_a_recording_that_is_too_big_is_refused_and_another_one_works(address, browser, tmp_path):
    soundfile.write(tmp_path / "big.wav", np.zeros(11_000_000, dtype=np.float32), RATE)
    soundfile.write(tmp_path / "small.wav", tone(2.0), RATE)
    open_expand_tab(browser, address)
    upload(browser, tmp_path / "big.wav")
    wait_for(lambda: 'exceed the maximum allowed size of 20.0 Mb: "big.wav"' in text_of(browser), "the error")
    open_expand_tab(browser, address)
    upload(browser, tmp_path / "small.wav")
    wait_for(lambda: "0:02" in text_of(browser), "the small recording")
    assert outside_requests(browser, address) == []
