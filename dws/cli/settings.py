"""Settings: flag, else environment variable, else dws.toml, else default.

What lives here: the table of settings with their names in each place, the
reading of dws.toml, and the parsing of values such as `10GiB`. What must not:
the meaning of the fields of `Config` (dws/config.py), all of which can be set.

The file is the one that DWS_CONFIG names (empty: none), else ./dws.toml, else
dws/dws.toml below ~/.config (XDG_CONFIG_HOME):

    balancer = "tcp://192.0.2.10:5600"
    [serve]
    bind = "192.0.2.11"
    [config]
    copies = 2
    quota_bytes = "10GiB"

An unknown key in it, or a value that does not parse, is a ConfigError that names
the key and the file. Unknown environment variables are not looked at.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Self, get_origin

import msgspec
from msgspec import Struct

from dws.addresses import EXAMPLE, endpoint_fault
from dws.config import Config
from dws.errors import ConfigError

FILE_NAME: Final = "dws.toml"
FILE_VARIABLE: Final = "DWS_CONFIG"

_UNITS: Final[dict[str, int]] = {"": 1, "B": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("KMGTP", start=1)
    for suffix, base in (("iB", 1024), ("", 1024), ("B", 1000))
}
_LOG_LEVELS: Final = ("debug", "info", "warning", "error")


def parse_bytes(text: str) -> int:
    """`10GiB`, `10G` (the same), `10GB` (powers of 1000) or plain bytes; ValueError otherwise."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = next((size for name, size in _UNITS.items() if match and name.lower() == match[2].lower()), None)
    if not match or unit is None:
        raise ValueError(f"{text!r} is not a size, such as 512MiB, 10GiB or 1000000")
    return int(float(match[1]) * unit)


def parse_endpoint(text: str) -> str:
    if fault := endpoint_fault(text):
        raise ValueError(fault)
    return text


def parse_port(text: str) -> int:
    port = int(text) if text.isascii() and text.isdigit() else -1
    if not 0 <= port <= 65_535:
        raise ValueError(f"{text!r} is not a port: wanted 0 (a free one) to 65535")
    return port


def parse_seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is no number of seconds") from None
    if not 0 < seconds <= 86_400:
        raise ValueError(f"{text!r} is not a time of up to 86400 seconds")
    return seconds


def parse_log_level(text: str) -> str:
    if text.lower() not in _LOG_LEVELS:
        raise ValueError(f"{text!r} is none of {', '.join(_LOG_LEVELS)}")
    return text.lower()


class Setting(Struct, frozen=True):
    """One setting: `key` is its place in dws.toml, `variable` in the environment."""

    key: str
    variable: str
    parse: Callable[[str], Any]
    default: Any


def _config_parser(field: msgspec.structs.FieldInfo) -> Callable[[str], Any]:
    if field.name.endswith(("_bytes", "_bytes_s")):
        return parse_bytes
    if field.type is str:
        return str
    is_list = get_origin(field.type) is tuple

    def parse(text: str) -> Any:
        value = text.split(",") if is_list else text
        try:
            return msgspec.convert(value, field.type, strict=False)
        except msgspec.ValidationError as error:
            raise ValueError(f"{text!r}: {error}") from None

    return parse


_PLAIN: Final = (
    Setting("balancer", "DWS_BALANCER", parse_endpoint, EXAMPLE),
    Setting("timeout_s", "DWS_TIMEOUT_S", parse_seconds, None),
    Setting("log_level", "DWS_LOG_LEVEL", parse_log_level, "info"),
    Setting("serve.name", "DWS_NAME", str, None),
    Setting("serve.bind", "DWS_BIND", str, "127.0.0.1"),
    Setting("serve.advertise", "DWS_ADVERTISE", str, ""),
    Setting("serve.port", "DWS_PORT", parse_port, None),
    Setting("serve.data", "DWS_DATA", Path, None),
)
CONFIG_FIELDS: Final = tuple(field.name for field in msgspec.structs.fields(Config))
SETTINGS: Final[dict[str, Setting]] = {
    setting.key: setting
    for setting in (
        *_PLAIN,
        *(
            Setting(f"config.{field.name}", f"DWS_{field.name.upper()}", _config_parser(field), field.default)
            for field in msgspec.structs.fields(Config)
        ),
    )
}


class Settings:
    """What the environment and dws.toml say. Flags, which go before both, are given to each call."""

    def __init__(self, environ: Mapping[str, str], table: Mapping[str, Any], file: str = FILE_NAME) -> None:
        """`table` is the parsed file: nested tables, checked here for unknown keys."""
        self._environ = environ
        self._file = file
        self._table = _flat(table, file)
        for key, value in self._table.items():
            # Also where something else goes before it: a wrong file should show before it counts.
            _parsed(SETTINGS[key], value, f"{key} in {file}")

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, directory: Path | None = None) -> Self:
        environ = os.environ if environ is None else environ
        path = find_file(environ, directory or Path())
        if path is None:
            return cls(environ, {})
        try:
            return cls(environ, tomllib.loads(path.read_text("utf-8")), str(path))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not TOML: {error}") from None
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from None

    def get(self, key: str, flag: Any = None) -> Any:
        """The setting's value; a flag that was given, already parsed or still text, goes first."""
        setting = SETTINGS[key]
        if flag is not None:
            return _parsed(setting, flag, _flag_name(key))
        # A variable set to nothing is one that is not set, as in unit files.
        if text := self._environ.get(setting.variable):
            return _parsed(setting, text, setting.variable)
        if key in self._table:
            return _parsed(setting, self._table[key], f"{key} in {self._file}")
        return setting.default

    def is_set(self, key: str) -> bool:
        return bool(self._environ.get(SETTINGS[key].variable)) or key in self._table

    def config(self, flags: Mapping[str, Any], pairs: tuple[str, ...] = ()) -> Config:
        """The whole Config: named flags (None: not given), then `key=value` pairs, go before the rest."""
        given = {name: value for name, value in flags.items() if value is not None}
        for pair in pairs:
            name, equals, value = pair.partition("=")
            if not equals or name not in CONFIG_FIELDS:
                raise ConfigError(f"--set {pair}: wanted KEY=VALUE{_nearest(name, CONFIG_FIELDS)}")
            given[name] = _parsed(SETTINGS[f"config.{name}"], value, f"--set {name}")
        return Config(**{name: self.get(f"config.{name}", given.get(name)) for name in CONFIG_FIELDS})


def _flag_name(key: str) -> str:
    """`config.period_s` is the flag --period: units are in the help instead."""
    name = key.rpartition(".")[2].removesuffix("_s").removesuffix("_bytes")
    return f"--{name.replace('_', '-')}"


def find_file(environ: Mapping[str, str], directory: Path) -> Path | None:
    """The settings file to read, or None. One that DWS_CONFIG names must be there."""
    named = environ.get(FILE_VARIABLE)
    if named is not None:
        return Path(named) if named else None
    home = environ.get("XDG_CONFIG_HOME") or (environ["HOME"] + "/.config" if environ.get("HOME") else None)
    places = [directory / FILE_NAME, *([Path(home) / "dws" / FILE_NAME] if home else [])]
    return next((path for path in places if path.is_file()), None)


def _parsed(setting: Setting, value: Any, source: str) -> Any:
    """A value from any source; TOML's and click's own types go the way of text, so all are checked alike."""
    if isinstance(value, list | tuple):
        value = ",".join(map(str, value))
    try:
        return setting.parse(str(value))
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from None


def _flat(table: Mapping[str, Any], file: str) -> dict[str, Any]:
    """`{"config": {"copies": 2}}` as `{"config.copies": 2}`; unknown keys are an error that names all."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            found |= {f"{key}.{inner}": deeper for inner, deeper in value.items()}
        else:
            found[key] = value
    unknown = [key for key in found if key not in SETTINGS]
    if unknown:
        near = _nearest(unknown[0], tuple(SETTINGS)) if len(unknown) == 1 else ""
        keys = "unknown key" if len(unknown) == 1 else "unknown keys"
        raise ConfigError(f"{file}: {keys} {', '.join(unknown)}{near}")
    wrong = [key for key, value in found.items() if isinstance(value, dict | bool)]
    if wrong:
        raise ConfigError(f"{file}: {', '.join(wrong)} must be text, a number or a list of numbers")
    return found


def _nearest(word: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"
