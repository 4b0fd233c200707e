"""The tools that prepare lists, and that draw one."""

import subprocess
import sys

import cv2
import numpy as np

from tests.helpers import ROOT


def tool(name, *arguments):
    command = [sys.executable, str(ROOT / "tools" / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_faces_like_lfw_are_divided_into_people_to_train_on_and_pairs_of_others(tmp_path):
    for person, count in {"Ann": 2, "Bo": 2, "Cy": 2, "Di": 3, "Ed": 1}.items():
        (tmp_path / "faces" / person).mkdir(parents=True)
        for number in range(1, count + 1):
            (tmp_path / "faces" / person / f"{person}_{number:04d}.jpg").touch()
    (tmp_path / "pairs.txt").write_text("2 1\nDi 1 2\nDi 1 Di 3\nAnn 1 2\nBo 1 Ann 2\n")
    result = tool("lfw_halves.py", tmp_path / "faces", tmp_path / "pairs.txt", tmp_path / "out", 1)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "pairs.txt").read_text() == "1 1\nAnn 1 2\nBo 1 Ann 2\n"
    names = ["Cy/Cy_0001.jpg 0", "Cy/Cy_0002.jpg 0", "Di/Di_0001.jpg 1", "Di/Di_0002.jpg 1", "Di/Di_0003.jpg 1"]
    assert (tmp_path / "out" / "train.txt").read_text().splitlines() == names
    everyone = [line.split("/")[0] for line in (tmp_path / "out" / "all.txt").read_text().splitlines()]
    assert everyone == ["Ann"] * 2 + ["Bo"] * 2 + ["Cy"] * 2 + ["Di"] * 3


def test_a_contact_sheet_has_a_row_per_identity(tmp_path):
    colours = {"red": (0, 0, 250), "green": (0, 250, 0)}
    for name, colour in colours.items():
        for number in (0, 1):
            cv2.imwrite(str(tmp_path / f"{name}@{number}.png"), np.full((72, 72, 3), colour, np.uint8))
    (tmp_path / "list.txt").write_text("red@0.png 0\nred@1.png 0\ngreen@0.png 1\ngreen@1.png 1\n")
    result = tool("contact_sheet.py", tmp_path / "list.txt", tmp_path, tmp_path / "sheet.jpg")
    assert result.returncode == 0, result.stderr
    sheet = cv2.imread(str(tmp_path / "sheet.jpg")).astype(int)
    assert sheet.shape == (2 * (72 + 2), 2 * 72, 3)
    for row, colour in enumerate(colours.values()):
        assert np.abs(sheet[row * 74 + 10 : row * 74 + 60, 10:130] - colour).max() < 12
