"""The arguments that commands share: which images are embedded, which net embeds them, and how. Imports no Caffe."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from typing import Any

from tripletloss import config
from tripletloss.base.errors import InputError
from tripletloss.data.folders import check_cut, list_folder
from tripletloss.data.lists import ImageList, read_list


def add_weights(parser: ArgumentParser) -> None:
    """Add the argument that names weights."""
    parser.add_argument("weights", metavar="WEIGHTS", help="a .caffemodel or .caffemodel.h5 of this project's")


def add_net_arguments(parser: ArgumentParser) -> None:
    """Add the arguments that say which net embeds images, and how."""
    config.add_argument(parser)
    parser.add_argument(
        "--feature", metavar="BLOB", default="", help="blob of the deploy net (default: FEATURE of the triplet stage)"
    )
    parser.add_argument(
        "--crop", metavar="PIXELS", type=int, help="side of the central square to take, in pixels (default: CROP)"
    )
    parser.add_argument("--mirrored", action="store_true", help="average each embedding with that of the mirror image")


def add_arguments(parser: ArgumentParser, default_list: str = "HELD_OUT_LIST") -> None:
    """Add the arguments that say which images are embedded, which net embeds them, and how.

    default_list: the setting whose list is used if the arguments name neither a list nor a folder.
    """
    parser.set_defaults(default_list=default_list)
    add_net_arguments(parser)
    parser.add_argument("--list", metavar="FILE", help=f"a list file (default: {default_list})")
    parser.add_argument("--images", metavar="FOLDER", help="folder of the images (default: IMAGEPATH)")
    config.add_modules(parser)


def settings_of(arguments: Namespace) -> dict[str, Any]:
    """The settings of the triplet stage, with the changes that the arguments make. Raises InputError."""
    config.say_which(arguments)
    settings = config.load(arguments.config, vars(arguments).get("allow_module", ())).stage("triplet")
    if arguments.crop is not None:
        config.check_value("CROP", arguments.crop, "--crop")
        settings["CROP"] = arguments.crop
    settings["FEATURE"] = arguments.feature or settings["FEATURE"]
    return settings


def images_of(arguments: Namespace, settings: Mapping[str, Any]) -> ImageList:
    """The images of --list, or else all images in the folder --images, or else those of the command's default list.

    Raises InputError if no images are named, or if the list or the folder cannot be read.
    """
    check_cut(arguments.images or settings["IMAGEPATH"], settings)
    if arguments.images and not arguments.list:
        return list_folder(arguments.images)
    source = arguments.list or settings[arguments.default_list]
    if not source:
        raise InputError("there are no images: name a list with --list, or a folder with --images")
    config.need_files(
        settings, *([] if arguments.images else ["IMAGEPATH"]), *([] if arguments.list else [arguments.default_list])
    )
    return read_list(source, arguments.images or settings["IMAGEPATH"])


def inputs_of(
    arguments: Namespace, settings: Mapping[str, Any], images: ImageList | None = None
) -> Iterator[str | None]:  # fmt: skip
    """Yield the paths of all files and folders that a command reads; None stands for none. images: if it reads any."""
    named = vars(arguments)
    yield from (named.get(name) for name in ("weights", "source", "config", "list", "pairs", "images"))
    yield from config.paths(settings)
    yield from map(images.path, range(len(images.names))) if images else ()
