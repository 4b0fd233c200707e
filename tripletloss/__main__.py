"""The commands, with a line each: python -m tripletloss."""

import ast
import re
from pathlib import Path

from tabulate import tabulate

from tripletloss.base import command


def commands() -> dict[str, str]:
    """What each command does, by its name: the first words of each module that says how it is called."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        if said := re.match(rf"(.*?):? python -m tripletloss\.{path.stem}\b", text):
            found[path.stem] = said[1]
    return found


def main() -> int:
    """Run python -m tripletloss. Returns the exit status."""
    command.Parser(prog="python -m tripletloss", description="List the commands.").parse_args()
    print("train.py trains. The other commands are run as python -m tripletloss.NAME, and --help explains each:\n")
    print(tabulate(commands().items(), tablefmt="plain"))
    return 0


if __name__ == "__main__":
    raise SystemExit(command.run("tripletloss", main))
