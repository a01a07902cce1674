"""Wikitext becomes prose, in time linear in its length."""

import mwparserfromhell.parser
import pytest
from mwparserfromhell.parser.tokenizer import Tokenizer

from pisco_index.corpus.formats.wikitext import lowered, prose


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("'''Bold''' and ''italic''", "Bold and italic"),
        ("[[Link]], [[target|label]], [[plural]]s, [[:Kategorie:X]]", "Link, label, plurals, Kategorie:X"),
        ("a [[Datei:x.jpg|thumb|A [[linked]] caption]] b [[Image:y.png]] c [[Kategorie:X]] d", "a b c d"),
        ("a [[fr:Un]] b [http://x.org label] c [http://y.org] d", "a b label c d"),
        ("a {{T|{{nested|x}}}} b <!-- no --> c<ref>no {{cite|x}}</ref> d<ref name=x /> e", "a b c d e"),
        ("before\n{| class=x\n| cell\n{|\n| inner\n|}\n|}\nafter", "before\nafter"),
        ("== Heading ==\nText.\n=== Sub ===\n* item\n# second", "Text.\nitem\nsecond"),
        ("a<gallery>\nFile:x.jpg|no\n</gallery>b <math>\\frac{1}{2}</math>c __NOTOC__ __KEIN_INHALT__", "ab c"),
        ("x&nbsp;y &amp; z<br />new <small>small</small> H<sub>2</sub>O", "x y & z\nnew small H2O"),
        ("Name ({{IPA|x}}; born 1815) and ({{lang|x}}) and (, {{x}})", "Name (born 1815) and and"),
        ("{{unclosed and [[unclosed", "{{unclosed and [[unclosed"),
        ("{| class=x\n| only\n|}", ""),
        ("* \n ** \n|", ""),
        ("<syntaxhighlight lang=c>int x;</syntaxhighlight><nowiki>''kept''</nowiki>", "kept"),
    ],
)
def test_wikitext_becomes_prose(wikitext, text):
    assert prose(wikitext, lowered(["file", "image", "category", "Datei", "Kategorie"])) == text


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("{{" * 50_000 + "x" + "}}" * 50_000, ""),
        ("\n{|\n|a" * 20_000 + "\n|}" * 20_000 + "\nx", "x"),
        ("{{a}{{b}}} x {{c|{d}}} y {{e}} z", "x } y z"),
        ("{|\n|a\n|}{|\n|b\n|} after", "after"),
        ("a [[t|b <i>c]] d {{ e [//x f\n] g <b h", "a b <i>c d {{ e [//x f\n] g <b h"),
        ("a &#xD800; b &#x1F600; c", "a b \U0001f600 c"),
    ],
)
def test_wikitext_with_open_ends(wikitext, text):
    assert prose(wikitext, frozenset()) == text


UNCLOSED = [
    "{{a|b ",
    "[[a|b ",
    "[[File:x|a ",
    "<b>a ",
    "<div class=",
    "<b a='",
    "[http://a b ",
    "\n{|a",
    "{{a [[b <i>c ",
]


@pytest.mark.parametrize("opening", UNCLOSED)
def test_wikitext_is_cleaned_in_time_linear_in_its_length(opening, monkeypatch):
    steps = [0]
    read_one = Tokenizer._read

    def counted(*arguments, **options):
        steps[0] += 1
        return read_one(*arguments, **options)

    monkeypatch.setattr(mwparserfromhell.parser, "use_c", False)
    monkeypatch.setattr(Tokenizer, "_read", counted)

    def work(times):
        steps[0] = 0
        prose(opening * times, frozenset())
        return steps[0]

    assert work(400) < 5 * work(100) + 1000
