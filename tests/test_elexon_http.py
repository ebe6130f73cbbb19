"""gg_ray.elexon.http against a local server that misbehaves as the real one has been seen to."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from typing import Any

import pytest
from elexon_fakes import FakeClock
from elexon_rows import HOUR, T0, body, freq, wobble, z
from elexon_server import HTML, ElexonServer, Reply, client, problem, serving, zipped

from gg_ray.elexon.errors import BadAnswer, BadRequest, RateLimited, Unavailable
from gg_ray.elexon.http import HttpClient
from gg_ray.elexon.limits import Circuit, Retry

server = pytest.fixture(serving)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(T0 + 12 * HOUR)


@pytest.fixture
def http(server: ElexonServer, clock: FakeClock) -> HttpClient:
    return client(server, clock)


def ask(http: HttpClient) -> Any:
    """An hour of FREQ: the rows of the answer, in an event loop of its own."""

    async def whole() -> bytes:
        try:
            return await http.get(
                "/datasets/FREQ", {"measurementDateTimeFrom": z(T0), "measurementDateTimeTo": z(T0 + HOUR)}
            )
        finally:
            await http.aclose()

    return json.loads(asyncio.run(whole()))["data"]


def test_refused_questions_are_not_asked_again(http: HttpClient, server: ElexonServer, clock: FakeClock) -> None:
    for reply, says in ((problem(400), "must not exceed 1 day"), (Reply(status=404, body=HTML), "DOCTYPE")):
        server.script.append(reply)
        with pytest.raises(BadRequest, match=says):
            ask(http)
    assert len(server.questions) == 2
    assert clock.slept == []


def test_forbidden_is_not_asked_again_but_may_be_served_from_a_store(http: HttpClient, server: ElexonServer) -> None:
    server.script.append(Reply(status=403, body=HTML))
    with pytest.raises(Unavailable, match="403"):
        ask(http)
    assert len(server.questions) == 1


def test_server_errors_then_success(http: HttpClient, server: ElexonServer, clock: FakeClock) -> None:
    server.rows["/datasets/FREQ"] = freq(T0, wobble(4))
    server.script.extend([problem(500), Reply(status=503, body=HTML)])
    assert len(ask(http)) == 4
    assert len(clock.slept) == 2
    assert 0 < clock.slept[0] < 1
    assert clock.slept[1] < 2
    assert http.counts["retries"] == 2
    assert http.counts["status_503"] == 1


@pytest.mark.parametrize(
    ("headers", "pause"),
    [
        ({"retry_after": "17"}, 17.0),
        ({"retry_after": "Wed, 06 May 2026 12:00:09 GMT"}, 9.0),
        ({"retry_after": "999"}, 60),
    ],
)
def test_retry_after_is_honoured(
    http: HttpClient, server: ElexonServer, clock: FakeClock, headers: dict[str, str], pause: float
) -> None:
    server.rows["/datasets/FREQ"] = freq(T0, wobble(4))
    server.script.append(problem(429, **headers))
    assert len(ask(http)) == 4
    assert clock.slept == [pause]


def test_a_storm_of_429_ends_typed_and_opens_the_circuit(
    http: HttpClient, server: ElexonServer, clock: FakeClock
) -> None:
    server.always = problem(429, retry_after="8")
    with pytest.raises(RateLimited, match="429 after 5 tries") as caught:
        ask(http)
    assert caught.value.retry_after_s == 8.0
    assert len(server.questions) == 5
    with pytest.raises(Unavailable, match="circuit is open"):
        ask(http)
    assert len(server.questions) == 5
    clock.seconds += 60
    with pytest.raises(RateLimited, match="429 after 1 try; the circuit is open now"):
        ask(http)
    assert len(server.questions) == 6
    clock.seconds += 60
    server.always = None
    assert ask(http) == []


def test_a_storm_of_429_without_retry_after(http: HttpClient, server: ElexonServer, clock: FakeClock) -> None:
    server.always = problem(429)
    with pytest.raises(RateLimited) as caught:
        ask(http)
    assert caught.value.retry_after_s is None
    assert sum(pause for pause in clock.slept) < 1 + 2 + 4 + 8 + 3


def test_connection_reset_and_torn_answers_are_asked_again(http: HttpClient, server: ElexonServer) -> None:
    server.rows["/datasets/FREQ"] = freq(T0, wobble(4))
    server.script.extend([Reply(mode="reset"), Reply(mode="torn")])
    assert len(ask(http)) == 4
    assert http.counts["broken"] == 2


def test_nobody_listening(server: ElexonServer, clock: FakeClock) -> None:
    http = client(server, clock)
    http.base_url = http.base_url.copy_with(port=1)
    with pytest.raises(Unavailable, match=r"ConnectError.* after 5 tries"):
        ask(http)


def test_a_slow_drip_meets_the_deadline(server: ElexonServer, clock: FakeClock) -> None:
    http = client(server, clock, total_s=0.1)
    http.retry = Retry(tries=2)
    server.always = Reply(mode="drip")  # each byte comes well within read_s
    with pytest.raises(Unavailable, match=r"no whole answer in time .* after 2 tries"):
        ask(http)
    assert http.counts["timeouts"] == 2


@pytest.mark.parametrize("declared", [True, False])
def test_an_answer_of_25_mb_is_cut_off(http: HttpClient, server: ElexonServer, declared: bool) -> None:
    server.script.append(Reply(body=b" " * (25 * 2**20), headers={} if declared else {"content-length": ""}))
    with pytest.raises(BadAnswer, match="20971520"):
        ask(http)


def test_gzip_is_unpacked_under_the_same_bound(http: HttpClient, server: ElexonServer) -> None:
    server.script.append(zipped(body(freq(T0, wobble(5)))))
    assert len(ask(http)) == 5
    server.script.append(zipped(b" " * (25 * 2**20)))
    with pytest.raises(BadAnswer, match="larger than 20971520"):
        ask(http)
    torn = zipped(body(freq(T0, wobble(5))))
    server.script.append(Reply(body=torn.body[:-12], headers=torn.headers))
    with pytest.raises(BadAnswer, match="ends early"):
        ask(http)
    server.script.append(Reply(headers={"content-encoding": "gzip"}))
    with pytest.raises(BadAnswer, match="damaged gzip"):
        ask(http)
    server.script.append(Reply(headers={"content-encoding": "br"}))
    with pytest.raises(BadAnswer, match="'br'"):
        ask(http)


def test_a_small_answer_that_unpacks_to_a_large_one_never_takes_its_memory(
    http: HttpClient, server: ElexonServer
) -> None:
    server.script.append(zipped(b" " * (100 * 2**20)))
    tracemalloc.start()
    try:
        with pytest.raises(BadAnswer, match="larger than"):
            ask(http)
        assert tracemalloc.get_traced_memory()[1] < 70 * 2**20
    finally:
        tracemalloc.stop()


def test_redirects_stay_on_the_host(http: HttpClient, server: ElexonServer) -> None:
    server.rows["/datasets/FREQ"] = freq(T0, wobble(5))
    away = Reply(status=302, headers={"location": "http://127.0.0.2:9/x"})
    server.script.append(away)
    with pytest.raises(BadAnswer, match=r"redirected to http://127.0.0.2:9, off 127.0.0.1"):
        ask(http)
    server.script.extend([Reply(status=302, headers={"location": "http://127.0.0.1:port/"})] * 4)
    with pytest.raises(Unavailable, match="after 4 tries; the circuit is open now"):
        ask(http)
    http.circuit = Circuit()
    question = f"/bmrs/api/v1/datasets/FREQ?measurementDateTimeFrom={z(T0)}&measurementDateTimeTo={z(T0 + HOUR)}"
    server.script.append(Reply(status=307, headers={"location": question}))
    assert len(ask(http)) == 5
    server.always = Reply(status=307, headers={"location": question})
    with pytest.raises(BadAnswer, match="more than 3 redirects"):
        ask(http)


@pytest.mark.parametrize(
    "url", ["ftp://data.elexon.co.uk", "data.elexon.co.uk", "http://data.elexon.co.uk/x", "https://"]
)
def test_base_urls_that_must_not_be_asked(url: str) -> None:
    with pytest.raises(ValueError, match="http"):
        HttpClient(url)


def test_clients_of_one_host_share_a_bucket() -> None:
    one, two = HttpClient("https://data.elexon.co.uk/a"), HttpClient("https://data.elexon.co.uk/b")
    assert one.bucket is two.bucket
