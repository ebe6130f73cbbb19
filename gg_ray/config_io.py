"""Settings in and out: YAML files and nested overrides.

Flow:    configs/NAME.yaml or a file + overrides -> [config_io] -> config.RunConfig -> runs/NAME/config.yaml
Source:  scalars follow the YAML 1.2 core schema: in 1.1 `gates: off` is a boolean and `lr: 1e-3` a string
Run:     gg-ray train --config smoke --print-config
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import math
import re
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

import yaml

from gg_ray.config import ConfigError, RunConfig, as_dict, did_you_mean

_CONFIGS = "gg_ray.configs"
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_INT = re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$")
_FLOAT = re.compile(
    r"""^(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
        |\.[0-9]+(?:[eE][-+]?[0-9]+)?
        |[0-9][0-9_]*[eE][-+]?[0-9]+
        |\.(?:inf|Inf|INF))
        |\.(?:nan|NaN|NAN))$""",
    re.VERBOSE,
)
_NULL = re.compile(r"^(?:~|null|Null|NULL|)$")
_NUMBER_STARTS = list("-+0123456789.")


class _Loader(yaml.SafeLoader):
    """Safe YAML with 1.2 scalars; a key given twice is an error, not the last one winning."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own attribute

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(f"line {key.start_mark.line + 1}: a setting's name must be a word")
            if key.value in seen:
                raise ConfigError(f"{key.value} is given twice (line {key.start_mark.line + 1}); keep one of them")
            seen.add(key.value)
        return cast("dict[Any, Any]", super().construct_mapping(node, deep))


class _Dumper(yaml.SafeDumper):
    """Safe YAML that quotes whatever 1.1 or 1.2 would read as something else than a string."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", _BOOL, list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, _NUMBER_STARTS)
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", _NULL, ["~", "n", "N", ""])
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, _NUMBER_STARTS)
_Dumper.add_representer(
    tuple, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True)
)


def known_names() -> tuple[str, ...]:
    """Names of the packaged settings, sorted; each is a value of `--config`."""
    files = importlib.resources.files(_CONFIGS).iterdir()
    return tuple(sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml")))


def load(name_or_file: str | None = None, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Settings of a run: the defaults, then the named settings, then the overrides.

    Args:    name_or_file  a name of `known_names()`, a YAML file, or None for the defaults alone;
             overrides     nested like the file; dotted keys (`{"learner.lr": 1e-3}`) are accepted too
    Returns: a checked RunConfig. A file without `name` takes its own stem, so that its run gets a folder of its own.
    Raises:  ConfigError naming the file or the dotted setting, its value and the way out.
    """
    data: dict[str, Any] = {} if name_or_file is None else _read(name_or_file)
    _merge(data, overrides or {})
    return from_dict(data)


def from_dict(data: Mapping[str, Any]) -> RunConfig:
    """RunConfig from a nested mapping; whatever is not named keeps its default. Raises: ConfigError."""
    return cast(RunConfig, _build(RunConfig, data, ""))


def dump(config: RunConfig) -> str:
    """YAML text of every setting; `from_dict(parse(dump(config))) == config`."""
    return yaml.dump(as_dict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def parse(text: str, source: str = "settings") -> dict[str, Any]:
    """Nested mapping of YAML text; `source` is what an error names. Raises: ConfigError."""
    try:
        data = yaml.load(text, Loader=_Loader)  # a SafeLoader: nothing but plain values
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{source}: expected `setting: value` lines, found a {type(data).__name__}")
    return data


def setting_paths() -> tuple[str, ...]:
    """Dotted path of every setting, such as `learner.loss.twin`."""
    return tuple(path for path, _ in _leaves(as_dict(RunConfig())))


def _read(name_or_file: str) -> dict[str, Any]:
    names = known_names()
    if name_or_file in names:
        text = importlib.resources.files(_CONFIGS).joinpath(f"{name_or_file}.yaml").read_text(encoding="utf-8")
        return parse(text, f"{name_or_file}.yaml")
    path = Path(name_or_file)
    if not (path.suffix in (".yaml", ".yml") or len(path.parts) > 1):
        hint = did_you_mean(name_or_file, names) or f"; choose from {', '.join(names)}, or give a .yaml file"
        raise ConfigError(f"unknown config {name_or_file!r}{hint}")
    try:
        data = parse(path.read_text(encoding="utf-8"), name_or_file)
    except OSError as error:
        raise ConfigError(f"config file {name_or_file}: {error.strerror}; packaged: {', '.join(names)}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"config file {name_or_file}: not UTF-8 text") from None
    data.setdefault("name", path.stem)
    return data


def _merge(into: dict[str, Any], overrides: Mapping[str, Any], prefix: str = "") -> None:
    for key, value in overrides.items():
        head, _, rest = str(key).partition(".")
        if rest:
            value = {rest: value}
        if isinstance(value, Mapping):
            section = into.setdefault(head, {})
            if not isinstance(section, dict):
                raise ConfigError(f"{prefix}{head}: {section!r} is not a section, so {value!r} cannot be set in it")
            _merge(section, value, f"{prefix}{head}.")
        else:
            into[head] = value


def _build(cls: type, data: Mapping[str, Any], prefix: str) -> object:
    """Instance of a settings dataclass; `prefix` is the dotted path of the section, with its dot."""
    hints = _hints(cls)
    values: dict[str, Any] = {}
    for key, value in data.items():
        path = f"{prefix}{key}"
        if key not in hints:
            hint = did_you_mean(path, setting_paths()) or f"; known here: {', '.join(hints)}"
            raise ConfigError(f"{path}: unknown setting{hint}")
        expected = hints[key]
        if dataclasses.is_dataclass(expected):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{path}: {value!r} is not a section; expected settings such as {_example(expected)}")
            values[key] = _build(cast(type, expected), value, f"{path}.")
        else:
            values[key] = _coerce(value, expected, path)
    return cls(**values)


def _coerce(value: object, expected: Any, path: str) -> object:
    """Value as the declared type: lists become tuples and whole numbers floats; nothing else is converted."""
    origin = get_origin(expected)
    if origin is Literal:
        choices = get_args(expected)
        if value not in choices:
            raise ConfigError(f"{path}: {value!r}; choose from {', '.join(map(str, choices))}")
        return value
    if origin is tuple:
        item_types = get_args(expected)
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{path}: {value!r} is not a {_name(expected)}; write it as [a, b]")
        if item_types[-1] is Ellipsis:
            return tuple(_coerce(item, item_types[0], f"{path}[{i}]") for i, item in enumerate(value))
        if len(value) != len(item_types):
            raise ConfigError(f"{path}: {value!r} has {len(value)} values; expected a {_name(expected)}")
        return tuple(
            _coerce(item, kind, f"{path}[{i}]") for i, (item, kind) in enumerate(zip(value, item_types, strict=True))
        )
    if expected is float and type(value) is int:
        value = float(value)
    if type(value) is not expected:  # exact: bool is an int, and True learner steps are a mistake
        raise ConfigError(f"{path}: {value!r} is a {type(value).__name__}; expected {_name(expected)}")
    if isinstance(value, float) and math.isnan(value):
        raise ConfigError(f"{path}: nan; expected a number")
    return value


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _name(expected: Any) -> str:
    return str(expected) if isinstance(expected, types.GenericAlias) else str(getattr(expected, "__name__", expected))


def _example(section: Any) -> str:
    return ", ".join(field.name for field in dataclasses.fields(section)[:3])


def _leaves(tree: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
