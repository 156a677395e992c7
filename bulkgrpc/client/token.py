"""The token of a client's calls: a fixed one, or one of a function that is called again when the token ends."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable

from bulkgrpc.client.config import Token
from bulkgrpc.client.errors import BulkError, CallFailed, WrongInput
from bulkgrpc.errors import Reason


class TokenSource:
    """The current token of one client, on one event loop.

    A function is called before the first call, and when the server does not accept its last token any more; at most
    once for all calls that wait for it. What it raises is raised by the call that needs the token.
    """

    def __init__(self, token: Token, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._make = token if callable(token) else None
        self._token = "" if callable(token) else token
        self._turn = asyncio.Lock()

    async def current(self) -> str:
        """Return the token for the next call; "" for none. Raises WrongInput if it is none."""
        if self._make is None or self._token:
            return _checked(self._token)
        try:
            async with asyncio.timeout(self._deadline_s), self._turn:
                if not self._token:
                    self._token = _checked(await _made(self._make))
                return self._token
        except TimeoutError as error:
            message = f"the function `token` did not return within {self._deadline_s:g} s"
            raise CallFailed("DEADLINE_EXCEEDED", message, retriable=False) from error

    def replaces(self, used: str, failure: BulkError, *, repeated: bool) -> bool:
        """Return whether a call that failed with the token `used` is to be made again with another token.

        repeated: whether it was before, and no token was accepted since: then the function makes tokens that the
        server does not accept.
        """
        expired = failure.reason == Reason.TOKEN_EXPIRED or (failure.reason == Reason.INVALID_TOKEN and not repeated)
        if self._make is None or not expired:
            return False
        if self._token == used:
            self._token = ""
        return True


def _checked(token: str) -> str:
    if token and not (token.isascii() and token.isprintable() and " " not in token):
        raise WrongInput("the token has a character that no token has, such as the line break after it in a file")
    return token


async def _made(make: Callable[[], str | Awaitable[str]]) -> str:
    made = make() if inspect.iscoroutinefunction(make) else await asyncio.to_thread(make)
    token = await made if inspect.isawaitable(made) else made
    if not isinstance(token, str) or not token:
        raise WrongInput(f"the function `token` returned {token!r}: it must return a token, not empty, as a str")
    return token
