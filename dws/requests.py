"""What a request about a batch is checked for before anything is placed.

What lives here: faults that show in the request alone. What must not: conditions
and outcomes, which need the catalog (placement.py).
"""

from dws.errors import BadName, BadRequest, OverBound
from dws.limits import BATCH_MAX_BYTES, PAGE_MAX_BYTES
from dws.messages import Error, Reserve
from dws.names import is_content_type, name_fault


def fault_of_names(names: list[str]) -> Error | None:
    """The first name that is none, and the rule that it breaks."""
    for name in names:
        fault = name_fault(name)
        if fault:
            return Error(BadName.code, f"page name {name[:80]!r}: {fault}")
    return None


def fault_of_pages(request: Reserve) -> Error | None:
    """What is wrong with the pages of a Reserve: names, digests, types, sizes."""
    names = [page.name for page in request.pages]
    if len(set(names)) != len(names):
        return Error(BadRequest.code, "a batch names a page twice")
    fault = fault_of_names(names)
    if fault is not None:
        return fault
    for page in request.pages:
        if len(page.digest) not in (0, 32) or not is_content_type(page.content_type):
            text = "wanted: a digest of 32 bytes or none, a content type of printable ASCII"
            return Error(BadRequest.code, f"{page.name}: {text}")
    total = sum(max(0, page.size) for page in request.pages)
    bound = PAGE_MAX_BYTES if len(names) == 1 else BATCH_MAX_BYTES
    if total > bound:
        return Error(OverBound.code, f"the batch has {total:,} bytes, over the bound of {bound:,}")
    if len(names) > 1 and any(page.size < 0 for page in request.pages):
        return Error(BadRequest.code, "a page of unknown size is a batch by itself")
    return None


def conflict_text(names: list[str]) -> str:
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"the visible version is not the expected one: {shown}"
