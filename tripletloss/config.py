"""The settings behind config.py: names, types, defaults, and what a wrong value is told.

config.py is read, never run: each of its lines gives one name one plain value. A setting that may differ between
the stages takes one value for both, or a dictionary by stage.
"""

import ast
import difflib
import os
import sys
from collections import Counter
from typing import NamedTuple

from tripletloss.base.command import launched
from tripletloss.base.errors import InputError
from tripletloss.base.files import read_file
from tripletloss.core.sampling import BATCHES
from tripletloss.core.selection import STRATEGIES

MOST_BYTES = 2**20  # of a config file
STAGES = ("softmax", "triplet")
REQUIRED = object()
LARGEST = 2**31 - 1  # of whole numbers, as Caffe keeps them
SHOWN_CHARACTERS = 60  # of a value that is refused
PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # the folder with train.py and its config.py


class Setting(NamedTuple):
    """One line of the schema."""

    accepts: object  # value -> bool
    wants: str  # what a person is told that the value must be
    default: object = REQUIRED
    by_stage: bool = False
    is_path: bool = False


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


def _path(default=REQUIRED):
    def accepts(value):
        return isinstance(value, str) and value != "" and "\0" not in value

    return Setting(accepts, "a path in quotes", default, is_path=True)


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


SCHEMA = {
    "NET": _path("train.prototxt"),
    "SOLVER": _path("solver.prototxt"),
    "DEPLOY": _path_or_none(),
    "IMAGEPATH": _path(),
    "TRAIN_LIST": _path(),
    "HELD_OUT_LIST": _path_or_none(),
    "RUN_FOLDER": _path("runs/train"),
    "STAGES": Setting(_is_stages, "['softmax'], ['triplet'] or ['softmax', 'triplet']", list(STAGES)),
    "WEIGHTS": _path_or_none(by_stage=True),
    "FREEZE": _text("the name of a blob of the net, or '' for none", "", by_stage=True),
    "FEATURE": _text("the name of a blob of the deploy net", "", by_stage=True),
    "CROP": _integer(0, 0),
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
    "BROKEN_IMAGES": _choice(("stop", "skip"), "stop"),
    "BATCHES": _choice(BATCHES, {"softmax": "shuffled", "triplet": "identities"}, by_stage=True),
    "BATCH_SIZE": _integer(1, 30, by_stage=True),
    "IMAGES_PER_IDENTITY": _integer(1, 5),
    "COSINE_SCALE": Setting(lambda v: _is_number(v) and v > 0, "a number above 0", 24.0),
    "COSINE_MARGIN": Setting(lambda v: _is_number(v) and 0 <= v <= 1, "a number from 0 to 1 (a cosine)", 0.15),
    "MARGIN": Setting(lambda v: _is_number(v) and v > 0, "a number above 0 (a squared distance)", 0.2),
    "SELECTION": _choice(tuple(STRATEGIES), "semi-hard"),
    "GATHER": Setting(lambda value: isinstance(value, bool), "True or False", True),
    "MAX_ITERS": _integer(1, 20000, by_stage=True),
    "SNAPSHOT_ITERS": _integer(1, 2000, by_stage=True),
    "KEEP_SNAPSHOTS": _integer(0, 5),
    "LEARNING_RATE": Setting(lambda v: _is_number(v) and v > 0, "a number above 0", 0.001, by_stage=True),
    "WORKERS": _integer(0, 2),
    "DEVICE": Setting(_is_device, "'auto', 'cpu', 'gpu', or the number of a GPU", "auto"),
    "SEED": _integer(0, 1),
    "FEATURE_CACHE": _path_or_none("runs/features"),
    "FEATURE_TYPE": _choice(("float32", "float16"), "float32"),
    "MINE_ITERS": _integer(0, 0),
    "POSITIVE_CAP": Setting(lambda v: _is_number(v) and v >= 0, "a squared distance, or 0 for none", 0.0),
    "IDENTITIES": _integer(1),
    "FEATURES": _path(),
    "MINED": _path_or_none(),
    "BROKEN_LIST": _path_or_none(),
    "RANK": _integer(0, 0),
    "RANKS": _integer(1, 1),
    "ALLOWED_MODULES": Setting(lambda value: isinstance(value, list), "a list of names of Python modules", []),
}
# Set by the commands, never by config.py: the number of identities in TRAIN_LIST; the files of features, of mined
# negatives and of broken images; which process this is, of how many; and the modules of --allow-module.
COUNTED = ("IDENTITIES", "FEATURES", "MINED", "BROKEN_LIST", "RANK", "RANKS", "ALLOWED_MODULES")


def default_of(name, stage):
    """The default of a setting in a stage."""
    default = SCHEMA[name].default
    return default[stage] if SCHEMA[name].by_stage and isinstance(default, dict) else default


def check_value(name, value, where):
    """Check one plain value against SCHEMA[name]; raises InputError, beginning with `where`."""
    if not SCHEMA[name].accepts(value):
        raise InputError(f"{where}: {name} is {_shown(value)}, but must be {SCHEMA[name].wants}")


def _shown(value):
    """A refused value as text: the beginning of a long one."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of more digits than sys.get_int_max_str_digits()
        return "a number of thousands of digits"
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def unknown_name(name, known, where):
    """The InputError for a name that is not among `known`, with the nearest that is."""
    nearest = difflib.get_close_matches(name, known, 1, 0.5)
    hint = f"did you mean {nearest[0]}?" if nearest else "known are " + ", ".join(sorted(known))
    return InputError(f"{where}: there is no setting {name}: {hint}")


class Config:
    """The settings of config.py, checked, defaults filled in, paths made absolute."""

    def __init__(self, values, source):
        """values: every name of SCHEMA; use load()."""
        self.values, self.source = values, source

    def __getitem__(self, name):
        """The value of a setting that holds for the whole run."""
        return self.values[name]

    def stage(self, stage):
        """All settings as they hold in one stage: a dict by name."""
        return {
            name: value[stage] if SCHEMA[name].by_stage and isinstance(value, dict) else value
            for name, value in self.values.items()
        }

    def aside(self, folder, softmax_weights):
        """The same settings for a run in another folder.

        softmax_weights: what its triplet stage starts from where nothing else is said, or None.
        """
        values = {**self.values, "RUN_FOLDER": folder}
        weights = values["WEIGHTS"]
        if softmax_weights and isinstance(weights, dict) and not weights["triplet"]:
            values["WEIGHTS"] = {**weights, "triplet": softmax_weights}
        return Config(values, self.source)


def need_files(settings, *names):
    """Raise InputError where one of some settings of a stage is the path of what does not exist; '' is no path."""
    for name in names:
        if settings[name] and not os.path.exists(settings[name]):
            raise InputError(
                f"{name} is {settings[name]}, which does not exist: correct it in the config file; paths there are "
                "relative to that file's folder"
            )


def paths(settings):
    """The paths that settings of a stage name, without those that are not given."""
    return [settings[name] for name in SCHEMA if SCHEMA[name].is_path and settings.get(name)]


def add_argument(parser):
    """The argument --config, the same for train.py and for the commands."""
    here = os.path.isfile("config.py")
    parser.add_argument(
        "--config", metavar="FILE", default="config.py" if here else os.path.join(PROJECT, "config.py"),
        help="the settings (default: config.py in the current folder, else the project's)",
    )  # fmt: skip


def say_which(arguments):
    """Say on standard error which config file a command uses, once for all its processes."""
    if launched()[0] == 0:
        print(f"config     {arguments.config}", file=sys.stderr, flush=True)


def load(path, allowed_modules=()):
    """Read a config file. Paths in it are relative to its folder.

    allowed_modules: names of Python modules that nets may run, besides this package's.
    Raises InputError, naming file and line, for a file that cannot be read, a line that is not `NAME = value`,
    an unknown name, a name or a stage that is given twice, a value of the wrong type, a required setting that is
    missing.
    """
    _, tree = _parse(path)
    values = {name: setting.default for name, setting in SCHEMA.items() if setting.default is not REQUIRED}
    folder, lines = os.path.dirname(os.path.abspath(path)), {}
    for statement in tree.body:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue  # a docstring
        name, value = _assignment(statement, path)
        where = f"{path}, line {statement.lineno}"
        if name not in SCHEMA or name in COUNTED:
            raise unknown_name(name, [known for known in SCHEMA if known not in COUNTED], where)
        if name in lines:
            raise InputError(f"{where}: {name} is set in line {lines[name]} already: keep one of the two lines")
        lines[name] = statement.lineno
        values[name] = _checked(name, value, where, values.get(name))
    for name in SCHEMA:
        if name in COUNTED:
            continue
        if name not in values:
            raise InputError(f"{path}: the setting {name} is missing: it must be {SCHEMA[name].wants}")
        if SCHEMA[name].is_path:
            values[name] = _absolute(values[name], folder)
    values["ALLOWED_MODULES"] = list(allowed_modules)
    return Config(values, path)


def _parse(path):
    """The text of a config file and its syntax tree. A byte order mark is passed over. Raises InputError."""
    try:
        text = read_file(path, MOST_BYTES).decode("utf-8-sig")
        return text, ast.parse(text, path)
    except OSError as error:
        raise InputError(f"the config file {path} cannot be read ({error.strerror})") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f", line {error.lineno}" if getattr(error, "lineno", None) else ""
        raise InputError(f"{path}{line}: this is not Python ({getattr(error, 'msg', error)})") from None


def _assignment(statement, path):
    """Name and value of a line `NAME = value`."""
    where = f"{path}, line {statement.lineno}"
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    if len(targets) != 1 or not isinstance(targets[0], ast.Name):
        raise InputError(f"{where}: only lines of the form NAME = value can stand here")
    try:
        value = ast.literal_eval(statement.value)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise InputError(
            f"{where}: {targets[0].id} must be a plain value (a number, a text in quotes, True, False, or a list or "
            "dictionary of them): config files are read, not run"
        ) from None
    for part in ast.walk(statement.value):
        keys = [key.value for key in part.keys if isinstance(key, ast.Constant)] if isinstance(part, ast.Dict) else []
        twice, times = Counter(keys).most_common(1)[0] if keys else ("", 1)
        if times > 1:
            raise InputError(f"{where}: {targets[0].id} has {_shown(twice)} {times} times: keep one of them")
    return targets[0].id, value


def _checked(name, value, where, default):
    """The value of a setting, each stage's checked; stages that it leaves out keep the default."""
    if not (SCHEMA[name].by_stage and isinstance(value, dict)):
        check_value(name, value, where)
        return value
    for stage in value:
        if stage not in STAGES:
            raise unknown_name(str(stage), STAGES, f"{where}: in {name}")
        check_value(name, value[stage], f"{where}, stage {stage}")
    filled = default if isinstance(default, dict) else dict.fromkeys(STAGES, default)
    return {**filled, **value}


def _absolute(path, folder):
    """The path, or each stage's, from the root; no path stays none."""
    if isinstance(path, dict):
        return {stage: _absolute(path[stage], folder) for stage in path}
    return os.path.normpath(os.path.join(folder, path)) if path else ""


def _relative(path, folder):
    """The path, or each stage's, relative to a folder; no path stays none."""
    if isinstance(path, dict):
        return {stage: _relative(path[stage], folder) for stage in path}
    return os.path.relpath(path, folder) if path else ""


def copy_text(source, path, changes):
    """The text of a config file `source`, comments included, for a copy at `path` with some values changed.

    changes: name -> value, paths from the root. In the copy all paths are relative to its folder. Raises InputError as
    load().
    """
    text, tree = _parse(source)
    given = load(source).values.items()
    values = {name: value for name, value in given if SCHEMA[name].is_path and name not in COUNTED}
    values.update(changes)
    folder = os.path.dirname(os.path.abspath(path))
    values = {name: _relative(value, folder) if SCHEMA[name].is_path else value for name, value in values.items()}
    lines = text.encode().splitlines(keepends=True)  # the syntax tree counts columns in bytes of UTF-8
    for statement in reversed(tree.body):
        if isinstance(statement, ast.Assign) and statement.targets[0].id in values:
            _put(lines, statement.value, repr(values.pop(statement.targets[0].id)).encode())
    return b"".join(lines).decode() + "".join(f"{name} = {value!r}\n" for name, value in values.items())


def _put(lines, node, value):
    """Put a value in place of a node of the syntax tree; a comment behind it keeps its column where it can."""
    first, last = node.lineno - 1, node.end_lineno - 1
    before, after = lines[first][: node.col_offset], lines[last][node.end_col_offset :]
    comment = after.lstrip(b" ")
    if comment.startswith(b"#"):
        column = len(lines[last]) - len(comment)
        after = b" " * max(column - len(before) - len(value), 2) + comment
    lines[first : last + 1] = [before + value + after]
