"""The settings in config.py: names, types, defaults, and what they must be.

config.py is read, never executed: each line assigns one plain value to one name. A setting that may differ between
the stages has one value for both, or a dictionary by stage.
"""

import argparse
import ast
import difflib
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from tripletloss.base.command import launched
from tripletloss.base.errors import InputError
from tripletloss.base.files import read_file
from tripletloss.core.alignment import TEMPLATES
from tripletloss.core.sampling import BATCHES
from tripletloss.core.selection import STRATEGIES

MOST_BYTES = 2**20  # of a config file
STAGES = ("softmax", "triplet")
REQUIRED = object()
LARGEST = 2**31 - 1  # the largest whole number, as in Caffe
SHOWN_CHARACTERS = 60  # of a value in an error message
PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # the folder with train.py and its config.py


class Setting(NamedTuple):
    """One line of the schema."""

    accepts: Callable[[Any], bool]
    wants: str  # what the value must be, for error messages
    default: object = REQUIRED
    by_stage: bool = False
    is_path: bool = False
    may_change: bool = False  # when a run is resumed, as it does not affect what is learnt, or is meant to


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")


def _integer(least, default=REQUIRED, by_stage=False):
    def accepts(value):
        return isinstance(value, int) and not isinstance(value, bool) and least <= value <= LARGEST

    return Setting(accepts, f"a whole number from {least} to {LARGEST}", default, by_stage)


def _share(most):
    return Setting(lambda value: _is_number(value) and 0 <= value <= most, f"a number from 0 to {most}", 0.0)


def _text(wants, default=REQUIRED, by_stage=False, is_path=False):
    return Setting(lambda value: isinstance(value, str) and "\0" not in value, wants, default, by_stage, is_path)


def _path(default=REQUIRED, by_stage=False):
    def accepts(value):
        return isinstance(value, str) and value != "" and "\0" not in value

    return Setting(accepts, "a path in quotes", default, by_stage, is_path=True)


def _path_or_none(default="", by_stage=False):
    return _text("a path in quotes, or '' for none", default, by_stage, is_path=True)


def _choice(values, default, by_stage=False):
    return Setting(lambda value: value in values, "one of " + ", ".join(map(repr, values)), default, by_stage)


def _is_stages(value):
    return isinstance(value, list) and value in (["softmax"], ["triplet"], ["softmax", "triplet"])


def _is_means(value):
    return isinstance(value, list) and len(value) == 3 and all(_is_number(v) and 0 <= v <= 255 for v in value)


def _is_device(value):
    if isinstance(value, int) and not isinstance(value, bool):
        return 0 <= value <= LARGEST
    return value in ("auto", "cpu", "gpu")


def _may_change(setting: Setting) -> Setting:
    return setting._replace(may_change=True)


SCHEMA = {
    "NET": _path("train.prototxt"),
    "SOLVER": _path("solver.prototxt"),
    "DEPLOY": _path_or_none(),
    "IMAGEPATH": _path(),
    "TRAIN_LIST": _path(by_stage=True),
    "HELD_OUT_LIST": _path_or_none(),
    "RUN_FOLDER": _path("runs/train"),
    "STAGES": _may_change(Setting(_is_stages, "['softmax'], ['triplet'] or ['softmax', 'triplet']", list(STAGES))),
    "WEIGHTS": _path_or_none(by_stage=True),
    "START_FROM": _choice(("last", "best"), "last"),
    "FREEZE": _text("the name of a blob of the net, or '' for none", "", by_stage=True),
    "BATCHNORM": _choice(("batch", "stored"), "batch", by_stage=True),
    "FEATURE": _may_change(_text("the name of a blob of the deploy net", "", by_stage=True)),
    "CROP": _integer(0, 0),
    "ALIGNMENT": _may_change(_choice(tuple(TEMPLATES), "face997")),
    "IMAGE_SIZE": _integer(1, 224),
    "PIXEL_MEANS": Setting(_is_means, "three numbers from 0 to 255: [B, G, R]", [102.9801, 115.9465, 122.7717]),
    "MIRROR": Setting(lambda value: isinstance(value, bool), "True or False", True),
    "CROP_JITTER": _share(0.5),
    "ZOOM_JITTER": _share(0.5),
    "LIGHT_JITTER": _share(1),
    "GREY_SHARE": _share(1),
    "ROTATION_JITTER": _share(45),
    "COLOUR_JITTER": _share(1),
    "COARSE_SHARE": _share(1),
    "BROKEN_IMAGES": _may_change(_choice(("stop", "skip"), "stop")),
    "BATCHES": _choice(BATCHES, {"softmax": "shuffled", "triplet": "identities"}, by_stage=True),
    "BATCH_SIZE": _integer(1, 30, by_stage=True),
    "IMAGES_PER_IDENTITY": _integer(1, 5),
    "PASS_IMAGES": _integer(0, 0, by_stage=True),
    "COSINE_SCALE": Setting(lambda v: _is_number(v) and v > 0, "a number above 0", 24.0),
    "COSINE_MARGIN": Setting(lambda v: _is_number(v) and 0 <= v <= 1, "a number from 0 to 1 (a cosine)", 0.15),
    "MARGIN": Setting(lambda v: _is_number(v) and v > 0, "a number above 0 (a squared distance)", 0.2),
    "SELECTION": _choice(tuple(STRATEGIES), "semi-hard"),
    "GATHER": Setting(lambda value: isinstance(value, bool), "True or False", True),
    "MAX_ITERS": _may_change(_integer(1, 20000, by_stage=True)),
    "SNAPSHOT_ITERS": _may_change(_integer(1, 2000, by_stage=True)),
    "KEEP_SNAPSHOTS": _may_change(_integer(0, 5)),
    "LEARNING_RATE": Setting(lambda v: _is_number(v) and v > 0, "a number above 0", 0.001, by_stage=True),
    "WEIGHT_DECAY": Setting(
        lambda v: v is None or (_is_number(v) and v >= 0), "a number from 0, or None for that of SOLVER", None, True
    ),
    "WORKERS": _may_change(_integer(0, 2)),
    "DEVICE": _may_change(Setting(_is_device, "'auto', 'cpu', 'gpu', or the number of a GPU", "auto")),
    "SEED": _integer(0, 1),
    "FEATURE_CACHE": _path_or_none("runs/features"),
    "FEATURE_TYPE": _choice(("float32", "float16"), "float32"),
    "MINE_ITERS": _integer(0, 0),
    "POSITIVE_CAP": Setting(lambda v: _is_number(v) and v >= 0, "a squared distance, or 0 for none", 0.0),
    "TRAIN_LISTS": _may_change(Setting(lambda v: isinstance(v, list), "a list of paths")),
    "IDENTITIES": _may_change(_integer(1)),
    "FEATURES": _may_change(_path()),
    "MINED": _may_change(_path_or_none()),
    "BROKEN_LIST": _may_change(_path_or_none()),
    "RANK": _may_change(_integer(0, 0)),
    "RANKS": _may_change(_integer(1, 1)),
    "ALLOWED_MODULES": _may_change(Setting(lambda v: isinstance(v, list), "a list of names of Python modules", [])),
}
# Set by the commands, never in config.py: TRAIN_LIST of all STAGES; the number of identities in TRAIN_LIST; the files
# of features, of mined negatives and of broken images; the rank of this process, and the number of processes; the
# modules of --allow-module.
COUNTED = ("TRAIN_LISTS", "IDENTITIES", "FEATURES", "MINED", "BROKEN_LIST", "RANK", "RANKS", "ALLOWED_MODULES")


def default_of(name: str, stage: str) -> Any:
    """The default of a setting in a stage."""
    default = SCHEMA[name].default
    return default[stage] if SCHEMA[name].by_stage and isinstance(default, dict) else default


def check_value(name: str, value: Any, where: str) -> None:
    """Check one plain value against SCHEMA[name]. Raises InputError, with a message that begins with `where`."""
    if not SCHEMA[name].accepts(value):
        raise InputError(f"{where}: {name} is {_shown(value)}, but must be {SCHEMA[name].wants}")


def _shown(value):
    """A refused value as text, shortened if it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python does not print numbers of more than sys.get_int_max_str_digits() digits
        return "a number of thousands of digits"
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def unknown_name(name: str, known: Iterable[str], where: str) -> InputError:
    """The InputError for a name that is not among `known`, which suggests the nearest one that is."""
    known = sorted(known)
    nearest = difflib.get_close_matches(name, known, 1, 0.5)
    hint = f"did you mean {nearest[0]}?" if nearest else "the names are " + ", ".join(known)
    return InputError(f"{where}: there is no setting {name}: {hint}")


class Config:
    """The settings of a config file, checked, with defaults filled in and absolute paths."""

    def __init__(self, values: dict[str, Any], source: str) -> None:
        """values: for every name in SCHEMA; source: the file's path. Use load()."""
        self.values, self.source = values, source

    def __getitem__(self, name: str) -> Any:
        """The value of a setting that is the same in both stages."""
        return self.values[name]

    def stage(self, stage: str) -> dict[str, Any]:
        """The values of all settings in one stage, by name, and TRAIN_LISTS."""
        found = {
            name: value[stage] if SCHEMA[name].by_stage and isinstance(value, dict) else value
            for name, value in self.values.items()
        }
        lists = self["TRAIN_LIST"]
        own = [lists[stage] if isinstance(lists, dict) else lists for stage in self["STAGES"]]
        return {**found, "TRAIN_LISTS": list(dict.fromkeys(own))}

    def aside(self, folder: str, softmax_weights: str | None) -> "Config":
        """The same settings for a run in another folder.

        softmax_weights: the weights from which its triplet stage starts if WEIGHTS does not say, or None.
        """
        changes: dict[str, Any] = {"RUN_FOLDER": folder}
        softmax, triplet = (self.stage(stage)["WEIGHTS"] for stage in STAGES)
        if softmax_weights and not triplet:
            changes["WEIGHTS"] = {"softmax": softmax, "triplet": softmax_weights}
        return self.changed(changes)

    def changed(self, values: Mapping[str, Any]) -> "Config":
        """The same settings with some values changed."""
        return Config({**self.values, **values}, self.source)


def need_files(settings: Mapping[str, Any], *names: str) -> None:
    """Raise InputError if a path in one of these settings of a stage does not exist; '' is not a path."""
    for name in names:
        if settings[name] and not os.path.exists(settings[name]):
            raise InputError(
                f"{name} is {settings[name]}, which does not exist: correct it in the config file. Paths in it are "
                "relative to its folder"
            )


def paths(settings: Mapping[str, Any]) -> list[str]:
    """The paths in a stage's settings, without empty ones."""
    return [settings[name] for name in SCHEMA if SCHEMA[name].is_path and settings.get(name)] + settings["TRAIN_LISTS"]


def default_file() -> str:
    """The config file of train.py and the commands, if none is named."""
    return "config.py" if os.path.isfile("config.py") else os.path.join(PROJECT, "config.py")


def add_argument(parser: argparse.ArgumentParser) -> None:
    """Add the argument --config, which train.py and the commands have in common."""
    parser.add_argument(
        "--config", metavar="FILE", default=default_file(),
        help="the settings (default: config.py in the current folder, else the project's)",
    )  # fmt: skip


def add_modules(parser: argparse.ArgumentParser) -> None:
    """Add the argument --allow-module, whose names load() takes."""
    parser.add_argument(
        "--allow-module", metavar="NAME", action="append", default=[],
        help="a Python module that the nets may run, besides this package's; once for each module",
    )  # fmt: skip


def say_which(arguments: argparse.Namespace) -> None:
    """Print on standard error which config file a command uses, once for all its processes."""
    if launched()[0] == 0:
        print(f"config     {arguments.config}", file=sys.stderr, flush=True)


def load(path: str, allowed_modules: Iterable[str] = ()) -> Config:
    """Read a config file. Paths in it are relative to its folder.

    allowed_modules: names of Python modules that nets may run, besides this package's.
    Raises InputError, naming file and line, for a file that cannot be read, a line that is not `NAME = value`, an
    unknown name, a name or a stage that is given twice, a value of the wrong type, and a missing required setting.
    """
    _, tree = _parse(path)
    values = {name: setting.default for name, setting in SCHEMA.items() if setting.default is not REQUIRED}
    folder = os.path.dirname(os.path.abspath(path))
    lines: dict[str, int] = {}
    for statement in tree.body:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue  # a docstring
        name, value = _assignment(statement, path)
        where = f"{path}, line {statement.lineno}"
        if name not in SCHEMA or name in COUNTED:
            raise unknown_name(name, [known for known in SCHEMA if known not in COUNTED], where)
        if name in lines:
            raise InputError(f"{where}: {name} is already set in line {lines[name]}: keep one of the two lines")
        lines[name] = statement.lineno
        values[name] = _checked(name, value, where, values.get(name))
    for name in SCHEMA:
        if name in COUNTED:
            continue
        if name not in values:
            raise InputError(f"{path}: the setting {name} is missing: add it, as {SCHEMA[name].wants}")
        if SCHEMA[name].is_path:
            values[name] = _absolute(values[name], folder)
    values["ALLOWED_MODULES"] = list(allowed_modules)
    return Config(values, path)


def _parse(path):
    """The text of a config file, without a byte order mark, and its syntax tree. Raises InputError."""
    try:
        text = read_file(path, MOST_BYTES).decode("utf-8-sig")
        return text, ast.parse(text, path)
    except OSError as error:
        raise InputError(f"the config file {path} cannot be read ({error.strerror})") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        number = getattr(error, "lineno", None)
        line = f", line {number}" if number else ""
        raise InputError(f"{path}{line}: this is not Python ({getattr(error, 'msg', error)})") from None


def _assignment(statement, path):
    """The name and the value of a line `NAME = value`. Raises InputError for any other line."""
    where = f"{path}, line {statement.lineno}"
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    if len(targets) != 1 or not isinstance(targets[0], ast.Name):
        raise InputError(f"{where}: only lines of the form NAME = value are allowed")
    try:
        value = ast.literal_eval(statement.value)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise InputError(
            f"{where}: {targets[0].id} must be a plain value (a number, a text in quotes, True, False, or a list or "
            "dictionary of them), because config files are not executed"
        ) from None
    for part in ast.walk(statement.value):
        keys = [key.value for key in part.keys if isinstance(key, ast.Constant)] if isinstance(part, ast.Dict) else []
        twice, times = Counter(keys).most_common(1)[0] if keys else ("", 1)
        if times > 1:
            raise InputError(f"{where}: {targets[0].id} has {_shown(twice)} {times} times: keep one of them")
    return targets[0].id, value


def _checked(name, value, where, default):
    """The checked value of a setting; stages that a dictionary leaves out have the default."""
    if not (SCHEMA[name].by_stage and isinstance(value, dict)):
        check_value(name, value, where)
        return value
    for stage in value:
        if stage not in STAGES:
            raise unknown_name(str(stage), STAGES, f"{where}: in {name}")
        check_value(name, value[stage], f"{where}, stage {stage}")
    if default is None and SCHEMA[name].default is REQUIRED and len(value) < len(STAGES):
        missing = next(stage for stage in STAGES if stage not in value)
        raise InputError(f"{where}: {name} has no value for the {missing} stage: add it, or give one value for both")
    filled = default if isinstance(default, dict) else dict.fromkeys(STAGES, default)
    return {**filled, **value}


def _absolute(path, folder):
    """The path, or each stage's path, made absolute; an empty one stays empty."""
    if isinstance(path, dict):
        return {stage: _absolute(path[stage], folder) for stage in path}
    return os.path.normpath(os.path.join(folder, path)) if path else ""


def _relative(path, folder):
    """The path, or each stage's path, relative to a folder; an empty one stays empty."""
    if isinstance(path, dict):
        return {stage: _relative(path[stage], folder) for stage in path}
    return os.path.relpath(path, folder) if path else ""


def copy_text(source: str, path: str, changes: Mapping[str, Any]) -> str:
    """The text of a copy of the config file `source` at `path`, comments included, with some values changed.

    changes: name -> value, with absolute paths. In the copy, all paths are relative to its folder. Raises InputError as
    load() does.
    """
    text, tree = _parse(source)
    given = load(source).values.items()
    values = {name: value for name, value in given if SCHEMA[name].is_path and name not in COUNTED}
    values.update(changes)
    folder = os.path.dirname(os.path.abspath(path))
    values = {name: _relative(value, folder) if SCHEMA[name].is_path else value for name, value in values.items()}
    lines = text.encode().splitlines(keepends=True)  # the syntax tree counts columns in bytes of UTF-8
    for statement in reversed(tree.body):
        if isinstance(statement, ast.Assign):
            name, _ = _assignment(statement, source)
            if name in values:
                _put(lines, statement.value, repr(values.pop(name)).encode())
    return b"".join(lines).decode() + "".join(f"{name} = {value!r}\n" for name, value in values.items())


def _put(lines, node, value):
    """Replace a node of the syntax tree with a value; if possible, a comment after it stays in its column."""
    first, last = node.lineno - 1, node.end_lineno - 1
    before, after = lines[first][: node.col_offset], lines[last][node.end_col_offset :]
    comment = after.lstrip(b" ")
    if comment.startswith(b"#"):
        column = len(lines[last]) - len(comment)
        after = b" " * max(column - len(before) - len(value), 2) + comment
    lines[first : last + 1] = [before + value + after]
