"""Addresses that may carry credentials: recognise them, and take credentials out of text."""

import os
import re
from urllib.parse import quote

# User and password before the host of an address: "user:password@", but not "host:port/", or "user@" with no colon.
_USER = re.compile(r"(?<!abfss)(:/{1,2})(?:[^\s'\"/@:]*:(?!\d+(?:/|$))[^\s'\"@]+|[^\s'\"/@:]+)@")
# Query parameters that sign a request or hold a key.
_PARAMETER = re.compile(
    r"(?i)([?&](?:sig|signature|x-amz-[a-z-]+|\w*(?:access_?key|secret|token|password)\w*)=)[^&\s'\")<]+"
)
# Elements of the answer that S3 gives to a wrong signature.
_ANSWERED = re.compile(
    r"<(AWSAccessKeyId|AccessKeyId|StringToSign|StringToSignBytes|CanonicalRequest|CanonicalRequestBytes|"
    r"SignatureProvided|Token-0)>.*?</\1>",
    re.DOTALL,
)
# Environment variables whose values are credentials.
_SECRET_NAME = re.compile(
    r"(?:AWS|AMAZON|AZURE|GOOGLE|HF|HUGGING\w*)_(?:\w*_)?(?:\w*KEY|SECRET|TOKEN|PASSWORD|SAS)(?:_\w+)?"
)
# Shorter values are no credentials, and may occur in any text.
_SHORTEST_SECRET = 8


def without_credentials(text: str) -> str:
    """Return the text with "…" in place of credentials.

    Credentials are recognised in addresses, in the answers of object stores, and by the environment's values.
    """
    text = _USER.sub(r"\1…@", text)
    text = _PARAMETER.sub(r"\1…", text)
    text = _ANSWERED.sub(r"<\1>…</\1>", text)
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and _SECRET_NAME.fullmatch(name) and not name.endswith("_FILE"):
            text = text.replace(value, "…").replace(quote(value, safe=""), "…")
    return text
