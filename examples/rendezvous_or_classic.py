"""Which server owns a page? Rendezvous hashing beside the classic scheme, measured.

    python -m examples.rendezvous_or_classic

Classic: a string hash with the multiplier 31, of which the last two decimal digits
count; 0 to 99 is cut into equal segments, one a server. Printed for each: how even the
shares are, and what moves when a server comes or goes.
"""

from collections import Counter
from collections.abc import Callable
from functools import cache

from patterns.rendezvous import Rendezvous

PAGES = 10_000
SERVERS = (2, 3, 4, 7, 10, 30)
NAMES = {
    "numbered": [f"/page-{number}.html" for number in range(PAGES)],
    "dated": [f"/{1990 + n % 36}/{n // 36 % 12 + 1:02}/{n // 432:02}.html" for n in range(PAGES)],
    "even ids": [f"/id/{2 * number}" for number in range(PAGES)],
}
Owner = Callable[[str], int]


@cache
def last_two_digits(name: str) -> int:
    value = 0
    for character in name:
        value = (31 * value + ord(character)) % (1 << 32)
    return value % 100


def classic(servers: int) -> Owner:
    return lambda name: last_two_digits(name) * servers // 100


def rendezvous(servers: int) -> Owner:
    hashing = Rendezvous({str(number): 1.0 for number in range(servers)})
    return lambda name: int(hashing.owner(name.encode()))


def shares(names: list[str], owner: Owner, servers: int) -> tuple[float, float]:
    """(share of the fullest server by the mean, chi-square by its degrees of freedom, about 1 by chance)."""
    counts = Counter(map(owner, names))
    mean = len(names) / servers
    chi_square = sum((counts[server] - mean) ** 2 / mean for server in range(servers))
    return max(counts.values()) / mean, chi_square / (servers - 1)


def moved(names: list[str], before: Owner, after: Owner) -> float:
    return sum(before(name) != after(name) for name in names) / len(names)


def main() -> None:
    print("fullest: pages of the fullest server by the mean. chi²: by degrees of freedom, about 1 by chance.")
    print("moved: pages with another owner once a server has joined; the least possible is in brackets.\n")
    print(f"{'':10}{'':>8}{'classic':>27}{'rendezvous':>27}")
    columns = f"{'fullest':>9}{'chi²':>8}{'moved':>10}"
    print(f"{'names':10}{'servers':>8}{columns}{columns}")
    for kind, names in NAMES.items():
        for servers in SERVERS:
            line = f"{kind:10}{servers:8}"
            for scheme in (classic, rendezvous):
                fullest, chi_square = shares(names, scheme(servers), servers)
                moving = moved(names, scheme(servers), scheme(servers + 1))
                line += f"{fullest:9.3f}{chi_square:8.1f}{moving:10.1%}"
            print(f"{line}  ({1 / (servers + 1):.1%})")


if __name__ == "__main__":
    main()
