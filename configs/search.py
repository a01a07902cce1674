"""Configuration of the search index: how texts and questions are cut into words."""

from typing import Annotated, Literal

from pydantic import Field

from .base import Config, Flag

Language = Literal[
    "Arabic",
    "Danish",
    "Dutch",
    "English",
    "Finnish",
    "French",
    "German",
    "Greek",
    "Hungarian",
    "Italian",
    "Norwegian",
    "Portuguese",
    "Romanian",
    "Russian",
    "Spanish",
    "Swedish",
    "Tamil",
    "Turkish",
]
"""Languages whose stems and stop words the index knows."""


class SearchConfig(Config):
    """Settings of the search index. An index keeps them, and questions are cut into words by the same settings."""

    language: Language = Field("English", description="Language of the stems and of the stop words.")
    tokenizer: Literal["simple", "icu"] = Field(
        "simple",
        description="Rule that finds words: simple splits at spaces and punctuation; icu uses dictionaries too, for "
        "Chinese, Japanese, Thai and the like.",
    )
    stem: bool = Field(True, description="Search for stems, so that a question about rivers finds a river.")
    stop_words: Annotated[bool, Flag(names=("--stopwords/--no-stopwords",))] = Field(
        True, description="Leave the language's most frequent words out of the index and of questions."
    )
