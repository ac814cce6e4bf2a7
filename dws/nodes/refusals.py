"""What a node answers to frames that are no request of its version and cluster.

What lives here: the one typed reply that both kinds of node give.
"""

from dws.errors import BadRequest, WrongCluster, WrongVersion
from dws.messages import Error, encode
from patterns.request_reply import HEADER_BYTES, REPLY, VERSION, request_id_of
from patterns.zeromq.service import Service


def refuse(service: Service, peer: bytes, frame: bytes, reason: str) -> None:
    """Tell a peer why it is not answered; nothing if it cannot be told, or sent a reply."""
    if request_id_of(frame) is None or frame[1:3] == bytes((VERSION, REPLY)):
        return
    if reason == "realm":
        named = frame[12:HEADER_BYTES].hex()
        text = f"this node is of cluster {service.replier.realm.hex()}, the request is for {named}"
        error = Error(WrongCluster.code, text)
    elif frame[1] == VERSION:
        error = Error(BadRequest.code, "the frame is no request: its head is wrong or cut short")
    else:
        error = Error(WrongVersion.code, f"this node speaks version {VERSION} of the protocol")
    service.reply(peer, frame, encode(error))
