"""The faces of a folder of photos: what `python -m tripletloss.detect PHOTOS --out FACES` writes.

One face of each photo is turned upright and cut out, as a model takes them: see faces.py. FACES notes which model that
is, so that another one is not given them by mistake. FACES.csv has a row for each photo: which face was taken, which
others there are, or why there is none. FACES.jpg shows the photos with several faces, the most doubtful first, so that
a person can check them.

Until a run is complete, its work is kept in FACES.part and FACES.part.log. The same command resumes a run that was
stopped.
"""

import contextlib
import csv
import json
import os
import shutil
from collections.abc import Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from tripletloss.base.errors import InputError
from tripletloss.base.files import files_in, publish_folder, whole_files
from tripletloss.base.outputs import check_folder, check_outputs, distinct
from tripletloss.core.alignment import TEMPLATES
from tripletloss.data import montage
from tripletloss.data.folders import CUT_FOR, list_folder
from tripletloss.data.images import read_image
from tripletloss.data.lists import ImageList
from tripletloss.deploy.faces import Detector, Face, cut, weigh

NO_FACE = "no face found"
SHOWN_PHOTOS, SHOWN_FACES = 60, 8  # on the sheet, and of one photo
SAID = 10  # photos without a face that are named on the terminal
COLUMNS = ["photo", "face", "faces", "score", "other_scores", "rival", "x", "y", "width", "height", "left_out"]


class Seen(NamedTuple):
    """What was found in a photo, as the log keeps it."""

    photo: str  # its name in the folder
    state: list[int]  # of state_of(), by which a changed photo is noticed
    face: str  # the name of the file that was cut out of it, or ''
    faces: list[list]  # [box, points, score] of each Face; the first one was taken
    rival: float  # the second face's weight as a share of the first one's: near 1, it is doubtful which to take
    left_out: str  # why there is no face, or ''


class Work:
    """The folder that a run fills, and the log from which another run resumes it."""

    def __init__(self, out: str, about: dict[str, Any]) -> None:
        """Begin a run, or resume one whose `about` was the same. Raises InputError and OSError."""
        self.folder, self.path = f"{out}.part", f"{out}.part.log"
        self.seen: dict[str, Seen] = {}  # by photo
        if os.path.lexists(self.folder) and not os.path.exists(self.path):
            raise InputError(f"{self.folder} exists, but is not from a run that was stopped: move it away")
        with contextlib.suppress(OSError, ValueError, TypeError), open(self.path, encoding="utf-8") as log:
            if json.loads(next(log, "")) == about:
                for line in log:
                    seen = Seen(*json.loads(line))  # the last line may be cut off
                    self.seen[seen.photo] = seen
        if not self.seen:
            shutil.rmtree(self.folder, ignore_errors=True)
        # Written again, since a line may be cut off. If this run is stopped too, it computes again what is lost.
        self.log = open(self.path, "w", encoding="utf-8")
        self._add(about, *map(list, self.seen.values()))
        os.makedirs(self.folder, exist_ok=True)

    def resumed(self, photo: str, state: list[int], face: str) -> Seen | None:
        """What an earlier run found in a photo, or None if the photo has changed or its face is not there."""
        seen = self.seen.get(photo)
        if seen and (seen.state, seen.face or face) == (state, face) and (seen.left_out or self._is_whole(face)):
            return seen
        return None

    def _is_whole(self, face: str) -> bool:
        with contextlib.suppress(OSError), open(os.path.join(self.folder, face), "rb") as file:
            return file.read().endswith(b"\xff\xd9")
        return False

    def keep(self, seen: Seen, picture: np.ndarray | None) -> None:
        """Write the face cut out of a photo, if there is one, and then what was found. Raises OSError."""
        if picture is not None:
            path = os.path.join(self.folder, seen.face)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes())
        self.seen[seen.photo] = seen
        self._add(list(seen))

    def _add(self, *values: Any) -> None:
        self.log.writelines(json.dumps(value) + "\n" for value in values)
        self.log.flush()

    def publish(self, out: str, faces: list[str], model: str, force: bool) -> None:
        """Give the folder its name, with these files, a note of the model and no others. Raises OSError."""
        for name in files_in(self.folder) - set(faces):
            os.remove(os.path.join(self.folder, name))
        with open(os.path.join(self.folder, CUT_FOR), "w", encoding="utf-8") as file:
            file.write(f"{model}\n")
        publish_folder(self.folder, out, force)
        self.forget()

    def forget(self) -> None:
        """Remove the log and the folder of a run that is complete."""
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        os.remove(self.path)


def cut_faces(folder: str, out: str, model: str, size: int, pick: str = "best", force: bool = False) -> str:
    """Cut one face out of each photo in a folder, and write it, size x size pixels, into a new folder `out`.

    model: one of alignment.TEMPLATES; pick: as for weigh(); force: whether `out` may be replaced. Returns text for the
    terminal. Raises InputError.
    """
    out = os.path.normpath(out)
    photos = list_folder(folder)
    if os.path.join(os.path.realpath(out), "").startswith(os.path.join(os.path.realpath(folder), "")):
        raise InputError(f"{out} is in the folder of the photos: write elsewhere, or the faces become photos")
    check_folder(out, [folder], force)
    check_outputs([f"{out}.csv", f"{out}.jpg"], [], force)
    detector = Detector()
    try:
        work = Work(out, {"photos": os.path.realpath(folder), "model": model, "size": size, "pick": pick})
        found = look_through(photos, detector, work, size, pick, TEMPLATES[model])
        faces = [seen.face for seen in found if seen.face]
        if not faces:
            work.forget()
            raise InputError(f"no face was found in any photo of {folder}; of {found[0].photo}: {found[0].left_out}")
        several = sorted((seen for seen in found if len(seen.faces) > 1), key=lambda seen: -seen.rival)
        beside, name = os.path.split(out)
        with whole_files(beside or ".") as part:
            write_table(os.path.join(part, f"{name}.csv"), found, several)
            draw_several(os.path.join(part, f"{name}.jpg"), photos, several, TEMPLATES[model])
            work.publish(out, faces, model, force)
        if not several:
            with contextlib.suppress(FileNotFoundError):
                os.remove(f"{out}.jpg")  # of a run that this one replaces
    except OSError as error:
        raise InputError(
            f"{error.filename or out} cannot be written ({error.strerror}): make room; the same command resumes"
        ) from None
    return "\n".join(describe(out, photos, found, several))


def look_through(
    photos: ImageList, detector: Detector, work: Work, size: int, pick: str, template: np.ndarray
) -> list[Seen]:  # fmt: skip
    """Look for faces in all photos, and cut out those that are not there from an earlier run. Raises OSError."""
    found = []
    names = distinct([f"{os.path.splitext(name)[0]}.jpg" for name in photos.names])
    bar = tqdm(total=len(names), desc="faces", unit="photo", mininterval=0.5)
    try:
        with bar:
            for number, (photo, face) in enumerate(zip(photos.names, names, strict=True)):
                state = state_of(photos.path(number))
                seen = work.resumed(photo, state, face)
                if not seen:
                    seen, picture = look_at(photos.path(number), photo, state, face, detector, size, pick, template)
                    work.keep(seen, picture)
                found.append(seen)
                bar.update()
    except KeyboardInterrupt:
        sentence = f"stopped after {len(found)} of {len(names)} photos; the same command resumes"
        raise KeyboardInterrupt(sentence) from None
    return found


def state_of(path: str) -> list[int]:
    """A file's size in bytes and the time of its last change in nanoseconds; [] if it has gone."""
    try:
        found = os.stat(path)
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]


def look_at(
    path: str, photo: str, state: list[int], face: str, detector: Detector, size: int, pick: str, template: np.ndarray
) -> tuple[Seen, np.ndarray | None]:
    """What is found in one photo, and the face cut out of it, (size, size, 3) uint8, or None."""
    try:
        pixels = read_image(path)
    except InputError as error:
        return Seen(photo, state, "", [], 0.0, str(error)), None
    faces = detector.find(pixels)
    if not faces:
        return Seen(photo, state, "", [], 0.0, NO_FACE), None
    weights = weigh(faces, pixels.shape, pick)
    order = np.argsort(-weights, kind="stable")
    rival = float(weights[order[1]] / max(weights[order[0]], 1e-30)) if len(faces) > 1 else 0.0
    picture = cut(pixels, detector.find_upright(pixels, faces[order[0]]), size, template)
    kept = [[faces[i].box.round(1).tolist(), faces[i].points.round(1).tolist(), faces[i].score] for i in order]
    return Seen(photo, state, face, kept, rival, ""), picture


def write_table(path: str, found: list[Seen], several: list[Seen]) -> None:
    """Write a row for each photo: first those with several faces, then those without one. Raises OSError."""
    left_out = [seen for seen in found if seen.left_out]
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for seen in [*several, *left_out, *(seen for seen in found if len(seen.faces) == 1)]:
            scores = [f"{score:.2f}" for _, _, score in seen.faces]
            box = [round(number) for number in seen.faces[0][0]] if seen.faces else [""] * 4
            rival = f"{seen.rival:.2f}" if len(scores) > 1 else ""
            score, others = scores[0] if scores else "", " ".join(scores[1:])
            table.writerow([seen.photo, seen.face, len(scores), score, others, rival, *box, seen.left_out])


def draw_several(path: str, photos: ImageList, several: list[Seen], template: np.ndarray) -> None:
    """Draw the faces of each photo with several in a row, which begins with the one that was taken. Raises OSError."""
    rows = []
    for seen in several[:SHOWN_PHOTOS]:
        try:
            pixels = read_image(os.path.join(photos.folder, seen.photo))
        except InputError:
            continue  # it has gone in the meantime
        faces = [Face(*face) for face in seen.faces[:SHOWN_FACES]]
        taken, *others = [cut(pixels, np.array(face.points), montage.SIDE, template) for face in faces]
        rows.append(montage.Row(f"{seen.photo}: taken, and not", [[taken], others]))
    if rows:
        montage.draw(path, lambda picture: picture, rows)


def describe(out: str, photos: ImageList, found: list[Seen], several: list[Seen]) -> Iterator[str]:
    """Lines about a run of cut_faces()."""
    left_out = [seen for seen in found if seen.left_out]
    for seen in left_out[:SAID]:
        path = os.path.join(photos.folder, seen.photo)
        yield f"{NO_FACE} in {path}" if seen.left_out == NO_FACE else seen.left_out
    if len(left_out) > SAID:
        yield f"... {out}.csv lists all {len(left_out)} photos that are left out"
    yield f"{out}: {len(found) - len(left_out)} faces of {len(found)} photos; {out}.csv has a row for each photo"
    if several:
        yield f"{len(several)} photos have several faces: look at {out}.jpg, which begins with the most doubtful"
