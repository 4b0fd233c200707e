"""The page about a run: what it shows, what it leaves out, and that nothing in it can harm the run or its reader."""

import base64
import html
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

from tests.helpers import ROOT, TINY_NET, make_project, run_train, write_config
from tripletloss.core.pairs import Pairs, hardest_pairs
from tripletloss.data.lists import ImageList, read_list
from tripletloss.reporting import charts, inputs, page
from tripletloss.reporting import run as run_page
from tripletloss.reporting.folder import read_table, stages_of
from tripletloss.reporting.measured import measure
from tripletloss.reporting.pictures import Thumbnails

MEASURED = {"DEPLOY": "deploy.prototxt", "FEATURE": {"softmax": "fc7", "triplet": "fc9_1"}, "HELD_OUT_LIST": "held.txt"}
# What people are called in a stranger's list.
HOSTILE = [
    "<script>document.title = 'taken'<", "\"><img src=x onerror=\"document.title = 'taken'\">", "' onload='alert(1)",
    "&lt;b&gt;&amp;", "javascript:alert(1)", "{{ 7 * 7 }}",
]  # fmt: skip


def measured_project(folder):
    """The tiny project with a deploy net and held-out people, who have HOSTILE names."""
    make_project(folder)
    trunk = TINY_NET[TINY_NET.index('layer {\n  name: "conv1"') : TINY_NET.index('layer {\n  name: "fc9"')]
    head = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 12 dim: 12 } } }\n'
    tail = 'layer { name: "fc9_1" type: "InnerProduct" bottom: "fc7" top: "fc9_1" inner_product_param { num_output: 8 } }\n'
    (folder / "deploy.prototxt").write_text(head + trunk + tail)
    lines = []
    for (label, name), number in itertools.product(enumerate(HOSTILE), range(4)):
        ending = "/script>" if name.endswith("<") else ""  # a folder, as a name has no slash
        path = folder / "images" / f"{name}{ending}@{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        shutil.copy(folder / "images" / f"person{label}@{number}.jpg", path)
        lines.append(f"{name}{ending}@{number}.jpg {label}\n")
    (folder / "held.txt").write_text("".join(lines))
    write_config(folder, **MEASURED)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of both stages, its folder, and what train.py printed."""
    project = measured_project(tmp_path_factory.mktemp("finished"))
    result = run_train(project)
    assert result.returncode == 0, result.stderr
    return project, project / "run", result.stdout


def text_of(path):
    return path.read_text(encoding="utf-8")


def pictures_of(text):
    """The pictures in a page, decoded."""
    found = re.findall(r'src="data:image/jpeg;base64,([^"]*)"', text)
    return [cv2.imdecode(np.frombuffer(base64.b64decode(one), np.uint8), cv2.IMREAD_COLOR) for one in found]


def report(folder, *arguments):
    command = [sys.executable, "-m", "tripletloss.report", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder.parent, timeout=120)


def test_a_run_ends_with_the_path_of_its_page(finished):
    _, folder, said = finished
    assert re.fullmatch(r"report     run/report\.html \([\d.]+ kB\)", said.splitlines()[-1])
    assert (folder / "report.html").read_bytes().startswith(page.MADE_BY)


def test_the_verdict_is_the_one_on_the_console(finished):
    _, folder, said = finished
    weights, feature, value = re.search(r"^best       (\S+), (\w+): AUC (\S+) on", said, re.MULTILINE).groups()
    text = text_of(folder / "report.html")
    assert f"<code>{weights}</code>, feature <code>{feature}</code>" in text
    assert f"AUC is {float(value):.3f}" in text
    following = re.search(r"^next       (.*)$", said, re.MULTILINE)[1]
    assert html.escape(following, quote=False) in text and "python " in text
    assert re.search(r"<code>python \S*train\.py --config \S*config\.py</code>", text)


def test_every_picture_decodes_and_there_are_as_many_as_the_lists_give(finished):
    _, folder, _ = finished
    text = text_of(folder / "report.html")
    pictures = pictures_of(text)
    assert all(picture is not None and picture.size for picture in pictures)
    batch = text[text.index("As the net saw it") : text.index('id="curves"')]
    assert len(pictures_of(batch)) == 2 * 12  # the whole mini-batch of 12, as the net saw it and as files
    hard = text[text.index('id="pairs"') : text.index('id="groups"')]
    assert len(pictures_of(hard)) == 2 * (20 + 20)


def test_the_mini_batch_is_what_the_net_got(finished):
    caffe = pytest.importorskip("caffe")
    _project, folder, _ = finished
    net = caffe.Net(str(folder / "softmax_train.prototxt"), caffe.TRAIN)
    net.forward()
    means = np.array([102.9801, 115.9465, 122.7717])[:, None, None]
    wanted = np.clip(net.blobs["data"].data + means, 0, 255).transpose(0, 2, 3, 1)
    shown = inputs.batch_of(stages_of(str(folder)), Thumbnails())
    labels = net.blobs["labels"].data.astype(int)
    for one, pixels, label in zip(shown.seen, wanted, labels, strict=True):
        assert one.file.identity == f"person{label}"
        [found] = pictures_of(f'src="{one.net}"')
        assert np.abs(found.astype(float) - pixels).mean() < 8  # by JPEG, of noise
    assert "The first mini-batch of the softmax stage, with MIRROR." in shown.note


def test_names_from_a_stranger_are_text(finished):
    _, folder, _ = finished
    text = text_of(folder / "report.html")
    assert text.count("<script>") == 1 and "<img src=x" not in text and "49" not in re.findall(r"title=\"(\d+)@", text)
    shown = html.unescape(text)
    for name in HOSTILE:
        assert name in shown


def test_the_page_is_written_again_from_what_the_run_kept(finished):
    _, folder, _ = finished
    before = re.sub(r"Written by .*", "", text_of(folder / "report.html"))
    result = report(folder)
    assert result.returncode == 0 and result.stdout.startswith("report     run/report.html ("), result.stderr
    assert "embedding" not in result.stderr  # nothing was embedded again
    assert re.sub(r"Written by .*", "", text_of(folder / "report.html")) == before


def test_a_run_whose_outcome_is_damaged_is_measured_again(finished, tmp_path):
    _, folder, said = finished
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    (copy / "outcome.npz").write_bytes(b"PK")
    result = report(copy)
    assert result.returncode == 0 and "embedding" in result.stderr, result.stderr
    value = re.search(r"^best .*: AUC (\S+) on", said, re.MULTILINE)[1]
    assert f"AUC is {float(value):.3f}" in text_of(copy / "report.html")


def test_a_run_that_has_one_stage_so_far_says_what_is_missing(tmp_path):
    project = measured_project(tmp_path)
    assert run_train(project, "--stage", "softmax").returncode == 0
    text = text_of(project / "run" / "report.html")
    assert "softmax stage, 4 iterations" in text and "triplet stage, not begun" in text
    assert "<code>python train.py --config" not in text  # nothing to resume: the softmax stage is complete
    for name in ("outcome.json", "outcome.npz"):
        (project / "run" / name).unlink()
    assert "no verdict yet" in page.render(run_page.gather(str(project / "run"))).decode()
    assert report(project / "run").returncode == 0
    assert "feature <code>fc7</code>" in text_of(project / "run" / "report.html")


def test_a_run_without_held_out_images_says_so(project):
    result = run_train(project)
    assert result.returncode == 0 and result.stdout.splitlines()[-1].startswith("report     run/report.html"), result.stderr
    text = text_of(project / "run" / "report.html")
    assert "Nothing was measured: HELD_OUT_LIST names no list" in text
    assert "There is nothing to show without a HELD_OUT_LIST." in text
    assert text.count("<svg") >= 4 and len(pictures_of(text)) == 24
    assert report(project / "run").returncode == 0


def test_a_page_that_cannot_be_written_costs_a_line_and_nothing_else(project):
    (project / "run").mkdir()
    (project / "run" / "report.html").write_text("my own notes")
    result = run_train(project)
    assert result.returncode == 0 and not re.search("Traceback", result.stderr)
    last = result.stdout.splitlines()[-1]
    assert last == f"report     not written: {project}/run/report.html is not a page of this package, so it is not replaced: move it away"
    assert text_of(project / "run" / "report.html") == "my own notes"
    assert (project / "run" / "triplet_iter_4.caffemodel").exists()
    refused = report(project / "run")
    assert refused.returncode == 1 and refused.stderr.startswith("tripletloss.report: ") and "move it away" in refused.stderr


def test_whatever_fails_in_a_page_is_one_line(finished, tmp_path, monkeypatch):
    _, folder, _ = finished

    def fail(*ignored, **also):
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr(charts, "curve", fail)
    assert page.attempt(lambda: run_page.write(str(folder))) == "report     not written: ZeroDivisionError: division by zero"
    monkeypatch.undo()
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    (copy / "report.html").unlink()
    (copy / "report.html").mkdir()
    line = page.attempt(lambda: run_page.write(str(copy)))
    assert line.startswith("report     not written: ") and "move it away" in line


@pytest.mark.parametrize("damage", [b"", b"{", b'{"cached": true}', b"[]", b'{"cached": false, "MAX_ITERS": "<b>"}'])
def test_a_folder_that_is_no_run_is_refused_in_a_sentence(tmp_path, damage):
    (tmp_path / "run").mkdir()
    assert "has no settings of a stage" in report(tmp_path / "run").stderr
    (tmp_path / "run" / "softmax_settings.json").write_bytes(damage)
    result = report(tmp_path / "run")
    assert result.returncode == 1 and "softmax_settings.json is damaged" in result.stderr and "Traceback" not in result.stderr


def test_images_that_are_gone_are_named(finished, tmp_path):
    project, _folder, _ = finished
    held_out = read_list(str(project / "held.txt"), str(project / "images"))
    rows = np.random.default_rng(0).normal(size=(24, 4))
    thumbnails = Thumbnails()
    gone = ImageList(held_out.source, str(tmp_path), held_out.names, held_out.labels)
    found = measure({"after": rows}, gone, thumbnails)
    text = page.render(page.Page("a", "b", measured=found, lost=thumbnails.lost)).decode()
    assert "cannot be read" in text and not pictures_of(text) and len(thumbnails.lost) == len(set(thumbnails.lost)) > 5


def test_a_page_of_noise_is_small_enough(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(40), 12)
    names = [f"person{label}@{number}.png" for number, label in enumerate(labels)]
    for name in names:
        cv2.imwrite(str(tmp_path / name), rng.integers(0, 255, (100, 100, 3), np.uint8))
    rows = rng.normal(size=(len(labels), 8))
    found = measure({"before": rows, "after": rows}, ImageList("list", str(tmp_path), names, labels), Thumbnails())
    assert len(found.nearest) == len(found.farthest) == 20 and len(found.suspects) == 10
    seen = [page.Seen(found.nearest[0].one.source, found.nearest[0].one)] * 24
    assert len(page.render(page.Page("a", "b", batch=page.Batch(seen, ""), measured=found))) < page.MOST_BYTES


def test_a_page_is_written_at_a_snapshot_if_there_is_time(finished):
    _, folder, _ = finished
    (folder / "report.html").unlink()
    pages = run_page.Ongoing(str(folder), "", "CPU", 1)
    pages.write()
    assert not (folder / "report.html").exists()
    pages.last -= 60
    pages.write()
    assert (folder / "report.html").exists() and 0 < pages.seconds < 20


def test_a_long_table_is_thinned_and_keeps_its_last_row(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("iteration,loss\n" + "".join(f"{n},{n / 2}\n" for n in range(1, 10_002)) + "10002,5")  # cut off
    path.write_text(path.read_text().rpartition(",")[0])
    table = read_table(str(path))
    assert table["iteration"][0] == 1 and table["iteration"][-1] == 10_001 and 1000 < len(table["iteration"]) <= 4001
    np.testing.assert_array_equal(table["loss"], table["iteration"] / 2)
    assert read_table(str(tmp_path / "none.csv")) == {}


@pytest.mark.parametrize("count", [1, 7, 10_000])
def test_the_hardest_pairs_are_those_of_a_plain_loop(count, monkeypatch):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 6, 40)
    rows = rng.normal(size=(40, 3)) + 5
    monkeypatch.setattr("tripletloss.core.distances.BLOCK_ENTRIES", 300)  # several blocks
    pairs = [(((rows[i] - rows[j]) ** 2).sum(), i, j) for i in range(40) for j in range(i + 1, 40)]
    near = sorted(one for one in pairs if labels[one[1]] != labels[one[2]])[:count]
    far = sorted((one for one in pairs if labels[one[1]] == labels[one[2]]), reverse=True)[:count]
    for found, wanted in zip(hardest_pairs(rows, labels, count), (near, far), strict=True):
        np.testing.assert_allclose(found.distances, [one[0] for one in wanted])
        assert list(zip(found.first, found.second, strict=True)) == [one[1:] for one in wanted]


def test_what_a_run_needs_for_its_page_is_installed_with_it():
    """Its template and its style are beside the modules, wherever the package is."""
    folder = os.path.dirname(page.__file__)
    listed = text_of(ROOT / "pyproject.toml")
    for name in os.listdir(folder):
        assert name.endswith((".py", ".pyc")) or name == "__pycache__" or f'"{name}"' in listed, name


def test_in_a_browser_the_page_has_no_fault_and_names_run_nothing(finished, browser):
    _, folder, _ = finished
    for width, dark in ((1280, False), (390, True)):
        browser.open(folder / "report.html", width=width, dark=dark)
        browser.check()
        seen = browser.driver.execute_script("return [document.title, document.body.innerText, document.links.length]")
        assert seen[0] == "run" and seen[2] > 5
        assert all(name in seen[1] for name in HOSTILE)
        assert browser.driver.execute_script("return [...document.links].every(a => a.getAttribute('href').startsWith('#'))")


def test_in_a_browser_a_command_is_copied_by_a_click(finished, browser):
    _, folder, said = finished
    browser.open(folder / "report.html")
    following = re.search(r"^next       (.*)$", said, re.MULTILINE)[1]
    lines = browser.driver.find_elements("css selector", ".line")
    [line] = [line for line in lines if line.find_element("tag name", "code").text == following]
    button = line.find_element("tag name", "button")
    browser.driver.execute_script("delete Navigator.prototype.clipboard")  # as where a page has no right to it
    assert button.text == "copy"
    button.click()
    assert button.text == "copied"
    browser.check()


def test_in_a_browser_no_other_script_runs(finished, browser):
    _, folder, _ = finished
    browser.open(folder / "report.html")
    browser.driver.execute_script(
        "const one = document.createElement('script'); one.textContent = 'document.title = 1'; document.body.append(one);"
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"document.title = 2\">')"
    )
    time.sleep(0.2)
    assert browser.driver.title == "run"


def test_without_scripts_nothing_is_missing_but_the_buttons(finished):
    _, folder, _ = finished
    text = text_of(folder / "report.html")
    assert text.count("<button") == text.count('<button class="copy" type="button" hidden>') == text.count('<div class="line">') > 4


def test_evaluate_writes_a_page_of_its_figures(finished, browser):
    project, folder, _ = finished
    for more, name in (([], "figures"), (["--compare"], "compared")):
        weights = [str(folder / "triplet_iter_4.caffemodel"), "--config", str(project / "config.py")]
        command = [sys.executable, "-m", "tripletloss.evaluate", *weights, *more, "--out", name]
        result = subprocess.run(command, capture_output=True, text=True, cwd=project, timeout=120)
        assert result.returncode == 0 and result.stdout.endswith(f"report     {name}/report.html\n"), result.stderr
        browser.open(project / name / "report.html", width=390)
        browser.check()
        about = json.loads((project / name / "report.json").read_text())
        auc = about["features"]["fc9_1"]["AUC"]["value"] if more else about["AUC"]["value"]
        text = browser.driver.execute_script("return document.body.innerText")
        assert f"{auc:.4f}" in text and f"python -m tripletloss.evaluate {weights[0]}" in text
        assert (browser.driver.execute_script("return document.images.length") == 0) == bool(more)


def test_a_pairs_file_has_its_own_hardest_pairs_and_no_groups():
    labels, rows = np.repeat([0, 1], 3), np.array([[0.0], [1], [5], [3], [10], [11]])
    pairs = Pairs(np.array([0, 0, 3, 1, 2]), np.array([1, 2, 4, 3, 3]), np.array([True, True, True, False, False]))
    images = ImageList("list", "/nowhere", [f"p{label}@{n}.jpg" for n, label in enumerate(labels)], labels)
    found = measure({"after": rows}, images, Thumbnails(), pairs)
    assert [one.distance for one in found.farthest] == [49, 25, 1] and [one.distance for one in found.nearest] == [4, 4]
    assert "name a list with --list" in found.groups and found.suspects == found.groups
    text = page.render(page.Page("a", "b", measured=found)).decode()
    assert "Among the pairs of the pairs file." in text and text.count("name a list with --list") == 2


def test_the_outcome_is_plain_values(finished):
    _, folder, _ = finished
    about = json.loads((folder / "outcome.json").read_text())
    assert about["candidates"][about["best"]]["weights"].startswith(str(folder))
    with np.load(folder / "outcome.npz") as arrays:
        assert set(arrays) >= {"best", "names", "labels"} and arrays["best"].shape[0] == len(arrays["labels"]) == 24
