"""train.py --tune: candidates are trained as a run trains, the rule of one standard error, and a run that follows it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.base.test_parallel import mpi_train, needs_mpi
from tests.helpers import ROOT, TINY_NET, make_project, refused, replace, run_train, weights, write_config
from tripletloss import config
from tripletloss.base.errors import InputError
from tripletloss.base.workers import Workers
from tripletloss.training import tuning
from tripletloss.training.candidates import Candidate, Job, part_of, train, with_features
from tripletloss.training.plan import make_plan
from tripletloss.training.stage import train_only

PEOPLE = 12
SETTINGS = {"STAGES": ["triplet"], "WEIGHTS": "run/softmax_iter_4.caffemodel", "RUN_FOLDER": "tuned", "FEATURE_CACHE": "cache",
            "BATCH_SIZE": {"softmax": 12, "triplet": 36}, "LEARNING_RATE": 0.3, "MARGIN": 0.3, "WEIGHT_DECAY": 0.05}  # fmt: skip


@pytest.fixture
def many(tmp_path):
    """The tiny project with 12 identities and the project's own residual, after a softmax stage; its net has a margin."""
    project = make_project(tmp_path)
    lines = (project / "list.txt").read_text().splitlines()
    for line in list(lines):
        name, label = line.split()
        lines.append(f"other{name} {int(label) + 6}")
        (project / "images" / f"other{name}").write_bytes((project / "images" / name).read_bytes()[:-2] + b"x\xff\xd9")
    (project / "list.txt").write_text("\n".join(lines) + "\n")
    section = (ROOT / "train.prototxt").read_text().partition("#== triplet loss")[2].partition("\n")[2]
    trunk = TINY_NET[: TINY_NET.index('layer {\n  name: "norm2"')].replace("num_output: 6", "")
    (project / "net.prototxt").write_text(trunk + section.replace("num_output: 256", "num_output: 16"))
    replace(project / "net.prototxt", 'layer: "TripletSelectLayer"', "layer: \"TripletSelectLayer\" param_str: \"'margin': 0.3\"")
    write_config(project, **{**SETTINGS, "STAGES": ["softmax"], "WEIGHTS": "", "RUN_FOLDER": "run"})
    assert run_train(project).returncode == 0
    write_config(project, **SETTINGS)
    return project


def plan_of(project, folder):
    write_config(project, **SETTINGS, MIRROR=True)
    (project / folder).mkdir()
    settings = config.load(str(project / "config.py")).changed({"RUN_FOLDER": str(project / folder)})
    return with_features(make_plan(settings, "triplet", None))[0]


def choice(project, folder="tuned"):
    return json.loads((project / folder / "triplet_tuned.json").read_text())


def test_the_run_follows_the_choice_and_records_it_and_the_same_choice_is_made_again(many):
    result = run_train(many, "--tune")
    assert result.returncode == 0, result.stderr
    about = choice(many)
    assert about["instead_of"] == {"WEIGHT_DECAY": 0.05, "MARGIN": 0.3, "SELECTION": "semi-hard"}
    tried = {(one["weight_decay"], one["margin"], one["selection"]) for one in about["candidates"]}
    assert tried == {(decay, 0.3, how) for decay in tuning.DECAYS for how in tuning.SELECTIONS}  # the net has the margin
    assert tuple(about["chosen"][name] for name in tuning.TUNED) in tried
    recorded = json.loads((many / "tuned" / "triplet_settings.json").read_text())
    assert {name: recorded[name] for name in tuning.TUNED} == about["chosen"]
    assert f"weight decay {about['chosen']['WEIGHT_DECAY']:g}, seed 1" in result.stdout
    table = (many / "tuned" / "triplet_tuned.txt").read_text()
    assert table in result.stdout and table.count("±") == 3 * len(tried) + 1 and "chosen" in table
    assert not (many / "tuned" / ".tuning").exists()

    write_config(many, **{**SETTINGS, "RUN_FOLDER": "again"})
    assert run_train(many, "--tune").returncode == 0
    assert (many / "again" / "triplet_tuned.txt").read_text() == table

    write_config(many, **SETTINGS, MAX_ITERS=6)
    said = run_train(many, "--resume")
    assert said.returncode == 0 and "(chosen by --tune: " in said.stdout, said.stderr
    write_config(many, **{**SETTINGS, "SELECTION": "batch-all"}, MAX_ITERS=8)
    refused(run_train(many, "--resume"), "SELECTION is 'batch-all' in the config, but was 'semi-hard' when --tune chose")


@needs_mpi
def test_one_of_several_processes_tunes_and_all_follow_the_same_choice(many):
    assert run_train(many, "--tune").returncode == 0
    write_config(many, **{**SETTINGS, "RUN_FOLDER": "shares"})
    status, output, errors = mpi_train(many, "--tune")
    assert status == 0, errors
    assert choice(many, "shares")["chosen"] == choice(many)["chosen"]
    assert output.count("(chosen by --tune: ") == 1


def test_a_candidate_is_trained_as_a_run_is(many):
    write_config(many, **SETTINGS, MIRROR=True)
    assert run_train(many).returncode == 0
    theirs = weights(many / "tuned" / "triplet_iter_4.caffemodel", many / "tuned" / "triplet_train.prototxt")["fc9_1"][0]
    plan = plan_of(many, "aside")
    mine = train_only(plan).params["fc9_1"][0].data
    assert np.abs(mine).max() > 0 and (mine == theirs).all()

    everyone = part_of(plan, np.ones(len(plan.images.names), bool), str(many / "aside"))
    rows = np.load(everyone.settings["FEATURES"])[0]
    np.save(many / "rows.npy", rows)
    found = train(Job(everyone, Candidate(0.05, 0.3, "semi-hard", 0.3), str(many / "aside" / "0"), str(many / "rows.npy")))
    expected = rows + rows @ theirs.T
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)


def test_a_part_holds_the_features_of_its_own_images_and_fits_its_batches(many):
    plan = plan_of(many, "aside")
    which = plan.images.labels % 4 == 1
    part = part_of(plan, which, str(many / "aside"))
    whole, own = np.load(plan.settings["FEATURES"]), np.load(part.settings["FEATURES"])
    assert (own == whole[:, which]).all() and (part.images.labels == plan.images.labels[which]).all()
    assert part.settings["BATCH_SIZE"] == 3 * 3  # three identities, three images of each


def test_a_narrower_candidate_has_as_many_numbers_and_starts_from_components(many):
    plan = plan_of(many, "aside")
    part = part_of(plan, plan.images.labels < 9, str(many / "aside"))
    rows = np.load(part.settings["FEATURES"]).reshape(-1, 16)
    np.save(many / "rows.npy", rows)
    candidate = Candidate(0.05, 0.3, "semi-hard", 1e-9, 4)
    found = train(Job(part, candidate, str(many / "aside" / "0"), str(many / "rows.npy")))
    centred = rows - rows.mean(axis=0)
    directions = np.linalg.svd(centred.astype(np.float64), full_matrices=False)[2][:4]
    expected = rows @ directions.T
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert found.shape == (len(rows), 4)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-3)
    with pytest.raises(InputError, match="an embedding of 17 numbers cannot be made of 'norm2': take from 1 to its 16"):
        train(Job(part, candidate._replace(width=17), str(many / "aside" / "1"), str(many / "rows.npy")))


def test_widths_are_compared_and_the_choice_says_what_to_edit(many):
    result = run_train(many, "--tune", "--widths", "2")
    assert result.returncode == 0, result.stderr
    assert choice(many)["width"] == 2 and "| width " in result.stdout
    assert "width      2 numbers of norm2: edit the projection of NET and DEPLOY" in result.stdout


def candidate(decay):
    return Candidate(decay, 0.2, "semi-hard", 0.3)


def test_the_simplest_within_one_standard_error_of_the_best_is_chosen():
    """By hand: behind the best by 0.02 +- 0.0082 (no), by 0.01 +- 0.0129 (yes), by nothing (the best itself)."""
    best = np.array([0.5, 0.6, 0.7, 0.8])
    far, near = best - [0.0, 0.02, 0.02, 0.04], best - [-0.02, 0.0, 0.02, 0.04]
    named = [candidate(decay) for decay in (0.3, 0.2, 0.1, 0.05)]
    stopped = np.array([0.9, 0.9, np.nan, 0.9])
    table = tuning.choose(named, "AUC", np.array([stopped, far, near, best]), "norm2", best - 0.1)
    assert (table.best, table.chosen) == (3, 2)
    text = tuning.describe(table).splitlines()
    assert [word in text[2] for word in ("0.05", "best", "0.6500 ± 0.0645", "+0.1000 ± 0.0000")] == [True] * 4
    assert "chosen" in text[3] and "-0.0100 ± 0.0129" in text[3] and "stopped" in text[5]


def test_folds_divide_identities_and_each_has_some_with_two_images():
    labels = np.repeat(np.arange(60), np.where(np.arange(60) < 50, 1, 3))  # ten of the sixty have more than one image
    folds = tuning.folds_of(labels, 1)
    assert set(folds) == set(range(tuning.FOLDS))
    for fold in range(tuning.FOLDS):
        inside, sizes = np.unique(labels[folds == fold], return_counts=True)
        assert not set(inside) & set(labels[folds != fold]) and len(inside) == 12 and (sizes > 1).sum() == 2
    assert (folds == tuning.folds_of(labels, 1)).all() and (folds != tuning.folds_of(labels, 2)).any()


def few(project):
    lines = (project / "list.txt").read_text().splitlines()
    (project / "list.txt").write_text("\n".join(lines[:36] + lines[36::4]) + "\n")


def test_what_cannot_be_tuned_is_refused_in_one_sentence(many):
    def tune(sentence, *arguments, **changes):
        write_config(many, **{**SETTINGS, **changes})
        refused(run_train(many, "--tune", *arguments), sentence)

    tune("the triplet stage has none, as FREEZE is '': set FREEZE, WEIGHTS and FEATURE_CACHE for it", FREEZE="")
    tune("the triplet stage has none, as FEATURE_CACHE is ''", FEATURE_CACHE="")
    tune("--tune chooses settings of the triplet stage, which is not to be trained", STAGES=["softmax"])
    tune("an embedding of 30 numbers cannot be made of 'norm2'", "--widths", "30")
    write_config(many, **SETTINGS)
    assert run_train(many).returncode == 0
    tune("already has snapshots of a triplet stage")
    refused(run_train(many, "--tune", "--resume"), "the triplet stage has begun without --tune, which is too late now")
    few(many)
    tune("takes 10 with two images or more, and " + str(many / "list.txt") + " has 9: add identities", RUN_FOLDER="new")


def test_a_damaged_choice_is_refused(many):
    (many / "tuned").mkdir()
    (many / "tuned" / "triplet_tuned.json").write_text('{"chosen": {}}')
    refused(run_train(many), "triplet_tuned.json is damaged: remove it, or choose again with --tune")


def test_ctrl_c_ends_a_tuning_and_its_programs_with_one_line(many):
    write_config(many, **SETTINGS, MAX_ITERS=100_000)
    process = subprocess.Popen([sys.executable, str(ROOT / "train.py"), "--config", str(many / "config.py"), "--tune"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
    deadline = time.monotonic() + 60
    while not list((many / "tuned").glob(".tuning/*_solver.prototxt")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    programs = [int(path.parts[2]) for path in Path("/proc").glob("[0-9]*/stat")
                if path.read_text().rpartition(")")[2].split()[1] == str(process.pid)]  # fmt: skip
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in said
    assert said.strip().splitlines()[-1].startswith("train.py: stopped at once")
    assert programs and not [number for number in programs if os.path.exists(f"/proc/{number}")]


def test_a_worker_program_that_dies_is_named_with_its_log(tmp_path):
    log = tmp_path / "log"
    with Workers("tripletloss.none", 1, str(log)) as workers, pytest.raises(InputError, match=f"a worker program failed: .*{log}"):
        list(workers.answers([1, 2, 3]))
