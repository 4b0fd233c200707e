"""A picture of a page for the documents."""

import subprocess
import sys

import cv2

from tests.helpers import ROOT


def take(*arguments):
    command = [sys.executable, str(ROOT / "tools" / "screenshot.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_picture_shows_the_top_of_the_page(browser, tmp_path):
    browser.driver.quit()  # it is only here to skip the test where there is no browser
    page, out = tmp_path / "page.html", tmp_path / "page.png"
    page.write_text("<!doctype html><body style='margin: 0'><div style='height: 50px; background: #ff0000'></div>" + "<p>x</p>" * 99)
    result = take(page, out, "--width", 300, "--height", 200)
    assert result.returncode == 0 and "300 x 200 pixels" in result.stdout, result.stderr
    picture = cv2.imread(str(out))
    assert picture.shape == (200, 300, 3)
    assert (picture[:49] == (0, 0, 255)).all() and (picture[55:] != (0, 0, 255)).any(axis=-1).all()
    again = take(page, out)
    assert again.returncode == 1 and "page.png exists already" in again.stderr


def test_a_page_that_is_not_there_is_told_in_one_sentence(tmp_path):
    result = take(tmp_path / "none.html", tmp_path / "out.png")
    assert result.returncode == 1 and result.stderr.count("\n") == 1 and "none.html is not a file" in result.stderr
