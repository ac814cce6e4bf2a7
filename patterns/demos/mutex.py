"""Mutual exclusion: four members and a resource, under each of the three algorithms in turn.

With a fault the holder is paused until another has entered, and wakes with an old
fencing number, which the resource refuses; then a holder is killed, and the others go on.
"""

from functools import partial
from typing import Final

from patterns.demos.mutex_members import Processes, Work
from patterns.demos.processes import Parent, run_until
from patterns.mutex.group import ALGORITHMS, Timing

MEMBERS: Final = 4
ENTRIES: Final = 6
#: Short, so that the demo is; a real group waits longer before it suspects.
TIMING: Final = Timing(
    lease_s=0.6, margin_s=0.1, held_max_s=5, retry_s=0.2, suspect_s=0.7, rest_s=0.02, lost_s=0.7, answer_s=0.3
)
HOLD_S: Final = 0.15
THINK_S: Final = 0.1


class Story:
    """What the resource sees, told."""

    def __init__(self, parent: Parent, algorithm: str) -> None:
        self.left: list[int] = []
        """Members in the order in which their entries ended well."""
        self.inside: int | None = None
        self.refused: set[int] = set()
        self._parent = parent
        work = Work(algorithm, MEMBERS, MEMBERS, THINK_S, HOLD_S, True, 0.0, 3600, True, TIMING)
        self.group = Processes(parent, work, self._used)
        self.wait = partial(run_until, self.group.loop)

    def _used(self, member: int, fence: int, is_last: bool, accepted: bool) -> None:
        who = self.group.name(member)
        if not accepted:
            self.refused.add(member)
            highest = self.group.resource.highest
            self._parent.say(f"refuses {who} with number {fence:#x}: has seen {highest:#x}")
        elif is_last:
            self.inside = None
            self.left.append(member)
            self._parent.say(f"{who} writes and leaves")
        else:
            self.inside = member
            self._parent.say(f"{who} enters with number {fence:#x}")

    def let_all_enter(self) -> None:
        self.wait(lambda: len(self.left) >= ENTRIES, "entries")

    def pause_the_holder(self) -> None:
        self.wait(lambda: self.inside is not None, "a holder")
        paused = self.inside
        assert paused is not None
        self._parent.pause(self.group.name(paused))
        self.wait(lambda: self.inside not in (paused, None), "another holder")
        self._parent.say(f"another is in; {self.group.name(paused)} believes that it is, too")
        self._parent.resume(self.group.name(paused))
        self.wait(lambda: paused in self.refused, "the late write")

    def kill_the_holder(self) -> None:
        self.wait(lambda: self.inside is not None, "a holder")
        killed = self.inside
        assert killed is not None
        self._parent.kill(self.group.name(killed))
        before = len(self.left)
        self.wait(lambda: len(self.left) >= before + MEMBERS, "the others' entries")
        self._parent.say(f"the others go on without {self.group.name(killed)}")


def run(fault: bool) -> None:
    for algorithm in ALGORITHMS:
        with Parent("patterns.demos.mutex_members", "resource") as parent:
            parent.say(f"--- {algorithm}: {MEMBERS} members, one may be in ---")
            story = Story(parent, algorithm)
            story.group.start()
            if fault:
                story.pause_the_holder()
                story.kill_the_holder()
            else:
                story.let_all_enter()
            uses = story.group.uses
            parent.say(
                f"{len(story.left)} entries; {uses['accepted']} uses accepted, {uses['refused']} refused"
            )
            story.group.close()
