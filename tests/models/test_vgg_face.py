"""models/vgg_face: its config from a fresh start, on images of 64 pixels so that it is quick."""

import csv
import math

from tests.helpers import ROOT, run_train


def test_vgg_face_from_scratch_does_not_explode(tmp_path):
    model = ROOT / "models" / "vgg_face"
    text = (model / "config.py").read_text().replace("'../../", f"'{ROOT}/")
    for name in ("train.prototxt", "solver.prototxt", "deploy.prototxt"):
        text = text.replace(f"'{name}'", f"'{model / name}'")
    changes = {"RUN_FOLDER": "run", "DEPLOY": "", "HELD_OUT_LIST": "", "IMAGE_SIZE": 64, "BATCH_SIZE": 8,
               "MAX_ITERS": 4, "DEVICE": "cpu"}  # fmt: skip
    lines = [line for line in text.splitlines() if line.partition(" = ")[0] not in changes]
    (tmp_path / "config.py").write_text("\n".join(lines + [f"{name} = {value!r}" for name, value in changes.items()]))
    result = run_train(tmp_path, "--stage", "softmax")
    assert result.returncode == 0, result.stderr
    with open(tmp_path / "run" / "softmax_log.csv") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    labels = {line.split()[1] for line in (ROOT / "data" / "train.txt").read_text().splitlines()}
    assert len(losses) == 4 and max(losses) < 1.25 * math.log(len(labels))
