"""Config: every relation between settings that must hold is checked, and the error names it."""

import ast
import inspect
from typing import Any

import msgspec
import pytest

from dws.config import Config, defaults, impatient
from dws.errors import ConfigError
from dws.limits import BATCH_MAX_BYTES, CHUNK_BYTES, FETCH_MAX_BYTES

IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    ({"copies": 0}, "copies"),
    ({"copies": 17}, "copies"),
    ({"policy": "best"}, "least-load, random, round-robin, two-choices"),
    ({"beat_s": 0.0}, "beat_s > 0"),
    ({"beat_s": float("nan")}, "beat_s > 0"),
    ({"beat_s": 0.5}, "suspect_s >= 2 * beat_s"),
    ({"suspect_s": 4.0}, "suspect_s < down_dead_s"),
    ({"down_dead_s": 20.0}, "down_dead_s <= dead_s"),
    ({"period_s": 0.9}, "period_s >= 4 * beat_s"),
    ({"probe_s": 0.0}, "probe_s"),
    ({"probe_s": 31.0}, "probe_s <= period_s"),
    ({"probe_fractions": (0.5, 1.0)}, "probe_fractions"),
    ({"stage_idle_s": 0.0}, "stage_idle_s"),
    ({"garbage_s": 0.0}, "garbage_s"),
    ({"rebuild_quiet_s": 0.0}, "rebuild_quiet_s"),
    ({"behind_s": 0.0}, "behind_s"),
    ({"batch_memory_s": -1.0}, "batch_memory_s"),
    ({"quota_bytes": -1}, "quota_bytes"),
    ({"open_batches_max": 0}, "open_batches_max"),
    ({"copies_at_once": 0}, "copies_at_once"),
    ({"job_window": 0}, "job_window"),
    ({"job_reissue_s": 0.0}, "job_reissue_s"),
    ({"free_reserve": 1.0}, "free_reserve"),
    ({"free_reserve": -0.1}, "free_reserve"),
    ({"staged_memory_peer_bytes": BATCH_MAX_BYTES - 1}, "one batch"),
    ({"staged_memory_bytes": BATCH_MAX_BYTES}, "2 * staged_memory_peer_bytes"),
    ({"write_queue_bytes": FETCH_MAX_BYTES - 1}, "write_queue_bytes"),
    ({"copy_credit_bytes": CHUNK_BYTES}, "copy_credit_bytes"),
    ({"weight_rtt": -1.0}, "weights"),
    ({"round_clients": 0}, "round_"),
]


@pytest.mark.parametrize(("settings", "relation"), IMPOSSIBLE, ids=lambda each: str(each)[:40])
def test_an_impossible_setting_is_refused_and_the_relation_named(
    settings: dict[str, Any], relation: str
) -> None:
    with pytest.raises(ConfigError, match="not possible: wanted") as raised:
        Config(**settings)
    assert relation in str(raised.value)


def test_the_defaults_are_those_of_the_design() -> None:
    config = defaults()
    assert (config.copies, config.policy) == (2, "least-load")
    assert (config.beat_s, config.suspect_s, config.down_dead_s, config.dead_s) == (0.25, 0.75, 3.0, 15.0)
    assert (config.period_s, config.garbage_s, config.stage_idle_s) == (30.0, 60.0, 30.0)
    assert (config.free_reserve, config.batch_memory_s, config.behind_s) == (0.05, 600.0, 1.0)


def test_an_impatient_cluster_keeps_every_relation_and_only_hurries() -> None:
    slow, fast = defaults(), impatient()
    for field in Config.__struct_fields__:
        before, after = getattr(slow, field), getattr(fast, field)
        assert after == before or (field.endswith("_s") and after < before), field
    assert impatient(Config(copies=3)).copies == 3


def test_a_config_cannot_be_changed_behind_its_checks() -> None:
    with pytest.raises(AttributeError):
        defaults().copies = 0  # type: ignore[misc]
    with pytest.raises(ConfigError):
        msgspec.structs.replace(defaults(), copies=0)


def test_every_setting_says_what_it_means() -> None:
    """Each field is followed by a text of its own, or shares the next one's (weights and rounds)."""
    body = ast.parse(inspect.getsource(Config)).body[0]
    assert isinstance(body, ast.ClassDef)
    without = [
        (each.target.id, after)
        for each, after in zip(body.body, [*body.body[1:], None], strict=True)
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
        if not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant))
    ]
    assert {name.split("_")[0] for name, _ in without} <= {"weight", "round"}
