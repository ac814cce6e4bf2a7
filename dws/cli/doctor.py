"""doctor: each problem of the cluster, and what to do next.

What lives here: looking at the cluster from here, and the layout of what was
found. What must not: the rules (dws/diagnosis.py).
"""

import email.utils
import http.client
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import click

from dws.cli import exits, output
from dws.cli.session import Session, client_options, json_option, pass_session
from dws.diagnosis import Answer, Finding, Seen, examine
from dws.errors import DwsError
from dws.membership import DEAD
from dws.messages import ClusterStatus, ServerStatus, to_plain

if TYPE_CHECKING:
    from dws.nodes.client import Client

#: Between two looks: a server that is refused says hello again each second.
_BETWEEN_S: Final = 1.5
_SERVER_S: Final = 2.0
_HTTP_S: Final = 2.0


@click.command(
    epilog="""\b
Examples:
  dws doctor
  dws doctor --json | jq -r '.problems[] | .where + ": " + .text'

\b
Exit codes: 0 healthy, 1 problems, 4 the balancer does not answer.
"""
)
@json_option
@client_options
@pass_session
def doctor(session: Session, /) -> int:
    """Look at the whole cluster, and say what is wrong and what to do about it.

    Asks the balancer twice, and each web server and its HTTP endpoint once, from here.
    """
    with session.client() as client:
        first = client.status()
        answers = _ask_servers(session, first)
        time.sleep(_BETWEEN_S)
        seen = Seen(first, client.status(), answers)
    found = examine(seen)
    problems = [finding for finding in found if finding.level == "problem"]
    if session.json:
        notices = [finding for finding in found if finding.level != "problem"]
        plain = {"healthy": not problems, "problems": to_plain(problems), "notices": to_plain(notices)}
        output.emit_json(plain)
    else:
        output.data(_text(seen.later, found))
    return exits.FAILED if problems else exits.OK


def _ask_servers(session: Session, told: ClusterStatus) -> dict[int, Answer]:
    answers = {}
    with session.client(timeout_s=_SERVER_S) as client:
        for server in told.servers:
            if server.state != DEAD and server.endpoint:
                answers[server.number] = _ask(client, server)
    return answers


def _ask(client: "Client", server: ServerStatus) -> Answer:
    answer = Answer()
    try:
        counters = client.node_stats(server.name, 0).counters
    except DwsError as error:
        answer.fault = str(error)
    else:
        answer.files = int(counters.get("process open files", 0))
        answer.files_max = int(counters.get("process open files at most", 0))
    if server.http_endpoint:
        _ask_http(server.http_endpoint, answer)
    return answer


def _ask_http(url: str, answer: Answer) -> None:
    """Whatever it answers, it is there; and its Date tells its clock."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port or 80, timeout=_HTTP_S)
    try:
        connection.request("HEAD", "/")
        date = connection.getresponse().getheader("Date")
    except (OSError, http.client.HTTPException) as error:
        answer.http_fault = str(error) or type(error).__name__
        return
    finally:
        connection.close()
    if date:
        try:
            answer.clock_s = email.utils.parsedate_to_datetime(date).timestamp() - time.time()
        except ValueError:
            answer.clock_s = 0.0


def _text(told: ClusterStatus, found: list[Finding]) -> str:
    problems = sum(finding.level == "problem" for finding in found)
    lines = [
        f"{'problem' if finding.level == 'problem' else 'notice '}  {output.printable(finding.where)}:"
        f" {output.printable(finding.text)}\n         next: {output.printable(finding.next)}"
        for finding in found
    ]
    whole = f"{output.counted(len(told.servers), 'web server')}, {output.pages_text(told.pages)}"
    verdict = f"{output.counted(problems, 'problem')}; {whole}" if problems else f"healthy: {whole}"
    return "\n".join([*lines, verdict])
