"""Lists of images for training: python -m tripletloss.dataset FOLDER. FOLDER has one folder of images per identity."""

import argparse
import os
import sys
from collections.abc import Mapping
from typing import Any

from tripletloss import config
from tripletloss.base import command
from tripletloss.base.errors import InputError
from tripletloss.base.files import write_all, write_whole
from tripletloss.base.outputs import add_force, check_outputs
from tripletloss.data import cleaning, folders
from tripletloss.data.lists import some

FOR_FOLDERS = ("out", "held_out", "enough", "seed", "config")  # options that do not go with --apply


def main() -> int:
    """Run python -m tripletloss.dataset. Returns the exit status."""
    parser = command.Parser(
        prog="python -m tripletloss.dataset",
        description="Write train.txt and held_out.txt for a folder that has one folder of images per identity.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="FOLDER/identity/image.jpg; with --apply, a list file")
    parser.add_argument(
        "--apply", metavar="DECISIONS.json", help="of suspects --review: write the list cleaned, beside the old one"
    )
    parser.add_argument("--out", default=".", help="where the two lists go (default: here)")
    add_force(parser)
    parser.add_argument(
        "--held-out", metavar="SHARE", type=float, default=0.2, help="of the identities, to measure on (default: 0.2)"
    )
    parser.add_argument(
        "--enough", type=int, default=5, metavar="IMAGES",
        help="images that an identity needs for the softmax stage; the triplet stage takes two (default: 5)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", metavar="N", type=int, default=0, help="seed of everything that is drawn at random (default: 0)"
    )
    parser.add_argument("--config", metavar="FILE", help="also write a config file to finetune on these lists")
    arguments = parser.parse_args(namespace=argparse.Namespace(**dict.fromkeys(FOR_FOLDERS)))
    given = [f"--{name.replace('_', '-')}" for name in FOR_FOLDERS if getattr(arguments, name) is not None]
    if arguments.apply and given:
        parser.error(f"--apply does not use {', '.join(given)}: it writes the cleaned list beside the old one")
    for name in FOR_FOLDERS:
        if getattr(arguments, name) is None:
            setattr(arguments, name, parser.get_default(name))
    if not 0 <= arguments.held_out < 1 or arguments.seed < 0 or arguments.enough < 1:
        parser.error("--held-out is a share from 0 to below 1, --seed a whole number from 0, and --enough one from 1")
    return command.run("tripletloss.dataset", lambda: print((clean if arguments.apply else run)(arguments)))


def clean(arguments: argparse.Namespace) -> str:
    """Write a list cleaned by decisions. Returns text for the terminal. Raises InputError."""
    source, out = arguments.folder, cleaning.cleaned_path(arguments.folder)
    check_outputs([out], [source, arguments.apply], arguments.force)
    images, counts, lost = cleaning.apply(arguments.apply, source)
    try:
        write_whole(out, images.text().encode())
    except OSError as error:
        raise InputError(f"{out} cannot be written ({error.strerror}): make room") from None
    numbering = "as before"
    if lost:
        one = len(lost) == 1
        numbering = (
            f"{len(lost)} {'identity has' if one else 'identities have'} no image left ({some(lost)}), so the larger "
            f"labels moved down, and nets for {source} do not fit"
        )
    return (
        f"{out}: {len(images.names)} images of {len(set(images.labels.tolist()))} identities; {counts['right']} "
        f"confirmed, {counts['other']} moved, {counts['drop']} dropped\nlabels: {numbering}"
    )


def run(arguments: argparse.Namespace) -> str:
    """Write the lists. Returns text for the terminal. Raises InputError."""
    train, triplet, measured = (
        os.path.normpath(os.path.join(arguments.out, name)) for name in ("train.txt", "triplet.txt", "held_out.txt")
    )
    outputs = [train, triplet, *([measured] if arguments.held_out else []), *filter(None, [arguments.config])]
    source = folders.config_for(arguments.folder)
    check_outputs(outputs, [source], arguments.force)
    found = folders.find_identities(arguments.folder)
    kept, held_out = folders.split_identities(found.identities, arguments.held_out, arguments.seed)
    by_stage = folders.lists_by_stage(found.identities, kept, arguments.enough)
    names = {train: by_stage[0]} if by_stage[0] == by_stage[1] else dict(zip((train, triplet), by_stage, strict=True))
    settings = folders.settings_for(
        arguments.folder, arguments.config, {"softmax": train, "triplet": list(names)[-1]},
        measured if held_out else "", len(by_stage[1]),
    )  # fmt: skip
    contents = {path: folders.list_text(found.identities, names[path], 0) for path in names}
    if held_out:
        contents[measured] = folders.list_text(found.identities, held_out, len(by_stage[1]))
    if arguments.config:
        contents[arguments.config] = config.copy_text(source, arguments.config, settings)
    try:
        write_all({path: text.encode() for path, text in contents.items()})
    except OSError as error:
        raise InputError(f"the lists cannot be written ({error.strerror}): make room, or write elsewhere") from None
    return "\n".join([*_about(found, names, held_out, arguments), *_next(arguments.config, settings, source)])


def _about(
    found: folders.Found, names: Mapping[str, list[str]], held_out: list[str], arguments: argparse.Namespace
) -> list[str]:
    """Lines about what was found and how it was divided. names: path of a list to train on -> its identities."""
    lines = [
        *(f"left out: {sentence}" for sentence in found.left_out),
        f"{sum(map(len, found.identities.values()))} images of {len(found.identities)} identities; left out: "
        f"{len(found.left_out)} images or links, {found.others} files with another suffix",
    ]
    for number, (path, of_list) in enumerate(names.items()):
        sizes = [len(found.identities[name]) for name in of_list]
        stage = ("for the softmax stage: ", "for the triplet stage: ")[number] if len(names) > 1 else ""
        lines.append(
            f"{os.path.basename(path)}: {stage}{sum(sizes)} images of {len(of_list)} identities, {min(sizes)} to "
            f"{max(sizes)} images each"
        )
    if len(names) > 1:
        lines.append(f"the softmax stage takes identities with {arguments.enough} images or more, see --enough")
    if held_out:
        images = sum(len(found.identities[name]) for name in held_out)
        lines.append(f"held_out.txt: {images} images of {len(held_out)} identities, to measure on")
    elif arguments.held_out:
        lines.append(
            f"no held_out.txt: measuring takes {folders.LEAST_HELD_OUT} identities with two images or more, and "
            f"training {folders.LEAST_KEPT} others"
        )
    return lines


def _next(config_file: str | None, settings: Mapping[str, Any], source: str) -> list[str]:
    """Lines about what to do with the lists."""
    if config_file:
        weights = config.load(source).stage("softmax")["WEIGHTS"]
        first = "" if os.path.exists(weights) else "make dlib-model, and "
        return [f"{config_file}: settings for these lists; next, {first}python train.py --config {config_file} --check"]
    where = "config.py" if source == folders.PROJECT_CONFIG else f"a copy of {os.path.relpath(source)}"
    return [f"Set these in {where}:", *(f"{name} = {value!r}" for name, value in settings.items())]


if __name__ == "__main__":
    sys.exit(main())
