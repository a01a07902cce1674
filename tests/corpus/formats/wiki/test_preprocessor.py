"""What MediaWiki resolves first: literal text, templates and their parameters, language variants."""

import pytest

from pisco_index.corpus.formats.wiki.preprocessor import (
    unhidden,
    with_one_variant,
    without_literals,
    without_templates,
)


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("{{{1|tall}}}, {{{wood|{{{timber|pine}}}}}}, {{{2}}}, {{{n|}}}", "tall, pine, , "),
        ("{{{1|a|b}}} {{{1|[[a|b]] c|d}}} {{{a|{{t|x}}b}}}", "a [[a|b]] c b"),
        ("{{t|{{{1|x}}}|{{u}}}}z", "z"),
        ("{{{{{1|x}}}|y}}z {{{{{{1}}}}}}z", "z z"),
        ("{{{{a}}}}z {{{{a}}z", "z {{z"),
        ("{{a}}{{b}}} x {{c|{d}}} y {{e}} z", "} x } y  z"),
        ("{{{n|def {{t}} rest", "{{{n|def  rest"),
        ("{{a {{{b|c [[d|e]]", "{{a {{{b|c [[d|e]]"),
        ("}} {{", "}} {{"),
    ],
)
def test_templates_and_parameters(wikitext, text):
    assert without_templates(wikitext) == text


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("-{zh-hans:a;zh-hant:b}-c", "ac"),
        ("-{ zh-cn:a b ; zh-tw:c; zh-hk:d; }-", "a b"),
        ("-{zh-cn:;zh-tw:b}-", "b"),
        ("-{a: b; c}-, -{http://a}-, -{a|b}-, -{}-", "a: b; c, http://a, a|b, "),
        ("-{H|zh-cn:a;zh-tw:b;}--{T|zh:a}--{-|zh-cn:a}--{H|a=>zh-cn:b;}--{N|zh-cn}-c", "c"),
        ("-{A|zh-cn:a;zh-tw:b}-, -{R|a}-, -{A;D|zh:c}-, -{|zh:d}-, -{a=>zh-cn:e;}-", "a, a, c, d, e"),
        ("-{zh-hans;zh-hant|a}-", "a"),
        ("-{zh-cn:a -{zh-cn:b;zh-tw:c}- d;zh-tw:e}-", "a b d"),
        ("-{sr-ec:дуга; sr-el:duga}-, -{sr-el:[[a|b]];sr-ec:c}-", "дуга, [[a|b]]"),
        ("-{{t}}-, -{{{t}}}-, -{zh:{{{1|a}}}}-", "--, , a"),
        ("-{zh-hans:a; b }- -{c", "a; b -{c"),
    ],
)
def test_one_variant_is_shown(wikitext, text):
    assert with_one_variant(without_templates(wikitext)) == text


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("a <!-- <nowiki> --> b <nowiki><!--</nowiki> c --> d", "a  b <!-- c --> d"),
        ("<nowiki>{{</nowiki>a<NoWiki/ >b<nowiki />", "{{ab"),
        ("a<ref name='>'>{{</ref>b<ref name=x / >c<references><ref>d</ref></references>", "abc"),
        ("<math>{{</math>a<source lang=x><!--</source >b<gallery>\nA.jpg|[[\n</gallery>c", "abc"),
        # Without an end, a region loses its tag only.
        ("a<ref>b c<ref>d</ref>e<math>f", "ab cef"),
        ("a<!-- b", "a b"),
        ("a<nowiki>b <nowiki>c", "ab c"),
        ("a<ref>b</ref name=c>d</ref>e", "ae"),
        ("<mathematics>a</mathematics> <pre-x>", "<mathematics>a</mathematics> <pre-x>"),
    ],
)
def test_literal_regions(wikitext, text):
    assert unhidden(without_literals(wikitext)) == text


def test_marks_in_literal_text_open_nothing():
    hidden = without_literals("<nowiki>{{ }} [[ ]] {| <b> -{ }- = * # : ; |</nowiki>")
    assert not set(hidden) & set("{}[]<>|=*#:;")
    assert unhidden(hidden) == "{{ }} [[ ]] {| <b> -{ }- = * # : ; |"
