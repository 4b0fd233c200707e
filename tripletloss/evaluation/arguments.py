"""The arguments that commands share: which images, and how they go through which net. Imports no Caffe."""

from tripletloss import config
from tripletloss.base.errors import InputError
from tripletloss.data.folders import list_folder
from tripletloss.data.lists import read_list


def add_net_arguments(parser):
    """The arguments that say how images go through which net."""
    config.add_argument(parser)
    parser.add_argument("--feature", default="", help="blob of the deploy net (default: FEATURE of the triplet stage)")
    parser.add_argument("--crop", type=int, help="side of the central square to take, in pixels (default: CROP)")


def add_arguments(parser, default_list="HELD_OUT_LIST"):
    """The arguments that say which images, and how they go through which net.

    default_list: the setting with the list that is taken where none is named.
    """
    parser.set_defaults(default_list=default_list)
    add_net_arguments(parser)
    parser.add_argument("--list", help=f"a list file (default: {default_list})")
    parser.add_argument("--images", help="folder of the images (default: IMAGEPATH)")
    parser.add_argument("--allow-module", action="append", default=[], help="a Python module that DEPLOY may run")
    parser.add_argument("--mirrored", action="store_true", help="average with the mirror image's embedding")


def settings_of(arguments):
    """Settings of the triplet stage, with what the arguments change; feature included. Raises InputError."""
    config.say_which(arguments)
    settings = config.load(arguments.config, vars(arguments).get("allow_module", ())).stage("triplet")
    if arguments.crop is not None:
        config.check_value("CROP", arguments.crop, "--crop")
        settings["CROP"] = arguments.crop
    settings["FEATURE"] = arguments.feature or settings["FEATURE"]
    return settings


def images_of(arguments, settings):
    """The images that the arguments name: of --list, of the command's default list, or all of the folder --images.

    Raises InputError if there are none, or something is wrong with them.
    """
    if arguments.images and not arguments.list:
        return list_folder(arguments.images)
    source = arguments.list or settings[arguments.default_list]
    if not source:
        raise InputError("there are no images: name a list with --list, or a folder with --images")
    config.need_files(
        settings, *([] if arguments.images else ["IMAGEPATH"]), *([] if arguments.list else [arguments.default_list])
    )
    return read_list(source, arguments.images or settings["IMAGEPATH"])


def inputs_of(arguments, settings, images=None):
    """Yields the paths of all that a command reads. images: ImageList, or None for none."""
    named = vars(arguments)
    yield from (named.get(name) for name in ("weights", "source", "config", "list", "pairs", "images"))
    yield from config.paths(settings)
    yield from map(images.path, range(len(images.names))) if images else ()
