"""Suspects decided about in a browser, and decisions applied to a list."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.helpers import PHOTOS, ROOT
from tripletloss.base.errors import InputError
from tripletloss.base.files import digest
from tripletloss.data import cleaning
from tripletloss.data.lists import read_list, shared_identities, show_one_of
from tripletloss.evaluation import review, suspects
from tripletloss.formats import embeddings

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
    review.write(str(page), images, found, np.array([0, 1, 6, 4]), images.identities_of_labels())
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
    assert (tmp_path / "train_cleaned.txt").read_text() == 'a/0.jpg 1 # shows "b"\na/2.jpg 0\nb/0.jpg 1\nb/1.jpg 1\nb/2.jpg 1\n'


def test_labels_have_no_gap_when_an_identity_loses_all_its_images(tmp_path):
    source = make_list(tmp_path)
    rows = [{"image": f"a/{number}.jpg", "choice": "drop", "other": 1} for number in range(3)]
    (tmp_path / "d.json").write_text(json.dumps({"list": "x", "sha256": digest(str(source)), "decisions": rows}))
    before = source.read_bytes()
    said = apply(tmp_path, "d.json").stdout.splitlines()[1]
    assert said.startswith("labels: 1 identity has no image left (a), so the larger labels moved down")
    cleaned = tmp_path / "train_cleaned.txt"
    assert [line.split()[-1] for line in cleaned.read_text().splitlines()] == ["0", "0", "0", "1"]
    assert "--force" in apply(tmp_path, "d.json").stderr and source.read_bytes() == before


def decide(folder, text, *decisions):
    """Write a list and decisions about it, of image, choice and other. Returns the path of the decisions."""
    (folder / "train.txt").write_text(text)
    rows = [dict(zip(("image", "choice", "other"), one, strict=True)) for one in decisions]
    found = {"list": "train.txt", "sha256": digest(str(folder / "train.txt")), "decisions": rows}
    (folder / "d.json").write_text(json.dumps(found))
    return str(folder / "d.json")


def cleaned(folder, text, *decisions):
    """The list that decisions make of a list, written and read again, and its text."""
    made = cleaning.apply(decide(folder, text, *decisions), str(folder / "train.txt")).images.text()
    (folder / "cleaned.txt").write_text(made)
    return read_list(str(folder / "cleaned.txt"), "", must_exist=False), made


PEOPLE = "ann@1.jpg 0\nann@2.jpg 0\nbo@1.jpg 1\nbo@2.jpg 1\n"


@pytest.mark.parametrize("text, moved, expected, identities", [
    (PEOPLE, "ann@2.jpg", PEOPLE.replace("2.jpg 0", '2.jpg 1 # shows "bo"'), ["ann", "bo", "bo", "bo"]),
    ("a/1.jpg 0\na/2.jpg 0\nb/1.jpg 1\n", "a/2.jpg", 'a/1.jpg 0\na/2.jpg 1 # shows "b"\nb/1.jpg 1\n', ["a", "b", "b"]),
    ("1.jpg 0\n2.jpg 0\n3.jpg 1\n", "2.jpg", "1.jpg 0\n2.jpg 1\n3.jpg 1\n", ["", "", ""]),
    # One folder of all people says nobody's name.
    ("x/1.jpg 0\nx/2.jpg 0\nx/3.jpg 1\n", "x/2.jpg", "x/1.jpg 0\nx/2.jpg 1\nx/3.jpg 1\n", ["x", "x", "x"]),
    ("ann@1.jpg 0\nann@2.jpg 0\n3.jpg 1\n", "ann@2.jpg", 'ann@1.jpg 0\nann@2.jpg 1 # shows ""\n3.jpg 1\n', ["ann", "", ""]),
    # Names that look like corrections themselves, and identities with quotation marks.
    ('a@1 2 # shows "c".jpg 0\na@2.jpg 0\n"b\\ 7 # shows "q"@1.jpg 1\n', 'a@1 2 # shows "c".jpg',
     'a@1 2 # shows "c".jpg 1 # shows "\\"b\\\\ 7 # shows \\"q\\""\na@2.jpg 0\n"b\\ 7 # shows "q"@1.jpg 1\n',
     ['"b\\ 7 # shows "q"', "a", '"b\\ 7 # shows "q"']),
])  # fmt: skip
def test_an_image_of_any_list_can_belong_to_the_other(tmp_path, text, moved, expected, identities):
    images, made = cleaned(tmp_path, text, (moved, "other", 1))
    assert made == expected and images.identities() == identities and images.text() == made
    assert images.names == read_list(str(tmp_path / "train.txt"), "", must_exist=False).names


def test_a_cleaned_list_is_cleaned_again_and_an_image_goes_back(tmp_path):
    once = cleaned(tmp_path, PEOPLE, ("ann@2.jpg", "other", 1), ("bo@1.jpg", "right", 0))[1]
    assert cleaned(tmp_path, once, ("ann@2.jpg", "other", 0))[1] == PEOPLE
    assert cleaned(tmp_path, once, ("ann@2.jpg", "drop", 0))[1] == PEOPLE.replace("ann@2.jpg 0\n", "")


def test_only_the_labels_above_an_emptied_identity_move(tmp_path):
    text = "a@1.jpg 5\nb@1.jpg 7\nc@1.jpg 9\nc@2.jpg 9\n"
    assert cleaned(tmp_path, text, ("b@1.jpg", "other", 5))[1] == 'a@1.jpg 5\nb@1.jpg 5 # shows "a"\nc@1.jpg 8\nc@2.jpg 8\n'


def test_a_sample_of_the_project_is_cleaned_and_says_that_its_numbering_stayed(tmp_path):
    text = (ROOT / "data" / "train.txt").read_text()
    (name, label), other = text.split("\n", 1)[0].split(), text.splitlines()[-1].split()[1]
    decide(tmp_path, text, (name, "other", int(other)))
    result = apply(tmp_path, "d.json")
    assert result.stdout.splitlines()[1] == "labels: as before", result.stderr
    images = read_list(str(tmp_path / "train_cleaned.txt"), str(ROOT / "data" / "images"))
    assert images.labels[0] == int(other) and images.identity(0) == images.identity(len(images.names) - 1)
    before = read_list(str(ROOT / "data" / "train.txt"), images.folder)
    moved, rest = images.only(np.array([0])), before.only(before.labels == int(label))
    assert show_one_of(moved, before.only(before.labels == int(other))).all() and not shared_identities(moved, rest)


@pytest.mark.parametrize("line, sentence", [
    ('bo@1.jpg 0 # shows "bo"', "label 0 stands for the identity 'bo' here, but 'ann'"),
    ('bo@1.jpg 1 # shows "ann"', "identity 'ann' has the label 1 here, but 0"),
    ('bo@1.jpg # shows "ann"', "is not `person@file.jpg LABEL`"), ('bo@1.jpg 0 # shows "\\a"', "is not JSON text"),
    ("bo@1.jpg 0 # shows ann", "the label 'ann' is not a whole number"),
])  # fmt: skip
def test_a_line_that_says_whom_it_shows_must_fit_the_others(tmp_path, line, sentence):
    (tmp_path / "list.txt").write_text(f"ann@1.jpg 0\n{line}\n")
    with pytest.raises(InputError) as raised:
        read_list(str(tmp_path / "list.txt"), "", must_exist=False)
    assert "line 2: " in str(raised.value) and sentence in str(raised.value)


@pytest.mark.parametrize("suffix", ["h5", "npz"])
def test_embeddings_keep_the_identities_that_were_decided(tmp_path, suffix):
    images, _ = cleaned(tmp_path, PEOPLE, ("ann@2.jpg", "other", 1))
    about = {"list": "l", "folder": "f", "feature": "norm2", "weights": "w", "weights_sha256": "0", "mirrored": False}
    path = str(tmp_path / f"rows.{suffix}")
    embeddings.write(path, images, about, iter([np.ones((4, 3), np.float32)]))
    if suffix == "h5":
        assert embeddings.load(path).images.identities() == ["ann", "bo", "bo", "bo"]
    else:
        with np.load(path) as found:
            assert found["identities"].tolist() == ["ann", "bo", "bo", "bo"]


@pytest.mark.parametrize("option", [["--out", "."], ["--held-out", "0.2"], ["--config", "c.py"], ["--seed", "0"], ["--enough", "5"]])
def test_apply_refuses_options_that_it_does_not_use(tmp_path, option):
    decide(tmp_path, PEOPLE)
    result = apply(tmp_path, "d.json", *option)
    assert result.returncode == 2 and f"--apply does not use {option[0]}: it writes" in result.stderr
    assert not (tmp_path / "train_cleaned.txt").exists()


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
