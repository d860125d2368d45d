"""The reader on kafka-python: slower, and always there."""

from __future__ import annotations

from typing import Any

import numpy as np

from tidemill.errors import LogError
from tidemill.logs.kafka.admin import translating
from tidemill.logs.kafka.reader import Fetched, Form, KafkaReader, Topics
from tidemill.logs.kafka.settings import Settings
from tidemill.logs.kafka.watch import TopicWatch

# So many are decoded in one go, in Python: more would keep the caller waiting.
_MOST = 10_000
_DEFAULTS = {"client_id": "tidemill", "fetch_max_bytes": 16 << 20, "max_partition_fetch_bytes": 8 << 20}
_OURS = {
    "group_id": None,
    "enable_auto_commit": False,
    "isolation_level": "read_committed",
    "auto_offset_reset": "none",
    "allow_auto_create_topics": False,
    "max_poll_records": _MOST,
    "metrics_enabled": False,
}


class PythonReader(KafkaReader):
    """Reads with kafka-python. Used by one thread."""

    def __init__(self, log: Topics, settings: Settings, watch: TopicWatch, topic: str, partition: int, offset: int, form: Form) -> None:
        super().__init__(log, watch, topic, partition, offset, form)
        what = f"topic {topic}, partition {partition}"
        with translating(what, settings.brokers):
            from kafka import KafkaConsumer, TopicPartition, errors

            self._errors = errors
            self._place = TopicPartition(topic, partition)
            self._what, self._brokers = what, settings.brokers
            self._consumer: Any = KafkaConsumer(**{**_DEFAULTS, **settings.python(reading=True, strict=False), **_OURS})
            self._consumer.assign([self._place])
            self._consumer.seek(self._place, offset)

    def _fetch(self, most: int) -> Fetched | None:
        errors = self._errors
        try:
            records = self._consumer.poll(0, max_records=min(most, _MOST)).get(self._place, ())
        except (errors.OffsetOutOfRangeError, errors.NoOffsetForPartitionError):
            self._refuse()
            return None
        except errors.RetriableError:
            return None  # it tries again, and the watch knows how long that has been
        except errors.KafkaError as error:
            self._give_up(error)
            return None
        end = records[-1].offset + 1 if records else self.position
        try:
            end = max(end, self._consumer.position(self._place, timeout_ms=0))
        except errors.RetriableError:
            pass
        except errors.KafkaError as error:  # those records are good all the same
            self._give_up(error)
        if records:
            self._hear()
        offsets = np.fromiter([record.offset for record in records], dtype=np.int64, count=len(records))
        return Fetched(offsets, [record.value for record in records], [record.timestamp for record in records], end)

    def _give_up(self, error: Exception) -> None:
        if isinstance(error, self._errors.LogTruncationError):
            self._fail(self._lost(str(error)))
        else:
            self._fail(LogError(f"{self._what}, after offset {self.position}: {str(error) or type(error).__name__}"))

    def _stand(self, offset: int) -> None:
        self._consumer.seek(self._place, offset)

    def _close(self) -> None:
        self._consumer.close(autocommit=False)
