"""Wikitext becomes prose, in time linear in its length."""

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pisco_index.corpus.formats.wikitext import lowered, prose

from ..fuzzing import fuzz


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
        ("{{a}{{b}}} x {{c|{d}}} y {{e}} z", "{{a}} x } y z"),
        ("{|\n|a\n|}{|\n|b\n|} after", "after"),
        ("a [[t|b <i>c]] d {{ e [//x f\n] g <b h", "a b c d {{ e [//x f\n] g <b h"),
        ("a &#xD800; b &#x1F600; c", "a b \U0001f600 c"),
        ("{|\n! a\n|-\n| style=x | b || c\n\nProse.\n\n{|\n| d\n|}\nMore.", "a\nb c\nProse.\nMore."),
        ("[[File:a.jpg|thumb|b [[c]] d\nProse. [[e|f]]", "[[File:a.jpg|thumb|b c d\nProse. f"),
        ("<table><tr><td>a</table>b<table><tr><td>c", "b\nc"),
        ("'''''a. b ''c'' d", "a. b c d"),
    ],
)
def test_wikitext_with_open_ends(wikitext, text):
    assert prose(wikitext, frozenset()) == text


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("a <small>b. c</ref> d <br/ >e<br\\>f</ div>g <center>h</span>", "a b. c d\ne\nf\ng\nh"),
        ("<b title='x > y' class=z>a</b><FONT COLOR=red>b<u>c</U>", "abc"),
        ("a < b, 3 <5, a <b and c> d, < b> <unknownword>", "a < b, 3 <5, a <b and c> d, < b> <unknownword>"),
        ("a<section begin=x />b<includeonly>c</includeonly><onlyinclude>d</onlyinclude><poem>e</poem>", "abd\ne"),
        ("x&amp;nbsp;y &#39;&nbsp;&rarr;z &unknown; AT&T &copy2", "x&nbsp;y ' →z &unknown; AT&T &copy2"),
        ("a __notoc__ __ПРИНУДИТЬ_ОГЛ__ ＿＿目次非表示＿＿ b __init__ __", "a b __init__ __"),
        ("a [http://x.org/b''c''] [//x d [[e]] f], see http://x.org/g_(h), i [mailto:j@k l]", "a c d e f, see, i l"),
        (
            "[[a|b [1] c]] [[d|[e]]] [[http://x f]] [[:File:g.jpg]] [[File:h.jpg|i [[j]]]]k",
            "b [1] c [e] f File:g.jpg k",
        ),
        (";a: b\n:* c\n----\n=d=\ne = f", "a\nb\nc\ne = f"),
        ("{|\n| style='a: b' nowrap colspan=2 | c\n|d=e f | g\n! h", "c\nd=e f | g\nh"),
        ("A <code><nowiki><!--</nowiki></code> here. <pre>{| b {{{</pre> There.", "A <!-- here.\n{| b {{{\nThere."),
    ],
)
def test_broken_and_literal_markup(wikitext, text):
    assert prose(wikitext, frozenset()) == text


@pytest.mark.parametrize("prefix", ["Datei", "Изображение", "Imagen", "ملف", "Own name"])
def test_files_are_known_by_their_extension_whatever_their_namespace_is_called(prefix):
    assert prose(f"a [[{prefix}:x y.JPG|мини|250px|b [[c]]]] d [[{prefix} : z.ogg]]", frozenset()) == "a d"
    assert prose(f"[[{prefix}:x y]] [[c:{prefix}:x.jpg|z]]", frozenset()) == f"{prefix}:x y z"


def test_categories_of_other_languages_are_dropped_where_they_stand_alone():
    text = "a [[Kategorie:B]] c\n[[Kategorie:B|sort]]\n[[Категория:B]]\n* [[Class: A Guide]]\n[[Talk: A]]"
    assert prose(text, lowered(["category"])) == "a Kategorie:B c\nClass: A Guide\nTalk: A"


# fmt: off
REPEATED = [
    "{{a|b ", "[[a|b ", "[[File:x|a ", "<b>a ", "<div class=", "<b a='", "<b =", "[http://a b ", "\n{|a",
    "{{a [[b <i>c ", "{", "[", "<", "-{", "{{{a|b ", "{{{a|[[b|", "<ref>a ", "<ref>a<math>b", "<!-- a ", "<nowiki>a ",
    "=", "= ", "__A_",
    "http://(", "http://.,", "-{zh:a;", "-{a=>", "<table>", "\n;a:", "\n| a=", "[[a:b.", "'", "( ,", "&#1", ";", "\t",
]
# fmt: on


@pytest.mark.parametrize("closing", ["", "}}", "]]", "}-", "-->", "|}"])
def test_wikitext_is_cleaned_in_time_linear_in_its_length(closing):
    begin = time.process_time()
    for opening in REPEATED:
        times = 60_000 // len(opening + closing)
        prose(opening * times + closing * times, frozenset())
    # In linear time all of them together take about a second.
    assert time.process_time() - begin < 10


# Sentences between pieces of markup

# fmt: off
BALANCED = [
    "{{t|a=b|{{u}}}}", "{{{n|}}}", "{{{n}}}", "[[File:x.jpg|thumb|a [[b|c]]]]", "[[a|b]]", "[http://x y]", "<br/ >",
    "<nowiki>{{</nowiki>", "<nowiki><!--</nowiki>", "<nowiki/>", "<pre>\n{|\n[[</pre>", "<math>{{ -{ <!-- </math>",
    "<!-- {{ <ref> [[ -->", "<ref name=a>{{b}}</ref>", "<ref name=a />", "\n{|\n| a\n|-\n|}\n",
    "<gallery>\n{{</gallery>", "-{zh:a;zh-tw:b}-", "-{H|a=>zh:b}-", "<b>a</b>", "'''a'''", "\n== a ==\n", "\n* ",
    "<syntaxhighlight>a --> {{{ |} }-</syntaxhighlight>", "\n; a : ", "<table><tr><td>a</table>", "__NOTOC__", "&amp;",
    "a < b", "<unknown>",
]
OPENED = [
    "{{", "{{{", "{{{{{", "{{t|a=", "{{{n|", "[[", "[[a|", "[[File:x.jpg|", "[http://x ", "<ref>", "<ref name=a>",
    "<b>", "<nowiki>", "<math>", "<gallery>", "<div class='", "<table>", "\n{|\n|", "\n{| class=a\n", "-{",
    "-{zh:", "'''", "<", "<b",
]
CLOSED = [
    "}}", "}}}", "}}}}}", "]]", "]", "</ref>", "</nowiki>", "</b>", "\n|}", "}-", "-->", "'''", ">", "|", "</table>",
]
# fmt: on
markup = st.lists(st.sampled_from(BALANCED + OPENED)) | st.lists(st.sampled_from(BALANCED + CLOSED))
anything = st.lists(
    st.sampled_from([*BALANCED, *OPENED, *CLOSED, "=", ":", ";", "\n", "a", "=>"]) | st.text(max_size=3)
)


@fuzz(300)
@given(markup, st.sampled_from([" ", "\n", "\n\n"]))
@example(["\n{|\n|", "<div class='", "{{t|a="], " ")
def test_sentences_between_pieces_of_markup_are_kept(pieces, blank):
    sentences = [f"Sentence {n} stays." for n in range(len(pieces) + 1)]
    between = zip(pieces, sentences[1:], strict=True)
    wikitext = sentences[0] + "".join(f"{blank}{piece}{blank}{sentence}" for piece, sentence in between)
    text = prose(wikitext, frozenset())
    assert [sentence for sentence in sentences if sentence not in text] == []


@fuzz(300)
@given(anything)
def test_any_wikitext_becomes_lines_of_prose(pieces):
    text = prose("".join(pieces), lowered(["file"]))
    assert all(any(map(str.isalnum, line)) and line == line.strip() for line in text.split("\n") if text)
