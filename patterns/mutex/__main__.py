"""python -m patterns.mutex: measure the three algorithms of mutual exclusion.

python -m patterns.mutex bench                            about five minutes
python -m patterns.mutex bench --sizes 2,4 --seconds 0.5  a quick look
python -m patterns.mutex bench --virtual                  in virtual time alone, no sockets
"""

import argparse
import sys
from typing import Final

SIZE_MAX: Final = 256


def sizes_of(text: str) -> tuple[int, ...]:
    """Sizes from `2,4,8`."""
    try:
        sizes = tuple(int(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 2,4,8") from None
    if not all(2 <= size <= SIZE_MAX for size in sizes):
        raise argparse.ArgumentTypeError(f"a group has 2 to {SIZE_MAX} members, not {text}")
    return sizes


def seconds_of(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds") from None
    if not 0.1 <= seconds <= 60:
        raise argparse.ArgumentTypeError(f"a run takes 0.1 to 60 seconds, not {text}")
    return seconds


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m patterns.mutex",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    bench = commands.add_parser("bench", help="messages an entry beside the theory, waits, entries a second")
    bench.add_argument("--sizes", type=sizes_of, help="members of the groups, 2,4,8,16,32,64 unless given")
    bench.add_argument("--seconds", type=seconds_of, help="of each run over sockets, 1 unless given")
    bench.add_argument("--virtual", action="store_true", help="in virtual time alone")
    chosen = parser.parse_args(arguments)
    from patterns.bench import mutex

    sizes = chosen.sizes or mutex.SIZES
    if chosen.virtual:
        mutex.virtual(sizes)
    else:
        mutex.run(sizes, chosen.seconds or mutex.SECONDS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
