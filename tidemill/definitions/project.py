"""Projects: a directory with a tidemill.toml."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tidemill.definitions.names import suggestion
from tidemill.errors import DefinitionError, NotFoundError
from tidemill.times import SECOND, format_duration, parse_duration

FILE = "tidemill.toml"
MAX_SHARDS = 4096
MAX_PORT = 65_535
#: Heartbeats and lags are told about once a second; what is gathered for much longer would look like a worker that hangs.
MAX_LINGER = 10 * SECOND

#: What each section of tidemill.toml may hold.
#: [kafka] may hold anything: the client's own settings, and those of a schema registry. So may [spark]: `"spark.executor.memory" = "8g"`.
_KEYS: dict[str, dict[str, type]] = {
    "project": {"name": str, "definitions": str},
    "online": {"url": str, "shards": int, "slack": str},
    "offline": {"url": str},
    "stream": {"brokers": str, "workers": int, "linger": str, "metrics": int, "metrics_host": str},
    "kafka": {"client": str},
    "batch": {"every": str, "metrics": int, "metrics_host": str, "engine": str},
    "spark": {"master": str},
    "predict": {
        "model": str,
        "to": str,
        "id": str,
        "features_from": str,
        "threshold": float,
        "chunk": int,
        "checks": dict,
        "metrics": int,
        "metrics_host": str,
    },
    "models": {"trusted": list},
    "log": {"reads": float, "predictions": float, "predictions_topic": str, "directory": str, "every": str},
    "learner": {
        **dict.fromkeys(("model", "labels", "label", "horizon", "lateness", "missing", "alias", "publish_every"), str),
        "join": list,
        "publish_examples": int,
    },
}
ENGINES = ("local", "spark")
_TYPE_NAMES = {str: "text", int: "a whole number", list: "a list of texts", float: "a number", dict: "a table"}
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_SQLITE = "sqlite:///"
#: What a schema registry lets in by. (Those of Kafka itself come from variables of their own; see `tidemill.logs.kafka.settings`.)
_REGISTRY = ("schema.registry.", "basic.auth.", "bearer.auth.")
_SECRET = ("user.info", "password", "token", "secret")


@dataclass(frozen=True)
class Project:
    """What tidemill.toml says. URLs and settings may hold credentials, so they are not in the `repr`.

    `definitions`: the absolute path of the definitions file. `online_url`, `offline_url`: with `${VAR}` filled from the environment, and
    relative paths made absolute. `brokers`: Kafka, or None: the sources' files are the log. `shards`: how many an entity is hashed to,
    fixed by the first `apply`. `slack`: how far in the past a read may be; `linger`: how long stream workers
    gather events, at the end of a log, before they write them; both in microseconds. `settings`: per section, what else is set
    (`stream.workers`, `stream.metrics`, `batch.every`, `batch.engine`, `spark.master`, Spark's own settings, `models.trusted`,
    `predict`, `log.reads`, `log.predictions_topic`, `learner`, `kafka.client`, the Kafka client's own settings, named as librdkafka
    names them, and those of a schema registry).
    """

    directory: Path
    name: str
    definitions: Path
    online_url: str = field(repr=False)
    offline_url: str = field(repr=False)
    brokers: str | None = field(default=None, repr=False)
    shards: int = 16
    slack: int = 10_000_000
    linger: int = 50_000
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: MappingProxyType({}), repr=False)

    @classmethod
    def load(cls, directory: str | os.PathLike[str] = ".", *, environment: Mapping[str, str] | None = None) -> Project:
        """The project in `directory`; `environment` is the process's own unless given.

        Raises `NotFoundError` when there is no tidemill.toml, and `DefinitionError`, naming the file and the key, when it is wrong.
        """
        root = Path(directory).absolute()
        file = root / FILE
        values = _Values(file, _parse(file), os.environ if environment is None else environment)
        shards = values.get("online", "shards", 16)
        if not 1 <= shards <= MAX_SHARDS:
            raise DefinitionError(f"{file}: online.shards is from 1 to {MAX_SHARDS}; got {shards}")
        workers = values.get("stream", "workers", 1)
        if workers < 1:
            raise DefinitionError(f"{file}: stream.workers is at least 1; got {workers}")
        for section in ("stream", "batch", "predict"):
            port = values.get(section, "metrics", 0)
            if not 0 <= port <= MAX_PORT:
                raise DefinitionError(f"{file}: {section}.metrics is a port, from 1 to {MAX_PORT}, or 0 for a free one; got {port}")
        linger = values.duration("stream", "linger", "50ms")
        if linger > MAX_LINGER:
            raise DefinitionError(f"{file}: stream.linger is at most {format_duration(MAX_LINGER)}; got {format_duration(linger)}")
        values.duration("batch", "every")
        for what in ("reads", "predictions"):
            share = values.get("log", what, 0)
            if not 0 <= share <= 1:
                raise DefinitionError(f"{file}: log.{what} is the share of {what} to note, from 0 to 1; got {share}")
        values.duration("log", "every", "10s")
        if values.get("log", "predictions_topic", None) and not values.get("stream", "brokers", None):
            raise DefinitionError(
                f'{file}: log.predictions_topic is a Kafka topic, and stream.brokers is not set: add brokers = "host:port"'
            )
        if values.get("kafka", "client", "python") not in ("confluent", "python"):
            raise DefinitionError(f"{file}: kafka.client is confluent or python; got {values.get('kafka', 'client', None)!r}")
        if values.get("batch", "engine", "local") not in ENGINES:
            raise DefinitionError(f"{file}: batch.engine is {' or '.join(ENGINES)}; got {values.get('batch', 'engine', None)!r}")
        fixed = {
            "project": ("name", "definitions"),
            "online": ("url", "shards", "slack"),
            "offline": ("url",),
            "stream": ("brokers", "linger"),
        }
        settings = {
            section: MappingProxyType({key: value for key, value in items.items() if key not in fixed.get(section, ())})
            for section, items in values.sections.items()
        }
        return cls(
            directory=root,
            name=values.get("project", "name", root.resolve().name),
            definitions=root / values.get("project", "definitions", "features.py"),
            online_url=_online(root, values.get("online", "url", "sqlite:///.tidemill/online.db")),
            offline_url=_offline(root, values.get("offline", "url", ".tidemill/offline")),
            brokers=values.get("stream", "brokers", None),
            shards=shards,
            slack=values.duration("online", "slack", "10s"),
            linger=linger,
            settings=MappingProxyType({section: items for section, items in settings.items() if items}),
        )

    def resolve(self, path: str) -> str:
        """A path or glob of the definitions, such as a source's, relative to the project; URLs stay as they are."""
        return path if "://" in path else str(self.directory / path)


class _Values:
    """Reads checked values out of the parsed file."""

    def __init__(self, file: Path, parsed: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        self.file = file
        self.sections: dict[str, dict[str, Any]] = {}
        for section, items in parsed.items():
            if section not in _KEYS:
                raise DefinitionError(f"{file}: unknown section [{section}]; {suggestion(section, _KEYS)}")
            if not isinstance(items, dict):
                raise DefinitionError(f"{file}: {section} is a section: write [{section}] on a line of its own, and its keys below")
            self.sections[section] = {key: self._checked(section, key, value, environment) for key, value in items.items()}

    def _checked(self, section: str, key: str, value: object, environment: Mapping[str, str], of: str = "") -> object:
        """A value of a section, or, in [predict], of what it says `of` some predictions."""
        known = _KEYS[section]
        if section == "predict" and not of and isinstance(value, dict) and key != "checks":
            return {name: self._checked(section, name, item, environment, key) for name, item in value.items()}
        if section in ("kafka", "spark") and key not in known:
            if isinstance(value, dict):
                raise DefinitionError(f'{self.file}: {section}.{key} has dots in its name, so write the name in quotes: "{key}..." = ...')
            if not isinstance(value, (str, int, float, bool)):
                raise DefinitionError(f"{self.file}: {section}.{key} must be one value; got {type(value).__name__}")
            if section == "spark" and not key.startswith("spark."):
                raise DefinitionError(
                    f'{self.file}: unknown key spark.{key}; write master, or a setting of Spark such as "spark.executor.memory"'
                )
            if key.startswith(_REGISTRY) and key.endswith(_SECRET) and "${" not in str(value):
                raise DefinitionError(f'{self.file}: kafka.{key} does not belong into a file: write "${{VARIABLE}}", and set that variable')
            return self._expanded(f"{section}.{key}", str(value).lower() if isinstance(value, bool) else str(value), environment)
        if key not in known:
            raise DefinitionError(f"{self.file}: unknown key {section}.{key}; {suggestion(key, known)}")
        if known[key] is float and type(value) is int:
            value = float(value)
        if not isinstance(value, known[key]) or isinstance(value, bool):
            raise DefinitionError(f"{self.file}: {section}.{key} must be {_TYPE_NAMES[known[key]]}; got {type(value).__name__}")
        if isinstance(value, list) and not all(isinstance(item, str) for item in value):
            raise DefinitionError(f"{self.file}: {section}.{key} must be a list of texts; got {value!r}")
        if isinstance(value, str):
            if not value:
                raise DefinitionError(f"{self.file}: {section}.{key} is empty; give it a value, or leave it out")
            if (section, key) == ("predict", "to") and "${" not in value and has_password(value):
                raise DefinitionError(
                    f'{self.file}: the password in predict.to does not belong into a file: write "${{VARIABLE}}" instead, and set that '
                    "variable, or leave it to PGPASSWORD or ~/.pgpass"
                )
            return self._expanded(f"{section}.{key}", value, environment)
        return value

    def _expanded(self, place: str, text: str, environment: Mapping[str, str]) -> str:
        for variable in _VARIABLE.findall(text):
            if variable not in environment:
                raise DefinitionError(f"{self.file}: {place} uses ${{{variable}}}, which is not in the environment; set it, then run again")
        return _VARIABLE.sub(lambda found: environment[found[1]], text)

    def get(self, section: str, key: str, default: Any) -> Any:
        return self.sections.get(section, {}).get(key, default)

    def duration(self, section: str, key: str, default: str = "0s") -> int:
        try:
            return parse_duration(self.get(section, key, default))
        except DefinitionError as error:
            raise DefinitionError(f"{self.file}: {section}.{key}: {error}") from None


def _parse(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"no project here: {file} does not exist; run `tidemill init`, or go to the project's directory") from None
    except OSError as error:
        raise DefinitionError(f"{file} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DefinitionError(f"{file} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise DefinitionError(f"{file} is not valid TOML: {error}") from None


def has_password(url: str) -> bool:
    """Whether a URL holds one.

    >>> has_password("postgresql://me:secret@db/shop"), has_password("postgresql://me@db/shop")
    (True, False)
    """
    parts = urlsplit(url)
    return parts.password is not None or "password" in parse_qs(parts.query)


def _online(root: Path, url: str) -> str:
    """SQLite's relative path made absolute: `sqlite:///x.db` is relative, `sqlite:////x.db` is not."""
    if url.startswith(_SQLITE) and not url[len(_SQLITE) :].startswith("/"):
        return _SQLITE + str(root / url[len(_SQLITE) :])
    return url


def _offline(root: Path, url: str) -> str:
    return url if "://" in url else str(root / url)
