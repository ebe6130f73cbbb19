"""A page's session: a signed cookie that names the key it was opened with, and the token its POSTs must show.

Flow:    POST /login -> [session] -> cookie gg_session -> serve.access
Source:  OWASP, signed double-submit pattern: the token is an HMAC of the session, so a foreign page cannot make one

Nothing is kept on the server: any replica that reads the same keys file takes the cookie, a restart ends no session,
and one ends with its key, or after LASTS_S.
"""

from __future__ import annotations

import base64
import hmac
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from serve.auth import KeyRing, Principal

COOKIE = "gg_session"
CSRF_HEADER = "x-csrf-token"
LASTS_S = 12 * 3600


@dataclass(frozen=True, slots=True)
class Session:
    """One login of one page."""

    principal: Principal
    csrf: str


class Sessions:
    """Makes and reads cookies. clock gives Unix seconds."""

    def __init__(self, ring: KeyRing, clock: Callable[[], float] = time.time) -> None:
        self._ring, self._clock = ring, clock

    def open(self, principal: Principal) -> tuple[str, Session]:
        """The cookie's value and the session that it stands for."""
        held = {"key": principal.key_id, "nonce": secrets.token_hex(16), "until": int(self._clock()) + LASTS_S}
        payload = _text(json.dumps(held).encode())
        return f"{payload}.{self._sign('session', payload)}", Session(principal, self._sign("csrf", payload))

    def read(self, cookie: str) -> Session | None:
        """The session of a cookie; None for one that is not ours, is over, or whose key was revoked."""
        payload, _, signature = cookie.partition(".")
        if not hmac.compare_digest(signature.encode(), self._sign("session", payload).encode()):
            return None
        held = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        principal = self._ring.by_id(held["key"])
        if principal is None or held["until"] < self._clock():
            return None
        return Session(principal, self._sign("csrf", payload))

    def _sign(self, purpose: str, payload: str) -> str:
        return _text(hmac.digest(self._ring.session_secret, f"{purpose}:{payload}".encode(), "sha256"))


def set_cookie(value: str, secure: bool) -> str:
    """Value of the Set-Cookie header; an empty value ends the session."""
    lasts = LASTS_S if value else 0
    return f"{COOKIE}={value}; Path=/; Max-Age={lasts}; HttpOnly; SameSite=Strict" + ("; Secure" if secure else "")


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
