"""How the storage of a remote root is reached."""

from __future__ import annotations

from dataclasses import dataclass

ANSWER_SECONDS = 60.0  # more than it takes until a request that gets no answer has failed


@dataclass(frozen=True)
class StorageSettings:
    """Config `data.storage`. Keys and tokens are no part of it: they come from the environment only.

    Args:
        endpoint_url: of an S3 service, http(s)://host:port; None: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL or a profile's,
            else AWS.
        region: of the bucket; None: AWS_DEFAULT_REGION or a profile's, else us-east-1.
        anonymous: ask without credentials, for public buckets.
        ca_bundle: file of the certificates that the endpoint's is checked with; None: AWS_CA_BUNDLE, else the system's.
        patience_seconds: how long a storage that does not answer is asked again.
    """

    endpoint_url: str | None = None
    region: str | None = None
    anonymous: bool = False
    ca_bundle: str | None = None
    patience_seconds: float = 600.0
