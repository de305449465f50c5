"""The demo in a real browser, as a visitor uses it: `pytest -m slow tests/spaces`."""

from __future__ import annotations

import json
import shutil
import time

import numpy as np
import pytest
import soundfile
from audio_files import RATE, tone

from melreformer_hf.pipelines.pipeline_mel_reformer import MelReformerPipeline
from melreformer_hf.pipelines.pipeline_midi_generation import MidiGenerationPipeline

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
# What a player holds, if that is a file.
HELD = """
const audio = document.querySelector("#player_generate audio");
return audio && audio.src.endsWith("piece.wav") && audio.duration > 0
  ? {duration: audio.duration, time: audio.currentTime, paused: audio.paused} : null;
"""
# Where the first player that plays is, early on.
PLAYING_AT = """
const audio = [...document.querySelectorAll("audio")].find(a => !a.paused && a.currentTime > 0.05);
return audio ? audio.currentTime : null;
"""
# What a roll says of itself, and where its red line is: as a share of its width.
ROLL = """
const roll = document.querySelector(`#${arguments[0]} [data-notes], #${arguments[0]}[data-notes]`);
if (!roll) return null;
const canvas = roll.querySelector(".view"), audio = document.querySelector(`#${arguments[0].replace("roll", "player")} audio`);
const pixels = canvas.getContext("2d").getImageData(0, 3, canvas.width, 1).data;
let cursor = -1;
for (let x = 0; x < canvas.width && cursor < 0; x++)
  if (pixels[4 * x] === 225 && pixels[4 * x + 1] === 29 && pixels[4 * x + 2] === 72) cursor = x / canvas.width;
const edge = canvas.getContext("2d").getImageData(canvas.width - 4, 3, 1, 1).data;
return {notes: +roll.dataset.notes, time: +roll.dataset.time, cursor, player: audio ? audio.currentTime : 0,
  legend: roll.querySelector(".legend").innerText, made: +(edge[0] !== 228 || edge[2] !== 238)};
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
def address(app, connected):
    pipelines = [kind.from_pretrained("piano-tiny") for kind in (MidiGenerationPipeline, MelReformerPipeline)]
    return connected(app.build_demo(*pipelines)).src


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
    click(browser, f"#{name}")


def click(browser, selector: str, text: str = "") -> None:
    """On what is shown; the page may draw it anew between looking and clicking."""
    from selenium.common.exceptions import StaleElementReferenceException

    def clicked() -> bool:
        try:
            for element in shown(browser, selector, text)[:1]:
                element.click()
                return True
        except StaleElementReferenceException:
            pass
        return False

    wait_for(clicked, f"{selector} {text}")


def open_expand_tab(browser, address: str) -> None:
    browser.get(address)
    click(browser, "button[role=tab]", "Expand")


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


def choose_example(browser, text: str, seconds: str) -> None:
    click(browser, "button", text)
    wait_for(lambda: shown(browser, "input[type=number]")[0].get_attribute("value") == seconds, "the example's length")


def test_a_visitor_generates_from_an_idea_and_hears_music(address, browser):
    browser.get(address)
    click(browser, "#source input[value=idea]")
    wait_for(lambda: "Denoising steps" in text_of(browser), "the settings of ideas")
    choose_example(browser, "10 s, seed 1", "10")
    press(browser, "generate")
    wait_for(lambda: len(browser.execute_script(COLOURED)) == 2, "two figures")
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


def test_the_roll_moves_while_it_plays(address, browser):
    browser.get(address)
    wait_for(lambda: browser.execute_script(ROLL, "roll_generate"), "the empty roll")
    assert browser.execute_script(COLOURED) == []  # the pictures of ideas are not in the way
    choose_example(browser, "20 s, seed 7", "20")
    press(browser, "generate")
    wait_for(lambda: browser.execute_script(ROLL, "roll_generate")["notes"] > 3, "the first notes")
    if not shutil.which("ffmpeg"):
        wait_for(lambda: "20.0 s of music in" in text_of(browser), "the whole piece")
        browser.execute_script("document.querySelector('#player_generate audio').play()")
    seen = []
    wait_for(lambda: browser.execute_script(ROLL, "roll_generate")["cursor"] > 0, "the cursor")
    until = time.monotonic() + 240
    while time.monotonic() < until and not (seen and seen[-1]["time"] > 4):
        seen.append(browser.execute_script(ROLL, "roll_generate"))
        time.sleep(0.4)
    times, cursors = [state["time"] for state in seen], [state["cursor"] for state in seen]
    assert times == sorted(times) and len(set(times)) > 4
    # The red line is where the player is, on the way from the left to the right.
    assert cursors == sorted(cursors) and cursors[-1] - cursors[0] > 0.05
    assert all(abs(state["time"] - state["player"]) < 0.5 for state in seen)
    wait_for(lambda: "20.0 s of music in" in text_of(browser), "the whole piece")
    assert wait_for(lambda: browser.execute_script(ROLL, "roll_generate")["made"] == 1, "all of the roll")
    link = next(
        a for a in browser.find_elements("css selector", "a") if (a.get_attribute("href") or "").endswith(".mid")
    )
    assert link.is_displayed()
    assert severe(browser) == []
    assert outside_requests(browser, address) == []


def test_a_click_on_the_roll_goes_there(address, browser):
    browser.get(address)
    choose_example(browser, "10 s, seed 1", "10")
    press(browser, "generate")
    wait_for(lambda: "10.0 s of music in" in text_of(browser), "the whole piece")
    wait_for(
        lambda: browser.execute_script("return document.querySelector('#player_generate audio').duration >= 9"), "all"
    )
    browser.execute_script("document.querySelector('#player_generate audio').pause()")
    from selenium.webdriver import ActionChains

    roll = shown(browser, "#roll_generate canvas.map")[0]
    quarter = (roll.size["width"] - 46) / 4
    ActionChains(browser).move_to_element_with_offset(roll, int(23 + quarter), 0).click().perform()
    state = wait_for(lambda: browser.execute_script(ROLL, "roll_generate"), "the roll")
    assert state["player"] == pytest.approx(7.5, abs=0.3)


def test_stop_ends_a_piece(address, browser):
    browser.get(address)
    choose_example(browser, "60 s, seed 42", "60")
    press(browser, "generate")
    wait_for(lambda: "s are made ..." in text_of(browser), "the first seconds")
    if shutil.which("ffmpeg"):
        wait_for(lambda: browser.execute_script(PLAYING), "the player to play")
    press(browser, "stop")
    wait_for(lambda: "Stopped after" in text_of(browser), "the end")
    duration, peak, _ = wait_for(lambda: browser.execute_async_script(DECODE), "the file of what was made")
    assert 0.5 < duration < 60 and peak > 0.01
    # The player holds what was made, and waits at its beginning.
    held = wait_for(lambda: browser.execute_script(HELD), "the player's file")
    assert held["duration"] == pytest.approx(duration, abs=0.05)
    time.sleep(2)
    assert browser.execute_script(HELD) == {**held, "time": 0, "paused": True}
    press(browser, "generate")  # the place is free again, and a new piece begins at its beginning
    wait_for(lambda: "s are made ..." in text_of(browser), "a new piece")
    if shutil.which("ffmpeg"):
        first = wait_for(lambda: browser.execute_script(PLAYING_AT), "the player to play")
        assert first < 3
    press(browser, "stop")


def test_tabs_do_not_play_together(address, browser, tmp_path):
    if not shutil.which("ffmpeg"):
        pytest.skip("needs ffmpeg: apt-get install ffmpeg")
    browser.get(address)
    choose_example(browser, "60 s, seed 42", "60")
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


def pick(browser, action: str) -> None:
    click(browser, f"#action input[value={action}]")
    wait_for(lambda: browser.find_elements("css selector", f"#{action}"), "the button of the action")


def test_a_midi_file_is_continued_and_a_recording_written_down(address, browser, tmp_path):
    browser.get(address)
    click(browser, "button[role=tab]", "MIDI")
    press(browser, "continue")
    wait_for(lambda: "Upload a MIDI file first." in text_of(browser), "the error")
    browser.execute_script("document.querySelectorAll('.toast-close').forEach(button => button.click())")
    click(browser, "button", "Ode to Joy")
    wait_for(lambda: "melody.mid: 30 notes" in text_of(browser), "the file's notes")
    assert browser.execute_script(ROLL, "roll_midi")["legend"] == "30 notes"
    press(browser, "continue")
    wait_for(lambda: "new notes" in browser.execute_script(ROLL, "roll_midi")["legend"], "new notes")
    assert "30 given notes" in browser.execute_script(ROLL, "roll_midi")["legend"]
    if shutil.which("ffmpeg"):
        wait_for(lambda: browser.execute_script(ROLL, "roll_midi")["time"] > 1, "the roll to move")
    press(browser, "stop_midi")
    wait_for(lambda: "Stopped after" in text_of(browser), "the end")
    pick(browser, "transcribe")
    soundfile.write(tmp_path / "tone.wav", tone(3.0), RATE)
    field = wait_for(lambda: browser.find_elements("css selector", "#heard input[type=file]"), "the upload")[0]
    field.send_keys(str(tmp_path / "tone.wav"))
    wait_for(lambda: "0:03" in text_of(browser), "the uploaded recording")
    press(browser, "transcribe")
    wait_for(lambda: "of tone.wav" in text_of(browser) or "in tone.wav" in text_of(browser), "the answer")
    pick(browser, "fill")
    assert [field.get_attribute("value") for field in shown(browser, "#gap_begin input, #gap_end input")] == [
        "5",
        "10",
    ]
    press(browser, "fill")
    wait_for(lambda: "5 to 10 s written anew" in text_of(browser), "the filled piece")
    assert severe(browser) == []
    assert outside_requests(browser, address) == []
