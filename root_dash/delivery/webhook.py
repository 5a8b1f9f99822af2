"""Verdicts to a chat: one POST for each, in the form that Slack, Mattermost and Discord take."""

from __future__ import annotations

import httpx2

from root_dash.exceptions import RootDashError

_LONGEST = 1900
"""Characters of a message: Discord refuses more than 2,000."""


class NotTold(RootDashError):
    """The webhook did not take a message."""


class Webhook:
    """Posts texts to one address. The address is a secret, and is in no message."""

    def __init__(self, url: str) -> None:
        self._url = checked_webhook(url)
        # Redirects are not followed: what is posted is for this address only.
        self._client = httpx2.Client(timeout=httpx2.Timeout(10.0), follow_redirects=False)

    def post(self, text: str) -> None:
        """Post a text.

        Raises:
            NotTold: nobody answers, or the answer is not one of success.
        """
        short = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
        try:
            response = self._client.post(self._url, json={"text": short, "content": short})
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise NotTold(f"the webhook at {self._url.host} cannot be reached: {type(error).__name__}") from None
        if not response.is_success:
            raise NotTold(f"the webhook at {self._url.host} answers {response.status_code}")

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def checked_webhook(url: str) -> httpx2.URL:
    """Return the address of a webhook.

    Raises:
        ValueError: the text is no address. The message does not repeat the text, which may hold a secret.
    """
    try:
        found = httpx2.URL(url)
    except httpx2.InvalidURL:
        found = httpx2.URL("")
    if found.scheme not in ("http", "https") or not found.host:
        raise ValueError("webhook must be an address that begins with http:// or https://, got another text")
    return found
