"""Every bound of the protocol, with its reason.

What lives here: constants that both ends of a socket must agree on. They are
part of the protocol (docs/protocol.md), so they are not settings. What a site
may tune is in config.py.
"""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

PROTOCOL_VERSION: Final = 1
RECORD_FORMAT: Final = 1

NAME_MAX_BYTES: Final = 1024
CONTENT_TYPE_MAX: Final = 255
TEXT_MAX: Final = 1024

# One batch is one decision and one transaction on each server: large enough to
# share an fsync among a thousand pages, small enough to hold in memory.
BATCH_MAX_PAGES: Final = 1000
BATCH_MAX_BYTES: Final = 64 * MIB

# A batch of up to this much is sent to every server that is to store it, at once and with its Commit: to have
# it copied afterwards takes three messages and an fsync more, one after the other. Of larger ones a client
# sends the bytes once, since its line may be the slow one.
DIRECT_MAX_BYTES: Final = 64 * KIB

# A larger page has a list of chunk digests and is read chunk by chunk.
CHUNK_BYTES: Final = MIB
PAGE_MAX_BYTES: Final = 64 * GIB
# What `get` returns as one bytes object; larger pages are streamed.
GET_MAX_BYTES: Final = 64 * MIB

# Up to here a page lies inside the record store, above it is a file of its own.
INLINE_MAX_BYTES: Final = 256 * KIB

LOCATE_MAX_NAMES: Final = 1000
FETCH_MAX_PAGES: Final = 1000
# A Fetch reply is one data frame, so this and CHUNK_BYTES bound all data frames.
FETCH_MAX_BYTES: Final = 4 * MIB
LIST_MAX_ENTRIES: Final = 1000
MANIFEST_MAX_RECORDS: Final = 2000
MANIFEST_BUCKETS: Final = 256
VERIFY_MAX_RECORDS: Final = 1000
# All records of one Verify together, or one page of any size: what a server reads for one answer.
VERIFY_MAX_BYTES: Final = 64 * MIB

# A catalog keeps each server that ever said hello; whoever can reach the port can say it.
SERVERS_MAX: Final = 1000
# Numbers of servers are not given again, forgotten or not.
SERVER_NUMBER_MAX: Final = 65_535

# MAXMSGSIZE of every socket: libzmq drops the connection of a peer that sends a
# larger frame, before it allocates. The largest legal frame is a Stage or Fetch
# data frame, or the control frame of a Copy job of 1,000 pages with long names.
FRAME_MAX_BYTES: Final = 8 * MIB

# version = epoch << COUNTER_BITS | counter, one unsigned 64-bit number
EPOCH_BITS: Final = 28
COUNTER_BITS: Final = 36
# --rebuild jumps this far, past every epoch that a lost catalog may have used.
REBUILD_EPOCH_STEP: Final = 1 << 20

#: Pages of one report of visits.
VISITS_MAX_PAGES: Final = 1_000
#: Recent choices that a balancer tells.
CHOICES_MAX: Final = 20
#: Upper bounds of the histograms of response times, in seconds; one more bucket counts what is beyond.
RESPONSE_BOUNDS_S: Final = (
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
