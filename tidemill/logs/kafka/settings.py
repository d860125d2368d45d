"""Settings that a user passes through to the Kafka clients, under librdkafka's names (`security.protocol`, `ssl.ca.location`, ...).

librdkafka takes them as they are. For kafka-python, which also does topics and offsets whichever client reads, they are translated.
Passwords come from the environment, so that they are in no file, and in no error.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tidemill.errors import LogError

#: Passwords, by the variable of the environment that holds them.
PASSWORDS = {"sasl.password": "TIDEMILL_KAFKA_PASSWORD", "ssl.key.password": "TIDEMILL_KAFKA_KEY_PASSWORD"}

# What reading exactly once from an offset rests on.
_OURS = {
    "allow.auto.create.topics",
    "auto.offset.reset",
    "bootstrap.servers",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.partition.eof",
    "group.id",
    "isolation.level",
    "metadata.broker.list",
}

_TEXT = {
    "client.id": "client_id",
    "sasl.mechanism": "sasl_mechanism",
    "sasl.mechanisms": "sasl_mechanism",
    "sasl.username": "sasl_plain_username",
    "sasl.password": "sasl_plain_password",
    "sasl.kerberos.service.name": "sasl_kerberos_service_name",
    "security.protocol": "security_protocol",
    "ssl.ca.location": "ssl_cafile",
    "ssl.certificate.location": "ssl_certfile",
    "ssl.crl.location": "ssl_crlfile",
    "ssl.key.location": "ssl_keyfile",
    "ssl.key.password": "ssl_password",
}
_NUMBERS = {
    "connections.max.idle.ms": "connections_max_idle_ms",
    "receive.message.max.bytes": "receive_message_max_bytes",
    "reconnect.backoff.max.ms": "reconnect_backoff_max_ms",
    "reconnect.backoff.ms": "reconnect_backoff_ms",
    "retry.backoff.ms": "retry_backoff_ms",
    "socket.receive.buffer.bytes": "receive_buffer_bytes",
    "socket.send.buffer.bytes": "send_buffer_bytes",
}
# Only for a consumer.
_READING = {
    "fetch.max.bytes": "fetch_max_bytes",
    "fetch.message.max.bytes": "max_partition_fetch_bytes",
    "fetch.min.bytes": "fetch_min_bytes",
    "fetch.wait.max.ms": "fetch_max_wait_ms",
    "max.partition.fetch.bytes": "max_partition_fetch_bytes",
}


@dataclass(frozen=True, slots=True)
class Settings:
    """Checked settings. `timeout` in seconds. Raises `LogError` for those that are not the user's to set."""

    brokers: str
    given: Mapping[str, str] = field(default_factory=dict)
    timeout: float = 10.0

    def __post_init__(self) -> None:
        for name in sorted(self.given):
            if name in PASSWORDS:
                raise LogError(f"Kafka setting {name}: a password does not belong into a file; put it into the variable {PASSWORDS[name]}")
            if name in _OURS:
                raise LogError(f"Kafka setting {name}: tidemill sets it itself, because exact results rest on it; leave it out")
        if not self.brokers.strip():
            raise LogError("no Kafka brokers are named: expected host:port, or several with commas between them")

    def confluent(self) -> dict[str, str | int | float | bool]:
        """For librdkafka."""
        return {"bootstrap.servers": self.brokers, **self.given, **self._passwords()}

    def python(self, *, reading: bool, strict: bool) -> dict[str, object]:
        """For kafka-python. `strict`: refuse what it does not know, rather than what concerns security alone."""
        made: dict[str, object] = {
            "bootstrap_servers": [broker.strip() for broker in self.brokers.split(",") if broker.strip()],
            "bootstrap_timeout_ms": int(self.timeout * 1000),
            "request_timeout_ms": int(self.timeout * 1000),
            # Its default, 30 s, would keep a reader from a broker that has long come back.
            "reconnect_backoff_max_ms": 1000,
            "kafka_client": self._network,
        }
        for name, value in {**self.given, **self._passwords()}.items():
            if name in _TEXT:
                made[_TEXT[name]] = value.upper() if name == "security.protocol" else value
            elif name in _NUMBERS:
                made[_NUMBERS[name]] = _number(name, value)
            elif name in _READING:
                if reading:
                    made[_READING[name]] = _number(name, value)
            elif name == "check.crcs":
                if reading:
                    made["check_crcs"] = value.lower() == "true"
            elif name == "client.rack":
                if reading:
                    made["client_rack"] = value
            elif name == "ssl.endpoint.identification.algorithm":
                made["ssl_check_hostname"] = value != "none"
            elif strict or name.startswith(("sasl.", "security.", "ssl.", "enable.ssl.")):
                known = ", ".join(sorted({*_TEXT, *_NUMBERS, *_READING} - PASSWORDS.keys()))
                raise LogError(f"Kafka setting {name}: kafka-python has nothing like it; it takes {known}")
        return made

    def _network(self, **configs: Any) -> Any:
        """The network part of a kafka-python client, with what kafka-python 3.0.12 takes as an option, and does not hand on.

        Else it would wait ten seconds for a connection whatever the time-out, and create the topic that it looks for.
        """
        from kafka.net.compat import KafkaNetClient

        wait = int(self.timeout * 1000)
        configs |= {"socket_connection_setup_timeout_ms": wait, "socket_connection_setup_timeout_max_ms": wait}
        client = KafkaNetClient(**configs)
        client._manager.cluster.config["allow_auto_create_topics"] = False
        return client

    def _passwords(self) -> dict[str, str]:
        """Each only where it is asked for: librdkafka warns of what it does not use."""
        wanted = {"sasl.password": "sasl.username", "ssl.key.password": "ssl.key.location"}
        return {name: os.environ[PASSWORDS[name]] for name, why in wanted.items() if why in self.given and PASSWORDS[name] in os.environ}


def _number(name: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise LogError(f"Kafka setting {name}: expected a whole number, not {value!r}") from None
