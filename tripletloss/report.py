"""A page about a run, report.html in its folder: python -m tripletloss.report RUN_FOLDER."""

import sys

from tripletloss import config
from tripletloss.base import command
from tripletloss.reporting import run
from tripletloss.reporting.late import outcome_of


def main() -> int:
    """Run python -m tripletloss.report. Returns the exit status."""
    parser = command.Parser(
        prog="python -m tripletloss.report",
        description="Write RUN_FOLDER/report.html, a page about a run. train.py writes it, too; this command also "
        "takes a run that was stopped or is still going on, and measures its snapshots so far.",
    )
    parser.add_argument("run_folder", metavar="RUN_FOLDER", help="the folder of a run")
    config.add_modules(parser)
    arguments = parser.parse_args()

    def write() -> None:
        kept = outcome_of(arguments.run_folder, arguments.allow_module)
        print(f"report     {run.write(arguments.run_folder, kept)}")

    return command.run("tripletloss.report", write)


if __name__ == "__main__":
    sys.exit(main())
