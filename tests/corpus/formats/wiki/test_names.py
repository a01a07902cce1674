"""The words of MediaWiki: names of namespaces in the language of a wiki, and redirects in any language."""

import pytest

from pisco_index.corpus.formats.wiki.names import is_redirect, namespace_numbers

from . import write_names

MESSAGES = r"""<?php
/* $fallback = 'xx'; */
$fallback = 'zh-hans, en, zh';
$namespaceNames = [
	NS_TALK => "D'ailleurs",  # 'comment'
	NS_FILE => 'Bild\'n_all',
	# NS_FILE => 'Old',
];
$namespaceAliases = array( 'Image_de' => NS_FILE, );
$namespaceGenderAliases = [
	NS_USER => [ 'male' => 'Benutzer', 'female' => 'Benutzerin' ],
];
$magicWords = [
	'redirect' => [ 0, '#WEITERLEITUNG', '#REDIRECT' ],
];
"""


def test_the_table_is_written_from_message_files(tmp_path):
    (tmp_path / "MessagesZh_tw.php").write_text(MESSAGES)
    assert write_names.table(tmp_path) == {
        "redirects": ["#redirect", "#weiterleitung"],
        "languages": {
            "zh-tw": {
                "fallback": ["zh-hans", "zh"],
                "namespaces": {"1": ["d'ailleurs"], "2": ["benutzer", "benutzerin"], "6": ["bild'n all", "image de"]},
            }
        },
    }


@pytest.mark.parametrize(
    ("language", "name", "number"),
    [
        ("de", "bild", 6),
        ("de", "image", 6),
        ("es", "imagen", 6),
        ("ru", "изображение", 6),
        ("zh-tw", "圖像", 6),
        ("gsw", "kategorie", 14),
        ("ja", "カテゴリ", 14),
        ("vi", "tập tin", 6),
        ("xx", "category", 14),
        ("en", "class", None),
    ],
)
def test_a_wiki_knows_the_names_of_its_language_and_those_it_falls_back_to(language, name, number):
    assert namespace_numbers({}, language).get(name) == number


def test_the_header_of_an_export_has_precedence():
    names = namespace_numbers({"Bild_und_Ton": 106, "Bild": 0}, "de")
    assert (names["bild und ton"], names["bild"], names["datei"]) == (106, 0, 6)
    assert "wikipedia" not in names
    assert namespace_numbers({}, "de")["wikipedia"] == 4


@pytest.mark.parametrize(
    ("text", "redirects"),
    [
        ("#REDIRECT [[A]]", True),
        ("\n #Redirect: [[A|b]] {{R}}", True),
        ("#ПЕРЕНАПРАВЛЕНИЕ[[A]]", True),
        ("#重定向 [[A]]", True),
        ("＃転送 [[A#b]]", True),
        ("#REDIRECT is typed", False),
        ("#First [[item]] of a list", False),
        ("<nowiki>#REDIRECT [[A]]</nowiki>", False),
        ("A #REDIRECT [[A]]", False),
    ],
)
def test_redirects_are_seen_from_the_text(text, redirects):
    assert is_redirect(text) == redirects
