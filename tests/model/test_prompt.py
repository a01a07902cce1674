import pytest

from pisco_index import CheckpointError
from pisco_index.model.prompt import SYSTEM, prompt_text, user_text

CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHAT


@pytest.fixture
def tokenizer(make_tokenizer):
    return lambda chat: make_tokenizer(chat=chat)


def test_documents_are_memory_slots_and_the_question_stands_last():
    assert user_text("Who?", [2, 0, 1]) == (
        "\n\nBackground:Document 0:<MEM><MEM>Document 1:Document 2:<MEM>\n Question: Who?"
    )


def test_no_documents_are_an_empty_background():
    assert user_text("Who?", []) == "\n\nBackground:\n Question: Who?"


def test_a_question_opens_no_slots():
    assert user_text("What is <MEM> or <RET>?", [1]).count("<MEM>") == 1
    assert user_text("What is <MEM>?", []).endswith("Question: What is < MEM >?")


def test_the_assistants_turn_is_open_for_generation_and_closed_for_training(tokenizer):
    before = f"<system>{SYSTEM}<user>{user_text('Who?', [1])}<assistant>"
    assert prompt_text(tokenizer(CHAT), "Who?", [1]) == before
    assert prompt_text(tokenizer(CHAT), "Who?", [1], answer="Ada") == before + "Ada"


def test_thinking_is_off(tokenizer):
    chat = "{{ 'thinks' if enable_thinking is undefined or enable_thinking else 'answers' }}"
    assert prompt_text(tokenizer(chat), "Who?", [1]) == "answers"


def test_a_template_that_refuses_a_system_turn_has_its_text_in_the_users(tokenizer):
    user = f"<user>{SYSTEM}\n{user_text('Who?', [1])}<assistant>"
    assert prompt_text(tokenizer(NO_SYSTEM), "Who?", [1]) == user
    assert prompt_text(tokenizer(NO_SYSTEM), "Who?", [1], answer="Ada") == user + "Ada"


@pytest.mark.parametrize(
    ("chat", "message"),
    [(None, "no chat template"), ("{{ raise_exception('never') }}", "fails: never"), ("{% if %}", "fails: ")],
)
def test_a_template_that_cannot_be_used_is_an_error(tokenizer, chat, message):
    with pytest.raises(CheckpointError, match=message):
        prompt_text(tokenizer(chat), "Who?", [1])
