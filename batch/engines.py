"""Which engine runs a batch job: `local`, on this machine, or `spark`."""

from __future__ import annotations

from tidemill.definitions.project import ENGINES
from tidemill.environment import Environment
from tidemill.errors import TidemillError

from .engine import Spread


def engine_of(env: Environment, name: str | None = None, master: str | None = None) -> Spread | None:
    """The engine that is asked for, else the one that tidemill.toml names under [batch]; None: the local one, as a job makes it.

    `master` is Spark's, else that of [spark], else this machine. Raises `TidemillError` for another name, a master without Spark, and where
    PySpark is missing.
    """
    name = name or str(env.project.settings.get("batch", {}).get("engine", "local"))
    if name not in ENGINES:
        raise TidemillError(f"there is no engine {name!r}: say {' or '.join(ENGINES)}")
    if name == "local":
        if master is not None:
            raise TidemillError("a master is Spark's: say --engine spark with it")
        return None
    try:
        from .spark.fold import Place, SparkEngine  # needs the extra
        from .spark.session import Cluster
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("pyspark", "py4j"):
            raise
        raise TidemillError("the engine spark needs PySpark, which is not installed: pip install 'tidemill[spark]'") from error
    return SparkEngine(Place.of(env), Cluster.of(env.project, master))
