"""Get one page with pyzmq and msgpack alone:  python raw_client.py tcp://HOST:5600 /name > file

Written from docs/protocol.md; nothing of dws is imported. Digests are checked if the blake3 package is there.
"""

import itertools
import random
import struct
import sys
import time

import msgpack
import zmq

try:
    from blake3 import blake3
except ImportError:
    blake3 = None
    print("raw_client: no blake3 package: digests go unchecked", file=sys.stderr)

HEAD, CHUNK, WAIT_S, GIVE_UP_S = struct.Struct(">4BQ16s"), 1 << 20, 1.0, 10.0
context, dealers, ids = zmq.Context(), {}, itertools.count(random.getrandbits(63))


class Failure(Exception):
    """Of one node: another one, or the next round, may do better."""


def ask(endpoint, wanted, *request):
    """(fields, data frame) of the reply, whose tag must be `wanted`."""
    if endpoint not in dealers:
        dealers[endpoint] = context.socket(zmq.DEALER)
        dealers[endpoint].connect(endpoint)
    dealer, request_id, give_up = dealers[endpoint], next(ids), time.monotonic() + WAIT_S
    dealer.send(HEAD.pack(0xD7, 1, 1, 0, request_id, bytes(16)) + msgpack.packb(request))
    while dealer.poll(max(0, 1000 * (give_up - time.monotonic()))):
        frame, *data = dealer.recv_multipart()
        if frame[:12] == HEAD.pack(0xD7, 1, 2, 0, request_id, b"")[:12]:  # else it is late: dropped
            tag, *fields = msgpack.unpackb(frame[HEAD.size :])
            if tag != wanted:
                raise Failure(f"{endpoint}: {': '.join(fields[:2]) if tag == 'error' else tag}")
            return fields, data[0] if data else b""
    raise Failure(f"no answer from {endpoint} to {request[0]} in {WAIT_S:g} s")


def checked(endpoint, data, size, digest):
    if len(data) != size or (blake3 and blake3(data).digest() != digest):
        raise Failure(f"{endpoint}: not the bytes that the catalog names")
    return data


def locate(balancer, name):
    """What the catalog names, and the endpoints of its holders, the best one first."""
    (_, _, servers, (page,), later, *_), _ = ask(balancer, "located", "locate", [name])
    if page is None:
        raise SystemExit(f"raw_client: there is no page {name}")
    if not page[4] and not later[0][1]:
        raise SystemExit(f"raw_client: {name} is unavailable, last on {later[0][2]}")
    endpoints = {number: endpoint for number, _, endpoint, *_ in servers}
    return page[:4], [endpoints[number] for number in page[4]]


def read(endpoint, name, page, got):
    """Fill `got` from one holder, going on where another one stopped."""
    version, size, digest, list_digest = page
    if size <= CHUNK:
        got += checked(endpoint, ask(endpoint, "fetched", "fetch", [[name, version]])[1], size, digest)
        return
    digests = ask(endpoint, "digest-list", "digests", name, version)[1]
    checked(endpoint, digests, 32 * -(-size // CHUNK), list_digest)
    for at in range(len(got), size, CHUNK):
        data = ask(endpoint, "data", "read", name, version, at, CHUNK)[1]
        got += checked(endpoint, data, min(CHUNK, size - at), digests[at // CHUNK * 32 :][:32])


def get(balancer, name):
    got, got_of, give_up = bytearray(), None, time.monotonic() + GIVE_UP_S
    while time.monotonic() < give_up:
        try:
            page, holders = locate(balancer, name)  # good for this round only
            got, got_of = (got if page == got_of else bytearray()), page
            for endpoint in holders:
                try:
                    read(endpoint, name, page, got)
                    return got
                except Failure as failure:
                    print(f"raw_client: {failure}", file=sys.stderr)
        except Failure as failure:
            print(f"raw_client: {failure}", file=sys.stderr)
        time.sleep(0.1)
    raise SystemExit(f"raw_client: gave {name} up after {GIVE_UP_S:g} s")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        sys.stdout.buffer.write(get(*sys.argv[1:]))
    except zmq.ZMQError as error:
        sys.exit(f"raw_client: {sys.argv[1]}: {error}")
    finally:
        context.destroy(linger=0)
