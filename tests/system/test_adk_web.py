"""`adk web` in a real browser: the conversation and the state outlive the server.

Not part of `make test`, as it needs Chromium and its driver; `make test-system` brings them.
With UPDATE_SCREENSHOT=1 in the environment it takes the picture in docs/ anew. The browser may then
fetch the fonts of ADK's page from the network; otherwise it may reach nothing but the server.
"""

from __future__ import annotations

import os
import shutil
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from sqlite3 import connect
from typing import TypeVar

import pytest
from selenium.common.exceptions import (
    NoSuchElementException,
    StaleElementReferenceException,
    TimeoutException,
)
from selenium.webdriver import Chrome, ChromeOptions, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from tests.adk_programs import ROOT, Workplace, free_port, workplace

WAIT_SECONDS = 60
SCREENSHOT = ROOT / "docs" / "adk_web.png"
UPDATE_SCREENSHOT = os.environ.get("UPDATE_SCREENSHOT") == "1"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,1000",
]
NOTHING_BUT_THE_SERVER = "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"

# What is typed, and what the answer begins with.
CHAT = [
    ("Load penguins.csv", "penguins.csv has 344 rows and 8 columns"),
    ("Summarise it", "By species: 152 Adelie, 124 Gentoo, 68 Chinstrap."),
    ("Train a model of the species, and evaluate it", "I trained a gaussian naive bayes model"),
]
LATER = ("What was the last thing you did?", "This is the last thing I did. It is right on")
# Keys of the session, its user and its app, and one value deep inside.
STATE = {
    "dataset:",
    "rows: 344",
    "model:",
    "user:models_trained: 1",
    "app:best_accuracy: 0.9534883720930233",
}

T = TypeVar("T")


class Page:
    """ADK's page in the browser, in the words of somebody who uses it."""

    def __init__(self, browser: Chrome) -> None:
        self.browser = browser
        # The page draws its elements anew all the time.
        ignored = [NoSuchElementException, StaleElementReferenceException]
        self.waiting = WebDriverWait(browser, WAIT_SECONDS, 0.1, ignored)

    def wait(self, condition: Callable[[], T | None], what: str) -> T:
        """Tries until there is something; a failure says what was waited for and what was there."""
        try:
            return self.waiting.until(lambda _: condition())  # type: ignore[return-value]
        except TimeoutException as error:
            shown = self.browser.find_element(By.TAG_NAME, "body").text
            raise AssertionError(f"{what} did not appear in:\n{shown}") from error

    def find(self, css: str, text: str = "") -> WebElement:
        """Waits for an element that can be seen and has the text in it."""

        def look() -> WebElement | None:
            elements = self.browser.find_elements(By.CSS_SELECTOR, css)
            return next((e for e in elements if e.is_displayed() and text in e.text), None)

        return self.wait(look, f"{css} {text!r}")

    def choose_agent(self, name: str) -> None:
        self.find("button[mattooltip='Select an app']").click()
        self.find("button.app-selector-item", name).click()
        self.wait(
            lambda: not self.browser.find_elements(By.CSS_SELECTOR, "button.app-selector-item"),
            "the page without the list of agents",
        )

    def attach(self, path: Path) -> None:
        self.browser.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(str(path))
        self.find(".chat-input", path.name)

    def say(self, text: str, answer: str) -> None:
        """Sends a message and waits for the answer, which is the last thing in the turn."""
        box = self.find("textarea.chat-input-box")
        # The page may leave there what was sent before, or put it back.
        box.send_keys(Keys.CONTROL + "a")
        box.send_keys(Keys.BACKSPACE)
        box.send_keys(text)
        box.send_keys(Keys.ENTER)
        self.find("app-event-row.user", text)
        self.find("app-event-row:last-of-type:not(.user)", answer)

    def conversation(self) -> list[str]:
        """The text of each row, as it is at one moment."""
        return self.texts(".chat-messages app-event-row")

    def attachment(self) -> str:
        """The attached file, in a URL that has it all."""
        return self.find(".chat-messages .attachment a").get_attribute("href") or ""

    def state(self) -> list[str]:
        """The keys and values in the tab with the session's state, such as 'rows: 344'."""
        self.find("[role=tab]", "State").click()
        self.find("app-state-tab", "dataset")
        return self.texts("app-state-tab .segment-header")

    def texts(self, css: str) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)"
        return [" ".join(text.split()) for text in self.browser.execute_script(script, css)]


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    place = workplace(tmp_path)
    # Or the page begins with a question about it.
    place.adk("telemetry", "disable")
    return place


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    # The driver is reached over HTTP, which a proxy in between would not help.
    monkeypatch.setenv("no_proxy", "localhost,127.0.0.1")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert chromium, "there is no chromium: make test-system installs it"
    assert driver, "there is no chromedriver: make test-system installs it"
    options = ChromeOptions()
    options.binary_location = chromium
    for flag in [*FLAGS, f"--user-data-dir={tmp_path / 'browser'}"]:
        options.add_argument(flag)
    if not UPDATE_SCREENSHOT:
        options.add_argument(NOTHING_BUT_THE_SERVER)
    browser = Chrome(options, Service(driver))
    try:
        yield Page(browser)
    finally:
        browser.quit()


def test_a_conversation_outlives_the_server(place: Workplace, page: Page) -> None:
    port = free_port()
    data = place.agent / "data" / "penguins.csv"
    with place.serving("web", port) as adk:
        page.browser.get(str(adk.base_url))
        page.choose_agent("data_science")
        page.attach(data)
        for text, answer in CHAT:
            page.say(text, answer)
        conversation, attachment, state = page.conversation(), page.attachment(), page.state()
    assert len(conversation) == 14
    assert b64decode(attachment.removeprefix("data:text/csv;base64,")) == data.read_bytes()
    assert set(state) >= STATE
    address = page.browser.current_url

    with place.serving("web", port):
        page.browser.refresh()
        page.find("app-event-row:last-of-type", CHAT[-1][1])
        assert page.browser.current_url == address
        assert page.conversation() == conversation
        assert page.attachment() == attachment
        assert sorted(page.state()) == sorted(state)
        page.say(*LATER)
        assert page.conversation()[:-2] == conversation
        if UPDATE_SCREENSHOT:
            page.browser.execute_async_script("document.fonts.ready.then(() => arguments[0]())")
            SCREENSHOT.write_bytes(page.browser.get_screenshot_as_png())

    with closing(connect(place.database)) as database:
        ((sessions,),) = database.execute("SELECT count(*) FROM adk_sessions")
        authors = [author for (author,) in database.execute("SELECT author FROM adk_events")]
    assert sessions == 1
    assert authors.count("user") == len(CHAT) + 1
