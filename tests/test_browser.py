"""The browser that other tests look at pages with: it notices what is wrong with a page."""

import base64

import pytest

from tests.helpers import PHOTOS


def page(folder, body, head=""):
    path = folder / "page.html"
    path.write_text(f"<!doctype html><meta charset=utf-8><title>A page</title>{head}{body}")
    return path


def test_a_page_with_a_picture_inside_has_no_fault(browser, tmp_path):
    picture = base64.b64encode(sorted(PHOTOS.iterdir())[0].read_bytes()).decode()
    browser.open(page(tmp_path, f'<img alt="a face" src="data:image/jpeg;base64,{picture}">'))
    browser.check()
    assert browser.driver.execute_script("return document.images[0].naturalWidth") == 112


# The body of a page, and what is said of it.
FAULTS = [
    ("<script>nothing_of_this_name()</script>", "nothing_of_this_name is not defined"),
    ("<script>console.error('lost')</script>", "lost"),
    ('<img alt="half a picture" src="data:image/png;base64,iVBORw0KGgo=">', "half a picture"),
    ('<img src="http://127.0.0.1:8080/here.png">', "http://127.0.0.1:8080/here.png"),
    ('<link rel=stylesheet href="https://example.org/a.css">', "https://example.org/a.css"),
    ("<script>fetch('https://example.org/tell').catch(() => 0)</script>", "https://example.org/tell"),
    ("<div style='width: 2000px'>wide</div>", "pixels wider"),
]


def test_a_fault_of_a_page_is_noticed(browser, tmp_path):
    for body, fault in FAULTS:
        browser.open(page(tmp_path, body))
        with pytest.raises(AssertionError) as raised:
            browser.check()
        assert fault in f"{raised.value} {browser.left}"


def test_a_page_opens_at_the_width_of_a_phone_and_in_the_dark(browser, tmp_path):
    path = page(tmp_path, "<p>text</p>")
    browser.open(path, width=390, dark=True)
    ask = "return [innerWidth, matchMedia('(prefers-color-scheme: dark)').matches]"
    assert browser.driver.execute_script(ask) == [390, True]
    browser.open(path)
    assert browser.driver.execute_script(ask) == [1280, False]
