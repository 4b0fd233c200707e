"""Photos to faces: which of several is taken, what is written, and a run that is stopped. No Caffe is needed."""

import csv
import os
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

from tests.helpers import PHOTOS, ROOT, empty_png
from tripletloss.base.errors import InputError
from tripletloss.core.alignment import TEMPLATES
from tripletloss.data.folders import check_cut, cut_for
from tripletloss.deploy.faces import PICKS, Detector, Face, cut, weigh

COMMAND = [sys.executable, "-c", "import runpy, sys; sys.modules['caffe'] = None; runpy.run_module('tripletloss.detect', run_name='__main__')"]


def detect(*arguments):
    """The command where no Caffe can be imported."""
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT)


def picture(name, side):
    return cv2.resize(cv2.imread(str(PHOTOS / f"{name}.jpg")), (side, side), interpolation=cv2.INTER_CUBIC)


def scene(*placed, size=(480, 640)):
    """A photo with pictures of PHOTOS in it: (name, side, middle's x and y), as far as they lie in it."""
    edge = 400
    photo = np.full((size[0] + 2 * edge, size[1] + 2 * edge, 3), 120, np.uint8)
    for name, side, x, y in placed:
        top, left = y + edge - side // 2, x + edge - side // 2
        photo[top : top + side, left : left + side] = picture(name, side)
    return np.ascontiguousarray(photo[edge:-edge, edge:-edge])


@pytest.fixture(scope="module")
def detector():
    return Detector()


def taken(detector, photo, pick="best"):
    """Where the middle of the face is that is taken, x and y."""
    found = detector.find(photo)
    face = found[int(np.argmax(weigh(found, photo.shape, pick)))]
    return detector.find_upright(photo, face).mean(axis=0)


# --- which face


def test_a_half_cut_bystander_at_the_edge_is_not_taken_although_its_face_is_the_largest(detector):
    photo = scene(("face2033@00", 200, 320, 240), ("face2036@00", 270, 640, 240))
    found = detector.find(photo)
    assert len(found) == 2
    assert np.allclose(taken(detector, photo), (320, 260), atol=25)
    assert np.allclose(taken(detector, photo, "central"), (320, 260), atol=25)
    assert taken(detector, photo, "largest")[0] > 560


def test_a_small_face_in_the_middle_is_not_taken_before_a_large_one_beside_it(detector):
    photo = scene(("face2036@00", 260, 180, 260), ("face2033@00", 90, 330, 240))
    assert np.allclose(taken(detector, photo), (180, 280), atol=30)
    assert np.allclose(taken(detector, photo, "largest"), (180, 280), atol=30)
    assert np.allclose(taken(detector, photo, "central"), (330, 248), atol=15)


def test_weights_are_those_of_plain_arithmetic():
    """Two faces in a photo of 400 x 300: one in the middle, one half outside of it on the right."""
    points = np.zeros((5, 2))
    faces = [Face(np.array([180.0, 130, 40, 40]), points, 0.9), Face(np.array([370.0, 100, 60, 100]), points, 0.8)]
    shape = 300, 400, 3
    assert weigh(faces, shape, "largest").tolist() == [1600, 6000]
    nearness = 1 - 200 / 250  # 200 of the 250 pixels from the middle to a corner
    assert weigh(faces, shape, "central") == pytest.approx([1, nearness])
    assert weigh(faces, shape) == pytest.approx([1600 * 0.9, 30 * 100 * 0.8 * nearness])
    assert all(len(weigh([], shape, pick)) == 0 for pick in PICKS)


def test_the_second_look_keeps_to_the_face_that_was_picked(detector):
    """A larger face beside it is in the upright picture as well."""
    photo = scene(("face2033@00", 150, 260, 240), ("face2036@00", 190, 420, 240))
    faces = sorted(detector.find(photo), key=lambda face: face.box[0])
    assert len(faces) == 2
    for face in faces:
        assert np.abs(detector.find_upright(photo, face) - face.points).max() < 15


# --- what is written


@pytest.fixture
def photos(tmp_path):
    """Photos of people, a wall, an empty file and one of gigabytes, two with names that make the same one."""
    folder = tmp_path / "photos"
    (folder / "ann").mkdir(parents=True)
    cv2.imwrite(str(folder / "ann" / "1.jpg"), scene(("face2033@00", 200, 300, 240)))
    cv2.imwrite(str(folder / "ann" / "1.png"), scene(("face2033@01", 200, 300, 240)))
    cv2.imwrite(str(folder / "ann" / "two.png"), scene(("face2033@02", 200, 300, 240), ("face2036@00", 120, 520, 300)))
    cv2.imwrite(str(folder / "ann" / "doubt.png"), scene(("face2033@02", 200, 200, 240), ("face2036@00", 200, 440, 240)))
    cv2.imwrite(str(folder / "wall.jpg"), np.full((90, 120, 3), 120, np.uint8))
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "huge.png").write_bytes(empty_png(30000))
    return folder


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_of_photos_becomes_one_of_faces(photos, tmp_path):
    result = detect(photos, "--out", tmp_path / "faces", "--size", "96")
    assert result.returncode == 0, result.stderr
    faces = sorted(path.relative_to(tmp_path / "faces").as_posix() for path in (tmp_path / "faces").rglob("*.*g"))
    assert faces == ["ann/1.jpg", "ann/1_2.jpg", "ann/doubt.jpg", "ann/two.jpg"]
    assert "faces: 4 faces of 7 photos" in result.stdout
    pictures = [cv2.imread(str(tmp_path / "faces" / face)) for face in faces]
    assert all(one.shape == (96, 96, 3) for one in pictures)
    for cut_out, name in zip(pictures[:2], ("face2033@00", "face2033@01"), strict=True):  # each its own photo's
        unlike = [np.abs(cut_out.astype(float) - picture(other, 96)).mean() for other in ("face2033@00", "face2033@01")]
        assert unlike[int(name[-1])] == min(unlike)
    rows = {row["photo"]: row for row in table(tmp_path / "faces.csv")}
    assert list(rows)[:2] == ["ann/doubt.png", "ann/two.png"]  # those with several faces, the most doubtful first
    assert float(rows["ann/doubt.png"]["rival"]) > 0.6 > 0.4 > float(rows["ann/two.png"]["rival"])
    assert rows["ann/two.png"]["faces"] == "2" and 0.6 <= float(rows["ann/two.png"]["other_scores"]) <= 1
    assert {row["photo"]: row["face"] for row in rows.values() if row["face"]} == {
        "ann/1.jpg": "ann/1.jpg", "ann/1.png": "ann/1_2.jpg", "ann/two.png": "ann/two.jpg", "ann/doubt.png": "ann/doubt.jpg"
    }  # fmt: skip
    assert rows["wall.jpg"]["left_out"] == "no face found" and f"no face found in {photos}/wall.jpg" in result.stdout
    for name, why in (("empty.jpg", "is empty"), ("huge.png", "has 30000 x 30000 pixels")):
        assert why in rows[name]["left_out"] and why in result.stdout
    assert cv2.imread(str(tmp_path / "faces.jpg")).shape[0] == 2 * (72 + 18 + 2)
    assert "2 photos have several faces: look at" in result.stdout


def test_faces_are_cut_for_the_model_that_is_named(photos, tmp_path, detector):
    assert detect(photos, "--out", tmp_path / "faces", "--for", "dlib_resnet").returncode == 0
    photo = cv2.imread(str(photos / "ann" / "1.jpg"))
    points = detector.find_upright(photo, detector.find(photo)[0])
    written = cv2.imread(str(tmp_path / "faces" / "ann" / "1.jpg")).astype(float)
    cuts = {model: cut(photo, points, 150, template) for model, template in TEMPLATES.items()}
    unlike = {model: np.abs(written - picture).mean() for model, picture in cuts.items()}
    assert unlike["dlib_resnet"] < 2 < 8 < unlike["face997"]  # JPEG changes pixels by about 1
    assert cut_for(str(tmp_path / "faces")) == "dlib_resnet" and cut_for(str(photos)) == ""
    again = detect(photos, "--out", tmp_path / "faces", "--force")
    assert again.returncode == 0 and cut_for(str(tmp_path / "faces")) == "face997", again.stderr
    assert cv2.imread(str(tmp_path / "faces" / "ann" / "1.jpg")).shape == (112, 112, 3)


def test_faces_that_were_cut_for_another_model_are_refused(tmp_path):
    (tmp_path / "cut_for.txt").write_text("dlib_resnet\n")
    check_cut(str(tmp_path), {"ALIGNMENT": "dlib_resnet"})
    check_cut(str(ROOT / "data" / "images"), {"ALIGNMENT": "dlib_resnet"})  # nobody noted for which
    with pytest.raises(InputError, match=r"were cut for dlib_resnet, but ALIGNMENT is 'face997': cut them again with detect --for face997"):
        check_cut(str(tmp_path), {"ALIGNMENT": "face997"})


def test_what_is_there_is_replaced_only_with_force(photos, tmp_path):
    arguments = photos, "--out", tmp_path / "faces"
    assert detect(*arguments).returncode == 0
    again = detect(*arguments)
    assert again.returncode == 1 and "faces exists already: move it away" in again.stderr
    (photos / "ann" / "1.png").unlink()
    assert detect(*arguments, "--force").returncode == 0
    assert not (tmp_path / "faces" / "ann" / "1_2.jpg").exists() and len(table(tmp_path / "faces.csv")) == 6
    (tmp_path / "faces" / "ann" / "holiday.jpg").write_bytes(b"a person's own")
    refused = detect(*arguments, "--force")
    assert refused.returncode == 1 and "faces is not replaced, because this command did not write ann/holiday.jpg in it" in refused.stderr
    for out in (photos, photos / "faces"):
        inside = detect(photos, "--out", out, "--force")
        assert inside.returncode == 1 and "is in the folder of the photos" in inside.stderr
    assert len(list(photos.rglob("*.*g"))) == 6


def test_photos_without_any_face_leave_nothing(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "empty.jpg").write_bytes(b"")
    result = detect(tmp_path / "photos", "--out", tmp_path / "faces")
    assert result.returncode == 1 and "no face was found in any photo of" in result.stderr and "is empty" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_stopped_is_resumed_by_the_same_command(tmp_path, number):
    (tmp_path / "photos").mkdir()
    for name in range(60):
        os.link(PHOTOS / f"face{2033 + name % 10}@0{name % 5}.jpg", tmp_path / "photos" / f"{name}.jpg")
    (tmp_path / "photos" / "60.jpg").write_bytes(b"")
    assert detect(tmp_path / "photos", "--out", tmp_path / "whole").returncode == 0
    arguments = [*COMMAND, str(tmp_path / "photos"), "--out", str(tmp_path / "faces")]
    process = subprocess.Popen(
        arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    part, deadline = tmp_path / "faces.part", time.monotonic() + 60
    while len(list(part.glob("*.jpg"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    done = {path.name: path.stat().st_ino for path in part.glob("*.jpg")}
    assert 5 <= len(done) < 60 and not (tmp_path / "faces").exists()
    if number == signal.SIGINT:
        assert process.returncode == 130 and "of 61 photos; the same command resumes" in errors.splitlines()[-1]
    else:
        newest = max(part.glob("*.jpg"), key=lambda path: path.stat().st_mtime_ns)
        newest.write_bytes(newest.read_bytes()[:100])  # a machine that stops may leave such a file
        del done[newest.name]
    changed = next(name for name in done if name != "0.jpg")
    (tmp_path / "photos" / changed).unlink()
    cv2.imwrite(str(tmp_path / "photos" / changed), picture("face2043@00", 200))
    again = detect(tmp_path / "photos", "--out", tmp_path / "faces")
    assert again.returncode == 0 and "faces: 60 faces of 61 photos" in again.stdout, again.stderr
    for path in (tmp_path / "whole").glob("*.jpg"):
        assert ((tmp_path / "faces" / path.name).read_bytes() == path.read_bytes()) == (path.name != changed)
    kept = [name for name, inode in done.items() if (tmp_path / "faces" / name).stat().st_ino == inode]
    assert set(kept) >= set(done) - {changed, max(done, key=lambda name: int(name[:-4]))}  # the last may lack its row
    assert sorted(path.name for path in tmp_path.iterdir()) == ["faces", "faces.csv", "photos", "whole", "whole.csv"]


def test_a_run_with_other_settings_begins_anew(photos, tmp_path):
    (tmp_path / "faces.part").mkdir()
    (tmp_path / "faces.part" / "mine.jpg").write_bytes(b"")
    refused = detect(photos, "--out", tmp_path / "faces")
    assert refused.returncode == 1 and "faces.part exists, but is not from a run that was stopped" in refused.stderr
    (tmp_path / "faces.part.log").write_text('{"photos": "elsewhere", "size": 64, "pick": "best"}\n["mine.jpg", [0')
    result = detect(photos, "--out", tmp_path / "faces")
    assert result.returncode == 0 and not (tmp_path / "faces" / "mine.jpg").exists(), result.stderr
