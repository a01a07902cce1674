import pytest

from pisco_index import open_checkpoint
from pisco_index.errors import CheckpointError
from pisco_index.model.prompt import SYSTEM, prompt_text, user_text

CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHAT


@pytest.fixture
def tokenizer(make_tokenizer):
    return lambda chat: make_tokenizer(chat=chat)


def test_documents_are_memory_slots_and_the_question_comes_last():
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


def test_a_template_that_refuses_a_system_message_gets_its_text_in_the_users(tokenizer):
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


# Chat templates that try to leave their sandbox, never end, or fail.
TEMPLATES = {
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__['os'].system('touch touched') }}",
    "code of a function": "{{ namespace.__init__.__globals__.os.system('touch touched') }}",
    "by format": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}{{ (messages|first)['x'].y }}",
    "a file": "{% include '/etc/passwd' %}",
    "an import": "{% import 'os' as os %}{{ os.system('touch touched') }}",
    "a change of its arguments": "{{ messages.append(1) }}",
    "a range without end": "{% for i in range(1000000000000) %}x{% endfor %}",
    "no template": "{% for %}",
    "a text of any length": "{{ 'x' * 1000000000000 }}",
    "a division by zero": "{{ 1 / 0 }}",
    "no end of macros": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "no end of brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
}


@pytest.mark.usefixtures("nothing_is_run", "little_memory_is_taken")
class TestSandbox:
    @pytest.mark.parametrize("case", TEMPLATES)
    def test_a_template_stays_in_it(self, folder, case):
        (folder / "decoder_tokenizer" / "chat_template.jinja").write_text(TEMPLATES[case])
        tokenizer = open_checkpoint(folder).decoder_tokenizer
        with pytest.raises(CheckpointError, match=f"^{folder}/decoder_tokenizer: the chat template fails") as error:
            prompt_text(tokenizer, "Who?", [1])
        assert "\n" not in str(error.value)

    def test_a_template_finds_nothing_by_filters(self, tokenizer):
        template = "{{ ''|attr('__class__')|attr('__mro__') }}{{ ''|map(attribute='__class__')|list }}{{ self._x }}"
        assert prompt_text(tokenizer(template), "Who?", [1]) == "[]"

    def test_a_choice_of_templates_without_a_default(self, tokenizer):
        with pytest.raises(CheckpointError, match="the chat template fails"):
            prompt_text(tokenizer({"a": "x", "b": "y"}), "Who?", [1])
