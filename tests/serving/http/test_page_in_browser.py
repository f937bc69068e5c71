"""The page in Chromium, with a real recording and a real model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile

from tests.conftest import ROOT, Engines
from tests.support.browser import chromium, until
from tests.support.http_server import served
from whisper_opt import Whisper, render
from whisper_opt.serving.http.server import Server

pytestmark = pytest.mark.slow

JFK = ROOT / "examples" / "jfk.flac"
FAKE_DEVICES = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")


@pytest.fixture(scope="module")
def alone(engines: Engines) -> Whisper:
    return engines.model("tiny.en", precision="int8")


@pytest.fixture(scope="module")
def server(engines: Engines) -> Iterator[Server]:
    path = engines.engine("tiny.en", precision="int8").path
    with served(f"tiny.en={path}") as running:
        yield running


@pytest.fixture
def browser(server: Server, microphone: Path, tmp_path: Path) -> Iterator[Any]:
    """Chromium with the page open."""
    heard = f"--use-file-for-fake-audio-capture={microphone}"
    with chromium(tmp_path / "profile", *FAKE_DEVICES, heard) as opened:
        host, port = server.address
        opened.get(f"http://{host}:{port}/")
        yield opened


@pytest.fixture(scope="module")
def microphone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the microphone of the browser hears, again and again."""
    samples, rate = soundfile.read(JFK)
    path = tmp_path_factory.mktemp("microphone") / "speech.wav"
    soundfile.write(path, samples, rate, "PCM_16")
    return path


def one(browser: Any, selector: str) -> Any:
    return browser.find_element("css selector", selector)


def transcribed(browser: Any) -> None:
    """Upload the recording and wait for the end."""
    until(browser, lambda b: b.find_elements("css selector", "[name=beam_size]"))
    one(browser, "#files").send_keys(str(JFK))
    until(browser, lambda b: one(b, "article > .row").is_displayed())


def downloads(browser: Any) -> dict[str, str]:
    """The text of every file that can be downloaded, by format."""
    script = """
        const done = arguments[0], names = [], blobs = [];
        const [click, make] = [HTMLAnchorElement.prototype.click, URL.createObjectURL];
        HTMLAnchorElement.prototype.click = function () { names.push(this.download); };
        URL.createObjectURL = (blob) => (blobs.push(blob), make.call(URL, blob));
        for (const button of document.querySelectorAll("article > .row button")) button.click();
        [HTMLAnchorElement.prototype.click, URL.createObjectURL] = [click, make];
        Promise.all(blobs.map((blob) => blob.text())).then((texts) =>
          done(Object.fromEntries(texts.map((text, i) => [names[i], text]))));
    """
    found: dict[str, str] = browser.execute_async_script(script)
    return found


def test_words_play_and_files_are_those_of_the_command_line(browser: Any, alone: Whisper) -> None:
    transcribed(browser)
    expected = alone.transcribe(JFK, word_timestamps=True)
    words = browser.find_elements("css selector", ".word")
    assert [word.text for word in words] == expected.text.split()
    times = [word.start for segment in expected for word in segment.words or ()]
    words[5].click()
    playing = "const a = document.querySelector('audio'); return [a.paused, a.currentTime]"
    until(browser, lambda b: b.execute_script(playing)[1] >= times[5])
    paused, now = browser.execute_script(playing)
    assert not paused
    assert times[5] <= now < times[5] + 5
    browser.execute_script("document.querySelector('audio').pause()")
    browser.execute_script(f"document.querySelector('audio').currentTime = {times[7] + 0.01}")
    shown = words[7].text  # after the seek
    until(browser, lambda b: [w.text for w in b.find_elements("css selector", ".now")] == [shown])
    found = downloads(browser)
    for form in ("txt", "srt", "vtt"):
        assert found[f"jfk.{form}"] == render(expected, form)


def test_live_text_of_the_microphone(browser: Any) -> None:
    """Certain text grows, other text is marked; the recording has the text in the end."""
    until(browser, lambda b: b.find_elements("css selector", "[name=beam_size]"))
    one(browser, "#record").click()

    def shown(kind: str) -> str:
        return " ".join(span.text for span in browser.find_elements("css selector", f".{kind}"))

    until(browser, lambda b: shown("partial"))
    until(browser, lambda b: "americans" in shown("certain").lower())
    certain = shown("certain")
    one(browser, "#record").click()
    until(browser, lambda b: b.find_elements("css selector", "article audio"))
    assert not browser.find_elements("css selector", ".live")
    text = one(browser, ".segments").text.lower()
    assert "fellow americans" in text
    assert len(browser.find_elements("css selector", ".word")) >= len(certain.split()) - 1
    assert downloads(browser)
    times = [button.text for button in browser.find_elements("css selector", ".time")]
    assert times[0] == "0:00"
    assert times == sorted(times)


def test_a_recording_that_cannot_begin(browser: Any) -> None:
    """The microphone is released, nothing is left on the page, and the button is as before."""
    until(browser, lambda b: b.find_elements("css selector", "[name=beam_size]"))
    browser.execute_script(
        """
        const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
        navigator.mediaDevices.getUserMedia = async (wanted) => (window.heard = await ask(wanted));
        MediaRecorder.prototype.start = () => { throw new Error("broken"); };
        """
    )
    one(browser, "#record").click()
    until(browser, lambda b: "broken" in one(b, "#status").text)
    states = "return window.heard.getTracks().map((track) => track.readyState)"
    assert browser.execute_script(states) == ["ended"]
    assert one(browser, "#record").get_attribute("aria-pressed") == "false"
    assert not browser.find_elements("css selector", ".live")


def test_a_line_is_edited_with_the_keyboard(browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    transcribed(browser)
    line = one(browser, ".segments li")
    one(line, ".edit").send_keys(Keys.ENTER)
    area = one(line, "textarea")
    area.send_keys(Keys.CONTROL, "a")
    area.send_keys("Other words", Keys.ENTER)
    assert one(line, "p").text == "Other words"
    assert browser.switch_to.active_element.text == "Edit"
    assert downloads(browser)["jfk.txt"].splitlines()[0] == "Other words"
    one(line, ".edit").send_keys(Keys.ENTER)
    one(line, "textarea").send_keys("!", Keys.ESCAPE)
    assert one(line, "p").text == "Other words"


def test_a_file_that_is_no_recording(browser: Any, tmp_path: Path) -> None:
    file = tmp_path / "notes.wav"
    file.write_text("no audio")
    until(browser, lambda b: b.find_elements("css selector", "[name=beam_size]"))
    one(browser, "#files").send_keys(str(file))
    alert = until(
        browser, lambda b: one(b, "[role=alert]").is_displayed() and one(b, "[role=alert]")
    )
    assert "audio" in alert.text
    assert one(browser, "article").find_element("xpath", ".//button[text()='Try again']")
    browser.get_log("browser")  # the failed request
