"""The page at ``/`` in a real browser: a conversation, a stop, an error, a narrow screen, the keyboard alone."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from .browser import BINARY, Browser
from .servers import Server, StartServer, eventually
from .test_lifecycle import SLOW

in_chromium = pytest.mark.skipif(BINARY is None, reason="Chromium is not installed")
ANSWERS = "[...document.querySelectorAll('#log li.assistant')].map(item => item.innerText)"


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    browser = Browser(tmp_path / "profile")
    try:
        browser.resize(1200, 800)
        yield browser
    finally:
        browser.close()


def say(browser: Browser, text: str) -> None:
    browser.value("at('input').focus()")
    browser.type(text)
    browser.press("Enter")


def test_served_without_a_key_and_without_other_hosts(start: StartServer) -> None:
    server = start("--api-key", "k").wait_ready()
    with server.client() as client:
        answer = client.get("/")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert not re.search(r"https?:|//[a-z]|@import|<link (?!rel=\"icon\" href=\"data:,\")", answer.text)
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'sha256-")
        assert client.get("/metrics").status_code == 401


@in_chromium
def test_a_conversation(server: Server, browser: Browser) -> None:
    browser.open(server.url)
    browser.until("at('model').textContent === 'parrot'")
    say(browser, "hello <b>there</b> 😀")
    browser.until("!running && document.querySelectorAll('#log li').length === 2")
    assert browser.value(ANSWERS) == ["hello <b>there</b> 😀"]
    say(browser, " again")
    browser.until("!running && document.querySelectorAll('#log li').length === 4")
    # The parrot says all of the conversation: the page has sent it.
    assert browser.value(ANSWERS)[1] == "hello <b>there</b> 😀" * 2 + "again"
    browser.until("at('pool-text').textContent.includes('free of 256 blocks')")
    browser.until("Number(at('generated').textContent) > 40")
    assert browser.value("document.querySelectorAll('#histograms .bars').length") == 3
    browser.until("at('histograms').innerText.includes('99 of 100')")
    target = os.environ.get("PLLM_SCREENSHOTS")
    if target:
        browser.screenshot(Path(target) / "wide.png")
    browser.value("at('new').click()")
    assert browser.value("document.querySelectorAll('#log li').length") == 0
    assert browser.problems == []
    assert {httpx.URL(url).port for url in browser.requested if not url.startswith("data:")} == {server.port}


@in_chromium
def test_a_stop_keeps_what_was_said_and_frees_the_engine(start: StartServer, browser: Browser) -> None:
    server = start(env=SLOW).wait_ready()
    browser.open(server.url)
    say(browser, "a long text " * 20)
    browser.until(f"({ANSWERS}[0] || '').length > 3")
    browser.until("at('running').textContent === '1'")
    browser.press("Escape")
    browser.until("!running && at('state').textContent === 'Stopped.'")
    assert browser.value(ANSWERS)[0].startswith("a l")
    eventually(server.is_idle)
    browser.until("at('running').textContent === '0'")
    assert browser.problems == []


@in_chromium
def test_errors_are_shown_and_the_conversation_goes_on(server: Server, browser: Browser) -> None:
    browser.open(server.url)
    say(browser, "x" * 600)
    browser.until("!running && document.querySelector('#log li.error')")
    assert "maximum context length" in browser.value("document.querySelector('#log li.error').innerText")
    say(browser, "short")
    browser.until(f"!running && {ANSWERS}[0] === 'short'")


@in_chromium
def test_a_server_that_goes_away(start: StartServer, browser: Browser) -> None:
    server = start().wait_ready()
    browser.open(server.url)
    browser.until("at('model').textContent === 'parrot'")
    server.stop()
    browser.until("at('engine-state').textContent === 'The server cannot be reached.'")
    say(browser, "hello")
    browser.until("!running && document.querySelector('#log li.error')")


@in_chromium
def test_a_key(start: StartServer, browser: Browser) -> None:
    server = start("--api-key", "secret").wait_ready()
    browser.open(server.url)
    browser.until("at('access').open && at('engine-state').textContent.includes('Incorrect API key')")
    browser.value("at('key').focus()")
    browser.type("secret")
    browser.press("Tab")
    browser.until("at('model').textContent === 'parrot' && at('engine-state').textContent === ''")
    say(browser, "hello")
    browser.until(f"!running && {ANSWERS}[0] === 'hello'")


@in_chromium
def test_keyboard_alone(server: Server, browser: Browser) -> None:
    browser.open(server.url)
    browser.until("document.activeElement === at('input')")
    browser.type("one")
    browser.press("Enter", shift=True)
    browser.type("two")
    browser.press("Tab")
    assert browser.value("document.activeElement.id") == "send"
    browser.press("Enter")
    browser.until(f"!running && {ANSWERS}[0] === 'one\\ntwo'")
    assert browser.value("document.activeElement.id") == "input"
    reached = set()
    for _ in range(12):
        browser.press("Tab")
        reached.add(browser.value("document.activeElement.id || document.activeElement.tagName"))
    assert {"send", "new", "log", "SUMMARY"} <= reached
    unnamed = "[...document.querySelectorAll('input, textarea')].filter(field => !field.labels.length).length"
    assert browser.value(unnamed) == 0


@in_chromium
def test_a_narrow_screen(server: Server, browser: Browser) -> None:
    browser.resize(320, 640)
    browser.open(server.url)
    say(browser, "w" * 200)
    browser.until(f"!running && {ANSWERS}.length === 1")
    assert browser.value("document.documentElement.scrollWidth") <= 320
    for name in ("input", "send", "pool"):
        assert browser.value(f"at('{name}').getBoundingClientRect().right") <= 320
    target = os.environ.get("PLLM_SCREENSHOTS")
    if target:
        browser.screenshot(Path(target) / "narrow.png")
