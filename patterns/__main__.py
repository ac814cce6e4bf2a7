"""python -m patterns: list the patterns, run one over real sockets, measure, draw.

python -m patterns list
python -m patterns demo heartbeat --fault
python -m patterns bench request_reply
python -m patterns diagrams --write
"""

import argparse
import importlib
import sys

from patterns.demos import index
from patterns.demos.processes import DemoStuck


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m patterns",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="every pattern, what it guarantees, and where it is")
    demo = commands.add_parser("demo", help="run a pattern with several processes, and narrate")
    demo.add_argument("name", metavar="NAME", choices=index.NAMES, help=", ".join(index.NAMES))
    demo.add_argument("--fault", action="store_true", help="break something, and watch it mended")
    bench = commands.add_parser("bench", help="measure a pattern beside the bare sockets that it uses")
    bench.add_argument("name", metavar="NAME", nargs="?", choices=index.NAMES, help="one of them alone")
    diagrams = commands.add_parser("diagrams", help="print the state and sequence diagrams, as Markdown")
    diagrams.add_argument("--write", action="store_true", help="write them into docs/ and patterns/README.md")
    chosen = parser.parse_args(arguments)
    if chosen.command == "list":
        print(index.listing())
    elif chosen.command == "demo":
        importlib.import_module(f"patterns.demos.{chosen.name}").run(chosen.fault)
    elif chosen.command == "bench":
        for name in [chosen.name] if chosen.name else index.NAMES:
            importlib.import_module(f"patterns.bench.{name}").run()
    else:
        from patterns.demos import documents

        return documents.main(chosen.write)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except DemoStuck as stuck:
        sys.exit(f"python -m patterns: {stuck}; on a busy machine run it again")
