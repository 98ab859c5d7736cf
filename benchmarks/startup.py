"""How long a user waits: for --help, for info, and for the first batch of a training; each in a process of its own.

python benchmarks/startup.py [--repeats 5]
"""

import itertools
import subprocess
import sys
import tempfile
from pathlib import Path

from timing import Work, arguments, quotient, row, show, spread, time_in_turn
from training import synthetic_manifest

# ``bus-smp train``, stopped at the first batch of its loader as Ctrl-C would stop it.
FIRST_BATCH = """
import sys
import bus_smp.data.loading as loading

make_loader = loading.make_loader

def make_watched_loader(*arguments, **options):
    loader = make_loader(*arguments, **options)

    class Watched(type(loader)):
        def __iter__(self):
            for batch in super().__iter__():
                print("FIRST BATCH", flush=True)
                raise KeyboardInterrupt

    loader.__class__ = Watched
    return loader

loading.make_loader = make_watched_loader
from bus_smp.cli import main
main(sys.argv[1:])
"""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="readings of each number")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="as for bus-smp train"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        manifest = synthetic_manifest(Path(name))
        bus_smp = [sys.executable, "-m", "bus_smp"]
        works: dict[str, Work] = {
            "python -c pass": _answer([sys.executable, "-c", "pass"]),
            "import torch": _answer([sys.executable, "-c", "import torch"]),
            "bus-smp --help": _answer([*bus_smp, "--help"]),
            "bus-smp info MANIFEST.csv": _answer([*bus_smp, "info", str(manifest)]),
            "first batch of bus-smp train": _first_batch(manifest, options.set),
        }
        readings = time_in_turn(works, options.repeats)
    limits = {
        "bus-smp --help": ("python -c pass", 0.3),
        "bus-smp info MANIFEST.csv": ("python -c pass", 0.4),
        "first batch of bus-smp train": ("import torch", 12),
    }
    show(
        "start-up",
        [
            row(
                what,
                spread(readings[what]),
                "s",
                quotient(readings[what], readings[limit]),
                limit,
                f"<= {most} s",
            )
            for what, (limit, most) in limits.items()
        ],
    )


def _answer(command: list[str]) -> Work:
    return lambda: subprocess.run(command, capture_output=True, check=True)


def _first_batch(manifest: Path, overrides: list[str]) -> Work:
    """Start a training, each time under another name, and stop it at its first batch; stopping is included."""
    scratch = manifest.parents[1]
    settings = [
        f"data.train=[{manifest}]",
        "model.encoder_weights=null",
        f"runtime.cache={scratch / 'cache'}",
        *overrides,
    ]
    options = [part for text in settings for part in ("--set", text)]
    names = itertools.count()

    def run() -> None:
        command = [sys.executable, "-c", FIRST_BATCH, "train", "--out", str(scratch / "outputs")]
        done = subprocess.run(
            [*command, "--run", f"start-{next(names)}", *options], capture_output=True, text=True
        )
        if "FIRST BATCH" not in done.stdout:
            raise RuntimeError(f"bus-smp train drew no batch: {done.stderr.strip()[-300:]}")

    return run


if __name__ == "__main__":
    main()
