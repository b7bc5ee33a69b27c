"""This machine's own addresses. What is sent there goes past every proxy of the environment, which
would read it plain: keys, pictures, UIDs."""

from __future__ import annotations

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def no_proxy(host: str) -> dict[str, None]:
    """`mounts` of an httpx2 client of this host; as the environment says where it is elsewhere."""
    pattern = f"all://[{host}]" if ":" in host else f"all://{host}"
    return {pattern: None} if host in LOOPBACK else {}
