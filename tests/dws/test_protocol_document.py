"""docs/protocol.md against the code: every message with every field, every error code, every bound."""

import re
from pathlib import Path

import msgspec
import pytest

from dws import limits, messages
from dws.errors import BY_CODE
from dws.limits import MIB

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "protocol.md").read_text("utf-8")
SECTIONS = dict(re.findall(r"^### `([a-z-]+)`\n(.*?)(?=^#|\Z)", TEXT, re.MULTILINE | re.DOTALL))
MESSAGES = {
    kind.__struct_config__.tag: kind
    for kind in vars(messages).values()
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind.__struct_config__.tag
}


def test_every_message_has_a_section_and_every_section_a_message() -> None:
    assert sorted(SECTIONS) == sorted(MESSAGES)


@pytest.mark.parametrize("tag", sorted(MESSAGES))
def test_a_section_lists_the_fields_in_their_order(tag: str) -> None:
    listed = re.findall(r"^\| `(\w+)` \|", SECTIONS[tag], re.MULTILINE)
    assert tuple(listed) == MESSAGES[tag].__struct_fields__


@pytest.mark.parametrize(
    "structure",
    [
        messages.Record, messages.Dropped, messages.ServerRef, messages.Later, messages.PutPage,
        messages.RemovePage, messages.StagePart, messages.CommitPage, messages.Change, messages.Choice,
        messages.PageStat, messages.Holder, messages.ServerStatus, messages.RecentChoice,
        messages.RepairStatus,
    ],
)  # fmt: skip
def test_fields_of_structures_are_listed_in_their_order(structure: type[msgspec.Struct]) -> None:
    in_order = r".*?".join(rf"\b{field}\b" for field in structure.__struct_fields__)
    assert re.search(in_order, TEXT)


@pytest.mark.parametrize("code", sorted(BY_CODE))
def test_every_error_code_is_explained(code: str) -> None:
    assert f"`{code}`" in TEXT


@pytest.mark.parametrize(
    "said",
    [
        f"MAXMSGSIZE {limits.FRAME_MAX_BYTES // MIB} MiB",
        f"| frame | {limits.FRAME_MAX_BYTES // MIB} MiB |",
        f"| name | {limits.NAME_MAX_BYTES:,} bytes |",
        f"| page | {limits.PAGE_MAX_BYTES // limits.GIB} GiB |",
        f"| batch | {limits.BATCH_MAX_PAGES:,} pages and {limits.BATCH_MAX_BYTES // MIB} MiB",
        f"| `fetched` data frame | {limits.FETCH_MAX_BYTES // MIB} MiB |",
        f"| `listing` | {limits.LIST_MAX_ENTRIES:,} records |",
        f"| `manifest-page` | {limits.MANIFEST_MAX_RECORDS:,} records |",
        f"| `verify` | {limits.VERIFY_MAX_RECORDS:,} records |",
        f"for at most {limits.VERIFY_MAX_BYTES // MIB} MiB, or one page",
        f"| servers of one catalog | {limits.SERVERS_MAX:,} |",
        f"epoch × 2{str(limits.COUNTER_BITS).translate(str.maketrans('0123456789', '⁰¹²³⁴⁵⁶⁷⁸⁹'))} + counter",
    ],
)
def test_limits_are_those_of_the_code(said: str) -> None:
    assert said in TEXT
