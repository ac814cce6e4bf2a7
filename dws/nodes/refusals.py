"""What a node answers to frames of another version or another cluster.

What lives here: the one typed reply that both kinds of node give.
"""

from dws.errors import WrongCluster, WrongVersion
from dws.messages import Error, encode
from patterns.request_reply import HEADER_BYTES, VERSION, request_id_of
from patterns.zeromq.service import Service


def refuse(service: Service, peer: bytes, frame: bytes, reason: str) -> None:
    """Tell a peer of another version or cluster why it is not answered; nothing if it cannot be told."""
    if request_id_of(frame) is None:
        return
    if reason == "realm":
        named = frame[12:HEADER_BYTES].hex()
        text = f"this node is of cluster {service.replier.realm.hex()}, the request is for {named}"
        error = Error(WrongCluster.code, text)
    else:
        error = Error(WrongVersion.code, f"this node speaks version {VERSION} of the protocol")
    service.reply(peer, frame, encode(error))

