"""A page on which a person decides about suspects, each beside the two identities that it may show."""

import base64
import hashlib
import os
import shlex
from collections.abc import Mapping

import cv2
import jinja2
import numpy as np
from markupsafe import Markup

from tripletloss.base.errors import InputError
from tripletloss.base.files import digest, short, write_whole
from tripletloss.data.cleaning import cleaned_path
from tripletloss.data.images import read_image
from tripletloss.data.lists import ImageList
from tripletloss.evaluation.suspects import Suspicion

SIDE = 112  # pixels of a thumbnail's longer side
EACH = 4  # pictures of an identity


def thumbnail(path: str) -> str:
    """An image file as a data URI, a JPEG of at most SIDE pixels per side; '' if it cannot be read."""
    try:
        image = read_image(path)
    except InputError:
        return ""
    scale = min(1, SIDE / max(image.shape[:2]))
    size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    _, content = cv2.imencode(".jpg", cv2.resize(image, size, interpolation=cv2.INTER_AREA))
    return "data:image/jpeg;base64," + base64.b64encode(content.tobytes()).decode()


def write(
    path: str, images: ImageList, found: Suspicion, chosen: np.ndarray, who: Mapping[int, str]
) -> None:  # fmt: skip
    """Write the page. chosen: the suspects' numbers, (K,); who: of identities_of_labels(). Raises InputError."""
    rows = []
    for i in chosen.tolist():
        mine, other = int(images.labels[i]), int(found.nearest[i])
        groups = [
            [j for j in np.flatnonzero(images.labels == label).tolist() if j != i][:EACH] for label in (mine, other)
        ]
        rows.append({
            "image": images.names[i], "other": other, "score": float(found.score[i]),
            "picture": thumbnail(images.path(i)),
            "groups": [(f"{label} {who[label]}".rstrip(), [(images.names[j], thumbnail(images.path(j))) for j in group])
                       for label, group in zip((mine, other), groups, strict=True)],
        })  # fmt: skip
    source = short(images.source)
    here = os.path.dirname(os.path.abspath(__file__))
    with open(os.path.join(here, "review.js"), encoding="utf-8") as file:
        script = file.read()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here), autoescape=True, undefined=jinja2.StrictUndefined
    )
    text = environment.get_template("review.html").render(
        rows=rows, source=source, quoted=shlex.quote(source), cleaned=cleaned_path(source),
        script=Markup(script),
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data={"list": images.source, "sha256": digest(images.source),
              "suspects": [{name: row[name] for name in ("image", "other")} for row in rows]},
    )  # fmt: skip
    try:
        write_whole(path, text.encode("utf-8", "replace"))
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}): choose another --review") from None
