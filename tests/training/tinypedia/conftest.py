"""Articles of both splits."""

from itertools import islice

import pytest

from pisco_index.training.tinypedia import Article, articles

SPLITS = ("train", "held-out")


@pytest.fixture(scope="package")
def written() -> dict[str, list[Article]]:
    return {split: list(islice(articles(split), 5000)) for split in SPLITS}


@pytest.fixture(params=SPLITS)
def split(request) -> str:
    return request.param
