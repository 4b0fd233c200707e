"""List files, images and config files: what is read, and what is refused in which words."""


import cv2
import numpy as np
import pytest

from tests.helpers import ROOT, TINY_CONFIG, few_people, lines_for_config, list_faces, write_config
from tripletloss import config
from tripletloss.base.errors import InputError
from tripletloss.core.batches import Batch
from tripletloss.data import images
from tripletloss.data.folders import list_folder, walk
from tripletloss.data.lists import read_list


def test_list_lines_of_the_2015_toolkit(project):
    listed = read_list(str(project / "list.txt"), str(project / "images") + "/")
    assert listed.names[5] == "person1@1.jpg" and listed.labels[5] == 1 and listed.labels.dtype == np.int64
    assert listed.path(5) == str(project / "images" / "person1@1.jpg")


def test_names_may_hold_spaces_folders_and_no_identity(project):
    (project / "images" / "a b").mkdir()
    (project / "images" / "person0@0.jpg").rename(project / "images" / "a b" / "c d.jpg")
    (project / "list.txt").write_text("\ufeffa b/c d.jpg\t7\n\n  person1@0.jpg   3  \r\n./person2@0.jpg 08\n")
    listed = read_list(str(project / "list.txt"), str(project / "images"))
    assert listed.names == ["a b/c d.jpg", "person1@0.jpg", "person2@0.jpg"] and list(listed.labels) == [7, 3, 8]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("person0@0.jpg", r"line 2: 'person0@0.jpg' is not `person@file.jpg LABEL`"),
        ("person0@0.jpg zero", r"line 2: the label 'zero' is not a whole number"),
        ("person0@0.jpg 1.5", r"line 2: the label '1.5' is not a whole number"),
        ("person0@0.jpg 1_0", r"line 2: the label '1_0' is not a whole number"),
        ("person0@0.jpg ٣", r"line 2: the label '٣' is not a whole number"),
        ("person0@0.jpg -1", r"line 2: the label -1 is not between 0"),
        ("person0@0.jpg 99999999999", r"line 2: the label 99999999999 is not between 0"),
        ("person0@0.jpg " + "9" * 5000, r"line 2: the label 9+ is not between 0"),
        ("person1@0.jpg 4", r"line 2: person1@0.jpg is already in line 1: list each image once, under one label"),
        ("./person1@0.jpg 4\n\nperson1@0.jpg 4", r"line 2: person1@0.jpg is already in line 1 \(2 such lines\)"),
        ("person0@0.jpg 4", r"line 2: label 4 stands for the identity 'person0' here, but 'person1' in an earlier line"),
        ("person1@1.jpg 5", r"line 2: identity 'person1' has the label 5 here, but 4 in an earlier line"),
        ("nobody@0.jpg 5", r"names the image nobody@0.jpg, but there is no"),
    ],
)
def test_bad_list_lines_are_named(project, line, sentence):
    (project / "list.txt").write_text(f"person1@0.jpg 4\n{line}\n")
    with pytest.raises(InputError, match=sentence):
        read_list(str(project / "list.txt"), str(project / "images"))


def test_an_image_under_two_labels_is_named_with_both_lines(project):
    (project / "list.txt").write_text("a/1.jpg 0\nb/1.jpg 1\na/1.jpg 1\n")
    with pytest.raises(InputError, match=r"line 3: a/1.jpg is already in line 1"):
        read_list(str(project / "list.txt"), str(project / "images"), must_exist=False)


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe\x00", None])
def test_lists_that_are_empty_binary_or_missing_are_refused(project, content):
    path = project / "list.txt"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"list\.txt"):
        read_list(str(path), str(project / "images"))


@pytest.fixture
def tree(tmp_path):
    """10 identities; one has a single image, one a subfolder, and there are files of every useless kind."""
    rng = np.random.default_rng(0)
    for person in range(10):
        for number in range(1 if person == 3 else 4):
            path = tmp_path / "faces" / f"person {person}" / ("more" if number == 3 else "") / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), rng.integers(0, 255, (8, 8, 3), np.uint8))
    (tmp_path / "faces" / "person 0" / "notes.txt").write_text("hello")
    (tmp_path / "faces" / "person 1" / "broken.png").write_bytes(b"no image")
    (tmp_path / "faces" / "person 2" / "a@b.jpg").write_bytes((tmp_path / "faces" / "person 2" / "0.jpg").read_bytes())
    (tmp_path / "faces" / "nobody").mkdir()
    (tmp_path / "faces" / "loose.jpg").write_bytes(b"not in a folder of its own")
    return tmp_path / "faces"


def test_lists_of_a_folder_of_identities(tree, tmp_path):
    result = list_faces(tree, "--out", tmp_path, "--held-out", "0.3")
    assert result.returncode == 0, result.stderr
    assert "37 images of 10 identities; left out: 2 images or links, 1 files" in result.stdout
    assert "broken.png is not an image" in result.stdout and "a@b.jpg' has an @" in result.stdout
    train, held_out = (read_list(str(tmp_path / f"{name}.txt"), str(tree)) for name in ("train", "held_out"))
    of_list = [{name.split("/")[0] for name in listed.names} for listed in (train, held_out)]
    assert len(of_list[0]) == 7 and len(of_list[1]) == 3 and not of_list[0] & of_list[1]
    assert "person 3" in of_list[0]  # one image makes no pair to measure with
    assert sorted(train.names + held_out.names) == sorted(
        str(path.relative_to(tree)) for path in tree.rglob("*/*.jpg") if "@" not in path.name
    )
    for listed in (train, held_out):
        assert all(
            (a.split("/")[0] == b.split("/")[0]) == (i == j)
            for a, i in zip(listed.names, listed.labels, strict=True)
            for b, j in zip(listed.names, listed.labels, strict=True)
        )
    assert set(train.labels) == set(range(7)) and set(held_out.labels) == {7, 8, 9}


def test_lists_are_never_written_over_and_the_seed_decides_the_split(tree, tmp_path):
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        (tmp_path / name).mkdir()
        assert list_faces(tree, "--out", tmp_path / name, "--seed", seed).returncode == 0
    one, two, other = ((tmp_path / name / "held_out.txt").read_text() for name in ("one", "two", "other"))
    assert one == two != other
    (tmp_path / "two" / "train.txt").unlink()
    for name, there in (("one", "train.txt"), ("two", "held_out.txt")):
        refused = list_faces(tree, "--out", tmp_path / name)
        assert refused.returncode == 1 and f"{there} exists already" in refused.stderr
    assert (tmp_path / "one" / "held_out.txt").read_text() == one == two
    assert not (tmp_path / "two" / "train.txt").exists()
    assert list_faces(tree, "--out", tmp_path / "one", "--seed", 1, "--force").returncode == 0
    assert (tmp_path / "one" / "held_out.txt").read_text() == other


@pytest.mark.parametrize(
    ("sizes", "arguments", "held_out"),
    [
        ([2, 2], [], 0),
        ([2, 2, 2], [], 0),  # one alone cannot be measured
        ([2, 2, 2, 2], [], 2),
        ([2, 1, 1, 1, 1, 1, 1], [], 0),  # only one identity has a pair
        ([2, 2, 1, 1, 1, 1, 1], [], 2),
        ([3] * 7, [], 2),
        ([2] * 20, [], 4),
        ([2] * 20, ["--held-out", "0"], 0),
        ([2] * 7, ["--held-out", "0.9"], 5),
    ],
)
def test_none_or_two_identities_or_more_with_pairs_are_held_out(tmp_path, sizes, arguments, held_out):
    faces = few_people(tmp_path / "faces", sizes)
    result = list_faces(faces, "--out", tmp_path, *arguments)
    assert result.returncode == 0, result.stderr
    settings = lines_for_config(result.stdout)
    train = read_list(settings["TRAIN_LIST"], settings["IMAGEPATH"])
    assert len(np.unique(train.labels)) == len(sizes) - held_out
    assert bool(settings["HELD_OUT_LIST"]) == (tmp_path / "held_out.txt").exists() == (held_out > 0)
    if held_out:
        counts = np.unique(read_list(settings["HELD_OUT_LIST"], settings["IMAGEPATH"]).labels, return_counts=True)[1]
        assert len(counts) == held_out and counts.min() >= 2
    assert ("no held_out.txt: measuring takes 2 identities" in result.stdout) == (not held_out and not arguments)


def test_the_config_of_a_folder_is_whole_commented_and_says_what_the_lines_say(tmp_path):
    faces = few_people(tmp_path / "faces", [3] * 7)
    printed = lines_for_config(list_faces(faces, "--out", tmp_path / "faces").stdout)
    for name in ("train.txt", "held_out.txt"):
        (faces / name).unlink()
    (tmp_path / "mine").mkdir()
    made = tmp_path / "mine" / "my.py"
    result = list_faces(faces, "--out", faces, "--config", made)
    assert result.returncode == 0, result.stderr
    loaded, project = config.load(str(made)), config.load(str(ROOT / "config.py"))
    beside = {"RUN_FOLDER": str(tmp_path / "mine" / "runs" / "my"), "FEATURE_CACHE": str(tmp_path / "mine" / "runs" / "features")}
    way = config.load(str(ROOT / "models" / "face997" / "finetune_triplets.py"))
    assert loaded["BATCH_SIZE"] == {"softmax": 64, "triplet": 15}  # 5 identities x 3, instead of 20 x 3
    for name, value in loaded.values.items():
        if name in {**printed, **beside} and name != "BATCH_SIZE":
            assert value == {**printed, **beside}[name]
        elif name == "CROP":
            assert value == project["CROP"] == 0  # faces are cut already
        elif name != "BATCH_SIZE":
            assert loaded.stage("triplet")[name] == way.stage("triplet")[name], name
    assert loaded["STAGES"] == ["triplet"] and loaded.stage("triplet")["FREEZE"] == ""
    text, template = made.read_text(), (ROOT / "config.py").read_text()
    assert "TRAIN_LIST = '../faces/train.txt'" in text and str(tmp_path) not in text
    assert [comment.strip() for _, hash, comment in comments(text)] == [comment.strip() for _, hash, comment in comments(template)]
    written = {path: path.read_text() for path in (made, faces / "train.txt", faces / "held_out.txt")}
    (faces / "train.txt").unlink()
    (faces / "held_out.txt").unlink()
    refused = list_faces(faces, "--out", faces, "--config", made)
    assert refused.returncode == 1 and "my.py exists already" in refused.stderr
    assert made.read_text() == written[made] and not (faces / "train.txt").exists()


def test_finetuning_on_everyone_differs_from_finetuning_on_half_in_the_list_only():
    half, everyone = (config.load(str(ROOT / "models" / "face997" / f"finetune_triplets{name}.py")) for name in ("", "_all"))
    assert {name for name in half.values if half[name] != everyone[name]} == {"TRAIN_LIST", "RUN_FOLDER"}


def test_faces_cut_for_a_model_get_that_models_config(tmp_path):
    faces = few_people(tmp_path / "faces", [6] * 30)
    (faces / "cut_for.txt").write_text("dlib_resnet\n")
    result = list_faces(faces, "--out", tmp_path, "--config", tmp_path / "my.py")
    assert result.returncode == 0, result.stderr
    loaded, model = config.load(str(tmp_path / "my.py")), config.load(str(ROOT / "models" / "dlib_resnet" / "config.py"))
    changed = {name for name in config.SCHEMA if name in loaded.values and loaded[name] != model[name]}
    assert changed <= {"IMAGEPATH", "TRAIN_LIST", "HELD_OUT_LIST", "RUN_FOLDER", "FEATURE_CACHE", "BATCH_SIZE"}
    assert loaded["ALIGNMENT"] == "dlib_resnet" and loaded["IMAGEPATH"] == str(faces)
    printed = list_faces(faces, "--out", faces).stdout
    assert "Set these in a copy of " in printed and "models/dlib_resnet/config.py:" in printed


def test_the_triplet_stage_also_gets_the_identities_with_few_images(tmp_path):
    faces = few_people(tmp_path / "faces", [2, 5, 1, 6, 4])
    result = list_faces(faces, "--out", tmp_path, "--held-out", "0", "--config", tmp_path / "my.py")
    assert result.returncode == 0, result.stderr
    assert "train.txt: for the softmax stage: 11 images of 2 identities, 5 to 6 images each" in result.stdout
    assert "triplet.txt: for the triplet stage: 17 images of 4 identities, 2 to 6 images each" in result.stdout
    loaded = config.load(str(tmp_path / "my.py"))
    labels = []
    for stage in ("softmax", "triplet"):
        images = read_list(loaded.stage(stage)["TRAIN_LIST"], str(faces))
        labels.append({name.split("/")[0]: label for name, label in zip(images.names, images.labels, strict=True)})
    assert labels == [{"p1": 0, "p3": 1}, {"p1": 0, "p3": 1, "p0": 2, "p4": 3}]
    assert loaded.stage("triplet")["BATCH_SIZE"] == 4 * loaded["IMAGES_PER_IDENTITY"]
    for number, more in enumerate(["--enough=1", "--enough=7"]):  # all have enough, or too few have
        (tmp_path / str(number)).mkdir()
        printed = list_faces(faces, "--out", tmp_path / str(number), "--held-out", "0", more).stdout
        assert lines_for_config(printed)["TRAIN_LIST"] == str(tmp_path / str(number) / "train.txt")
        assert "train.txt: 18 images of 5 identities, 1 to 6 images each" in printed


def comments(text):
    return [line.partition("#") for line in text.splitlines() if "#" in line]


def test_lists_are_written_whole_or_not_at_all(tree, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    refused = list_faces(tree, "--out", out, "--config", tmp_path / "nowhere" / "my.py")
    assert refused.returncode == 1 and "nowhere/my.py cannot be written, because" in refused.stderr and "nowhere is not a folder" in refused.stderr
    assert list(out.iterdir()) == []


def test_links_lead_to_each_file_once(tree, tmp_path):
    (tree / "a loop").symlink_to(".")
    (tree / "alias").symlink_to("person 5")
    (tree / "person 5" / "up").symlink_to(tree.parent)
    (tree / "person 6" / "copy.jpg").symlink_to("../person 5/0.jpg")
    (tree / "person 7" / "gone.jpg").symlink_to("nothing.jpg")
    few_people(tmp_path / "elsewhere", [2])
    (tree / "person 8" / "linked").symlink_to(tmp_path / "elsewhere" / "p0")  # what is found by no other way is taken
    (tree / "person 9" / "linked again").symlink_to(tmp_path / "elsewhere")
    result = list_faces(tree, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    assert "39 images of 10 identities; left out: 7 images or links" in result.stdout
    for link, reason in (
        ("a loop", "which is found without it"), ("alias", "which is found without it"), ("person 5/up", "which contains"),
        ("person 6/copy.jpg", "which is found without it"), ("person 7/gone.jpg", "which does not exist"),
    ):  # fmt: skip
        [line] = [line for line in result.stdout.splitlines() if f"{tree / link} is a link" in line]
        assert reason in line
    assert "person 8/linked/0.jpg" in "".join((tmp_path / name).read_text() for name in ("train.txt", "held_out.txt"))
    assert {name for name in walk(str(tree))[0] if "link" in name} == {"person 8/linked/0.jpg", "person 8/linked/1.jpg"}
    assert set(list_folder(str(tree)).names) == {name for name in walk(str(tree))[0] if name.endswith(("jpg", "png"))}


def test_a_folder_with_spaces_around_its_name_can_be_listed_and_read(tmp_path):
    faces = few_people(tmp_path / "faces", [2, 2])
    (faces / "p0").rename(faces / " p0 ")
    assert list_faces(faces, "--out", tmp_path).returncode == 0
    listed = read_list(str(tmp_path / "train.txt"), str(faces))
    assert listed.names == [" p0 /0.jpg", " p0 /1.jpg", "p1/0.jpg", "p1/1.jpg"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "the folder nowhere cannot be read"),
        (["."], "has 0 folders with an image that can be read, but needs two or more"),
        (["FACES", "--out", "nowhere"], "nowhere/train.txt cannot be written, because nowhere is not a folder"),
    ],
)
def test_folders_that_cannot_be_listed_are_refused(tree, tmp_path, monkeypatch, arguments, sentence):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    result = list_faces(*[str(tree) if a == "FACES" else a for a in arguments])
    assert result.returncode == 1 and sentence in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize("kind", [".jpg", ".png", ".bmp"])
def test_cut_off_images_are_refused_by_name(tmp_path, kind):
    path = tmp_path / f"image{kind}"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (60, 60, 3), np.uint8))
    whole = path.read_bytes()
    assert images.read_image(path).shape == (60, 60, 3)
    for share in (0.3, 0.9, 0.995):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(InputError, match=f"image{kind} is"):
            images.read_image(path)


JPEG_KINDS = {
    "baseline": [],
    "progressive": [cv2.IMWRITE_JPEG_PROGRESSIVE, 1],
    "restarts": [cv2.IMWRITE_JPEG_RST_INTERVAL, 1],
    "thumbnail": [],
    "fill bytes": [],
}


def jpeg(kind):
    """A JPEG of 40 x 40, and its pixels."""
    image = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    content = cv2.imencode(".jpg", image, JPEG_KINDS[kind])[1].tobytes()
    if kind == "thumbnail":  # a whole JPEG inside a segment that decoders skip
        small = cv2.imencode(".jpg", image[:8, :8])[1].tobytes()
        content = content[:2] + b"\xff\xe1" + (len(small) + 2).to_bytes(2, "big") + small + content[2:]
    if kind == "fill bytes":  # any number of 0xff may stand before a marker
        content = content[:2] + b"\xff\xff" + content[2:-2] + b"\xff\xff" + content[-2:]
    return content, cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)


def appended():
    """What stands behind the end marker: a second picture, one that is cut off, markers, and 200 times random bytes."""
    yield from (b"", b"\n", b"\xff", b"\xff\xda", b"\xff\xd8", jpeg("baseline")[0], jpeg("progressive")[0][:500])
    rng = np.random.default_rng(0)
    yield from (rng.bytes(size) for size in rng.integers(1, 200_000, 200))


@pytest.mark.parametrize("kind", JPEG_KINDS)
def test_whole_jpegs_are_read_whatever_lies_behind_their_end(kind):
    whole, pixels = jpeg(kind)
    for more in appended():
        np.testing.assert_array_equal(images.decode(whole + more, "x.jpg"), pixels)


@pytest.mark.parametrize("kind", JPEG_KINDS)
def test_jpegs_that_lack_their_last_bytes_are_refused_wherever_they_are_cut(kind):
    whole, _ = jpeg(kind)
    for length in range(2, len(whole)):
        with pytest.raises(InputError, match=r"x\.jpg is cut off"):
            images.decode(whole[:length], "x.jpg")
    for length in (700, len(whole) // 2, len(whole) - 2):  # nor does another picture behind it help
        with pytest.raises(InputError, match=r"x\.jpg is .*cut off"):
            images.decode(whole[:length] + jpeg("baseline")[0], "x.jpg")


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff\xd8", b"GIF89a"])
def test_what_is_no_image_is_refused_by_name(tmp_path, content):
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.jpg"):
        images.read_image(tmp_path / "x.jpg")


def test_grey_images_are_read_as_three_channels(tmp_path):
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    cv2.imwrite(str(tmp_path / "grey.png"), grey)
    np.testing.assert_array_equal(images.read_image(tmp_path / "grey.png"), np.repeat(grey[:, :, None], 3, axis=2))


def test_blob_is_bgr_minus_means():
    image = np.zeros((4, 4, 3), np.uint8)
    image[..., 0], image[..., 2] = 200, 50  # B and R
    blob = images.to_blob(image, images.Preprocessing(0, 4, [100, 10, 20]))
    assert blob.dtype == np.float32 and blob.shape == (3, 4, 4)
    np.testing.assert_array_equal(blob[:, 0, 0], [100, -10, 30])


RAMP = np.arange(100, dtype=np.uint8).reshape(10, 10, 1).repeat(3, axis=2)


@pytest.mark.parametrize(("crop", "side"), [(0, 10), (10, 10), (4, 4), (99, 10)])
def test_boxes_shift_within_the_jitter_and_mirror_half(crop, side):
    rng = np.random.default_rng(0)
    shifts, mirrored, start = set(), 0, (10 - side) // 2
    for _ in range(300):
        out = images.random_box(RAMP, crop, images.Augmentation(mirror=True, crop_jitter=2 / side), rng)[..., 0].astype(int)
        flipped = out[side // 2, side // 2] < out[side // 2, side // 2 - 1]
        mirrored += flipped
        out = out[:, ::-1] if flipped else out
        row, column = divmod(out[side // 2, side // 2], 10)
        shifts.add((row - start - side // 2, column - start - side // 2))
        rows, columns = (np.clip(np.arange(side) + middle - side // 2, 0, 9) for middle in (row, column))
        np.testing.assert_array_equal(out, rows[:, None] * 10 + columns)
    assert 110 < mirrored < 190
    assert {d for d, _ in shifts} == {-2, -1, 0, 1, 2} == {d for _, d in shifts}
    np.testing.assert_array_equal(
        images.random_box(RAMP, crop, images.Augmentation(), rng), images.central_box(RAMP, crop)
    )


def test_zooming_takes_smaller_and_larger_boxes_around_the_same_middle():
    rng = np.random.default_rng(0)
    sides = set()
    for _ in range(300):
        out = images.random_box(RAMP, 6, images.Augmentation(zoom_jitter=0.3), rng)
        assert out.shape[0] == out.shape[1] and abs(float(out.mean()) - RAMP.mean()) <= 5.5
        sides.add(len(out))
    assert sides == {4, 5, 6, 7, 8}  # 6 * exp(-0.3) to 6 * exp(0.3), rounded


def test_light_jitter_keeps_the_order_of_pixels_and_moves_mean_and_spread():
    pixels = np.linspace(60, 120, 48, dtype=np.float32).reshape(3, 4, 4)
    rng = np.random.default_rng(0)
    means, spreads = [], []
    for _ in range(300):
        out = images.random_light(pixels, images.Augmentation(light_jitter=0.3), rng)
        assert (np.diff(out.ravel()) > 0).all()
        means.append(out.mean() / pixels.mean())
        spreads.append(out.std() / pixels.std())
    for found in (means, spreads):
        assert 0.7 <= min(found) < 0.72 and 1.28 < max(found) <= 1.3001 and abs(np.mean(found) - 1) < 0.05
    bright = images.random_light(np.full((3, 4, 4), 250, np.float32), images.Augmentation(light_jitter=1), rng)
    assert bright.max() <= 255 and bright.min() >= 0
    np.testing.assert_array_equal(images.random_light(pixels, images.Augmentation(), rng), pixels)


def test_a_share_of_the_images_is_shown_in_grey():
    pixels = np.random.default_rng(0).uniform(0, 255, (3, 4, 4)).astype(np.float32)
    rng = np.random.default_rng(0)
    shown = [images.random_light(pixels, images.Augmentation(grey_share=0.25), rng) for _ in range(400)]
    grey = [out for out in shown if np.array_equal(out[0], out[1]) and np.array_equal(out[0], out[2])]
    assert 70 < len(grey) < 130
    colour = cv2.cvtColor(np.ascontiguousarray(pixels.transpose(1, 2, 0)), cv2.COLOR_BGR2GRAY)
    np.testing.assert_allclose(grey[0][0], colour, atol=0.01)
    assert all(np.array_equal(out, pixels) for out in shown if not np.array_equal(out[0], out[1]))


def test_turned_images_are_turned_by_up_to_the_jitter_around_the_middle_of_the_box():
    image = np.zeros((41, 41, 3), np.uint8)
    image[20, 4:37] = 255  # a line through the middle
    rng, angles = np.random.default_rng(0), []
    for _ in range(200):
        out = images.random_box(image, 0, images.Augmentation(rotation_jitter=15), rng)[..., 0]
        rows, columns = np.nonzero(out > 100)
        angles.append(np.degrees(np.arctan(np.polyfit(columns, rows, 1)[0])))
        assert out[20, 20] > 200
    assert -15.5 < min(angles) < -13 and 13 < max(angles) < 15.5 and abs(np.mean(angles)) < 2


def test_colour_jitter_changes_each_channel_by_a_factor():
    pixels = np.random.default_rng(0).uniform(20, 180, (3, 4, 4)).astype(np.float32)
    rng = np.random.default_rng(0)
    factors = []
    for _ in range(300):
        ratio = images.random_light(pixels, images.Augmentation(colour_jitter=0.2), rng) / pixels
        np.testing.assert_allclose(ratio, ratio[:, :1, :1] * np.ones((1, 4, 4)), rtol=1e-5)
        factors.append(ratio[:, 0, 0])
    factors = np.array(factors)
    assert 0.8 <= factors.min() < 0.81 and 1.19 < factors.max() <= 1.2001
    assert abs(np.corrcoef(factors.T)[np.triu_indices(3, 1)]).max() < 0.2


def test_coarse_images_keep_their_mean_and_lose_their_detail():
    pixels = np.random.default_rng(0).uniform(0, 255, (3, 64, 64)).astype(np.float32)
    rng = np.random.default_rng(0)
    shown = [images.random_light(pixels, images.Augmentation(coarse_share=0.3), rng) for _ in range(200)]
    coarse = [out for out in shown if not np.array_equal(out, pixels)]
    assert 40 < len(coarse) < 80
    for out in coarse:
        assert out.shape == pixels.shape and abs(out.mean() - pixels.mean()) < 3
        assert np.abs(np.diff(out)).mean() < 0.95 * np.abs(np.diff(pixels)).mean()


def test_rows_with_the_same_draw_show_the_same_pixels(project):
    listed = read_list(str(project / "list.txt"), str(project / "images"))
    batch = Batch(np.array([2, 2, 2]), np.array([0, 0, 1]))
    blob = images.load_batch(
        listed, batch, images.Preprocessing(0, 12, [0, 0, 0]), images.Augmentation(True, 0.3), np.random.default_rng
    )
    np.testing.assert_array_equal(blob[0], blob[1])
    assert not np.array_equal(blob[0], blob[2])


def test_config_fills_defaults_and_stages(project):
    write_config(project, BATCH_SIZE={"triplet": 24}, MAX_ITERS=7)
    loaded = config.load(str(project / "config.py"))
    assert loaded.stage("triplet")["BATCH_SIZE"] == 24 and loaded.stage("softmax")["BATCH_SIZE"] == 30
    assert loaded.stage("softmax")["MAX_ITERS"] == loaded.stage("triplet")["MAX_ITERS"] == 7
    assert loaded.stage("softmax")["BATCHES"] == "shuffled" and loaded["MARGIN"] == 0.2
    assert loaded["TRAIN_LIST"] == str(project / "list.txt")


def test_the_shipped_config_is_accepted():
    assert config.load(str(ROOT / "config.py"))["STAGES"] == ["softmax", "triplet"]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("MARGN = 0.2", "there is no setting MARGN: did you mean MARGIN"),
        ("MARGIN = 'big'", "MARGIN is 'big', but must be a number above 0"),
        ("MARGIN = -1", "MARGIN is -1"),
        ("MARGIN = 1e999", "MARGIN is inf"),
        ("BATCH_SIZE = True", "BATCH_SIZE is True, but must be a whole number"),
        ("BATCH_SIZE = {'softmax': 0}", "stage softmax: BATCH_SIZE is 0"),
        ("BATCH_SIZE = {'softmx': 3}", "in BATCH_SIZE: there is no setting softmx: did you mean softmax"),
        ("SELECTION = 'semihard'", "must be one of 'semi-hard'"),
        ("PIXEL_MEANS = [1, 2]", "three numbers"),
        ("MAX_ITERS = open('/etc/passwd').read()", "must be a plain value"),
        ("import os", "only lines of the form NAME = value"),
        ("MARGIN = ", "this is not Python"),
        ("MARGIN = 0.2\nMARGIN = 0.2", r"MARGIN is already set in line \d+: keep one"),
        ("MARGIN = 0.2; MARGIN = 0.2", r"MARGIN is already set in line \d+: keep one"),
        ("WEIGHTS = {'softmax': 'a', 'triplet': '', 'softmax': 'b'}", "WEIGHTS has 'softmax' 2 times: keep one"),
        ("SEED = " + "9" * 50, r"SEED is 9+, but must be a whole number from 0 to 2147483647"),
        ("SEED = 0x" + "f" * 5000, "SEED is a number of thousands of digits, but must be a whole number from 0 to 2147483647"),
        ("FREEZE = " + "3" * 4000, r"FREEZE is 3+\.\.\., but must be the name of a blob"),
        ("DEVICE = 99999999999", "DEVICE is 99999999999, but must be"),
    ],
)
def test_bad_settings_are_refused_by_name_and_line(project, line, sentence):
    name = line.partition(" ")[0]
    write_config(project, **{name: None} if name in TINY_CONFIG else {})
    first = len((project / "config.py").read_text().splitlines()) + 1
    with open(project / "config.py", "a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match=sentence) as caught:
        config.load(str(project / "config.py"))
    assert f"config.py, line {first + line.count(chr(10))}" in str(caught.value) and len(str(caught.value)) < 400


def test_a_config_may_begin_with_a_byte_order_mark(project):
    text = (project / "config.py").read_text()
    (project / "config.py").write_text(text, encoding="utf-8-sig")
    assert config.load(str(project / "config.py"))["TRAIN_LIST"] == str(project / "list.txt")


def test_a_missing_setting_is_named(project):
    write_config(project, IMAGEPATH=None)
    with pytest.raises(InputError, match="IMAGEPATH is missing"):
        config.load(str(project / "config.py"))
