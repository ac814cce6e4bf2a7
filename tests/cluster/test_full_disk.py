"""A server whose quota is used up refuses uploads, keeps what it has, and takes more when there is room."""

import io
import random
from collections.abc import Callable

import pytest

from dws.errors import Full
from dws.limits import MIB
from tests.cluster.conftest import ClusterUnderTest, until

Make = Callable[..., ClusterUnderTest]

OLD = random.Random(1).randbytes(6 * MIB)
NEW = random.Random(2).randbytes(6 * MIB)


def has_put(running: ClusterUnderTest, name: str, body: bytes) -> bool:
    with running.client() as client:
        try:
            client.put({name: body})
        except Full:
            return False
        return True


@pytest.mark.parametrize(
    "size_is_known", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["size known", "stream"]
)
def test_an_upload_over_the_quota_is_refused_until_there_is_room(cluster: Make, size_is_known: bool) -> None:
    running = cluster(webservers=2, garbage_s=0.5, quota_bytes="10MiB")
    with running.client() as client:
        client.put({"/page": OLD, "/small": b"small"})
        # A new version goes beside the old one, so there is none for a page of more than half the quota.
        with pytest.raises(Full, match="bytes"):
            client.put({"/page": NEW if size_is_known else io.BytesIO(NEW)})
        assert client.get("/page") == OLD
        client.remove(["/page"])
        until(lambda: has_put(running, "/page", NEW), "room once the old version is dropped")
    running.check_stored("/page", NEW)
    running.check_stored("/small", b"small")
