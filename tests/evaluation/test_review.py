"""Suspects decided about in a browser, and decisions applied to a list."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.helpers import PHOTOS, ROOT
from tripletloss.base.files import digest
from tripletloss.data.lists import read_list
from tripletloss.evaluation import review, suspects

HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)<!script>'\".jpg"


def make_list(folder):
    """Seven images of three identities; the last image is alone, and has a hostile name."""
    photos = sorted(PHOTOS.iterdir())
    names = ["a/0.jpg", "a/1.jpg", "a/2.jpg", "b/0.jpg", "b/1.jpg", "b/2.jpg", f"c/{HOSTILE}"]
    for name, photo in zip(names, photos, strict=False):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(photo.read_bytes())
    path = folder / "train.txt"
    path.write_text("".join(f"{name} {'abc'.index(name[0])}\n" for name in names))
    return path


def apply(folder, path, *more):
    command = [sys.executable, "-m", "tripletloss.dataset", "--apply", path, "train.txt", *more]
    return subprocess.run(command, cwd=folder, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)


def test_choices_by_keys_survive_a_reload_and_give_the_list_made_by_hand(browser, tmp_path):
    images = read_list(str(make_list(tmp_path)), str(tmp_path))
    found = suspects.Suspicion(np.ones(7), np.ones(7), np.array([1, 1, 1, 0, 0, 0, 1]), np.full(7, 0.5))
    page = tmp_path / "page.html"
    review.write(str(page), images, found, np.array([0, 1, 6, 4]), suspects.identities_of(images))
    browser.open(page)
    browser.press("2", "1", "3")
    browser.check()
    browser.open(page, width=390, dark=True)
    assert browser.driver.find_element("id", "left").text == "1 of 4 left"
    browser.press("\ue015", "3")  # arrow down: the second suspect is chosen again
    browser.driver.find_element("id", "save").click()
    saved = browser.downloads / "decisions.json"
    for _ in range(100):
        if saved.exists():
            break
        time.sleep(0.05)
    browser.check()
    result = apply(tmp_path, saved)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "train_cleaned.txt").read_text() == "a/0.jpg 1\na/2.jpg 0\nb/0.jpg 1\nb/1.jpg 1\nb/2.jpg 1\n"


def test_labels_have_no_gap_when_an_identity_loses_all_its_images(tmp_path):
    source = make_list(tmp_path)
    rows = [{"image": f"a/{number}.jpg", "choice": "drop", "other": 1} for number in range(3)]
    (tmp_path / "d.json").write_text(json.dumps({"list": "x", "sha256": digest(str(source)), "decisions": rows}))
    before = source.read_bytes()
    assert "1 identities lost" in apply(tmp_path, "d.json").stdout
    cleaned = tmp_path / "train_cleaned.txt"
    assert [line.split()[-1] for line in cleaned.read_text().splitlines()] == ["0", "0", "0", "1"]
    assert "--force" in apply(tmp_path, "d.json").stderr and source.read_bytes() == before


@pytest.mark.parametrize("change, sentence", [
    ({"sha256": "0" * 64}, "another list"), ({"image": "z.jpg"}, "not in train.txt"), ({"choice": "maybe"}, "'maybe'"),
    ({"choice": []}, "has the choice []"), ({"other": 9}, "label 9"), ({"twice": True}, "twice"), ({"broken": True}, "not a decisions file"),
])  # fmt: skip
def test_decisions_that_do_not_fit_are_refused_in_a_sentence(tmp_path, change, sentence):
    row = {"image": "a/0.jpg", "choice": "other", "other": 1} | {k: v for k, v in change.items() if k in ("image", "choice", "other")}
    found = {"list": "train.txt", "sha256": change.get("sha256") or digest(str(make_list(tmp_path))), "decisions": [row]}
    make_list(tmp_path)
    found["decisions"] *= 2 if "twice" in change else 1
    (tmp_path / "d.json").write_text(json.dumps(found)[: 20 if "broken" in change else None])
    result = apply(tmp_path, "d.json")
    assert result.returncode == 1 and sentence in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "train_cleaned.txt").exists()
