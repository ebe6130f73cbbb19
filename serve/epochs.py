"""Numbers of feeder starts on a topic: the first half of a message's version.

Flow:    Redis (gg:epoch), newest scans on the topic -> [epochs] -> serve.feed
Source:  live.md, section 1: a version is never wall time
"""

from __future__ import annotations

from contextlib import suppress

from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from gg_ray.config import ConfigError
from serve import keys, topics
from serve.settings import KafkaSettings
from serve.wire import Poison, decode

_EPOCH = """
local epoch = redis.call('HINCRBY', KEYS[1], ARGV[1], 1)
if epoch <= tonumber(ARGV[2]) then
  epoch = tonumber(ARGV[2]) + 1
  redis.call('HSET', KEYS[1], ARGV[1], epoch)
end
return epoch
"""


def brisk_redis(url: str) -> Redis:
    """A client whose calls end within a second: a Redis that hangs must not hold a feed up.

    Raises: ConfigError, no such address.
    """
    try:
        return Redis.from_url(url, socket_timeout=1.0, socket_connect_timeout=1.0, retry=Retry(NoBackoff(), 0))
    except ValueError as error:
        raise ConfigError(f"REDIS_URL: {error}") from None


def next_epoch(redis: Redis, kafka: KafkaSettings) -> int:
    """The number of this start: one more than the store's, and more than that of the newest scans on the topic.

    So a store that was emptied does not make all later scans older than those before.
    Raises: BrokerError, RedisError.
    """
    found = [0]
    for message in topics.last_messages(kafka, kafka.topics.readings).values():
        with suppress(Poison):
            if message is not None:
                found.append(decode(message.value() or b"").epoch or 0)
    return int(redis.eval(_EPOCH, 1, keys.EPOCH, kafka.topics.readings, max(found)))
