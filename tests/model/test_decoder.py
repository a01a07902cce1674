import copy
import json
import logging
import math
from dataclasses import replace

import pytest
import torch

from pisco_index import Compressor, Decoder, Memory
from pisco_index.errors import FingerprintMismatchError, PromptError
from pisco_index.model.passages import PassageTokenizer

QUESTIONS = ["Who?", "What is <MEM> in a text?", "And?", "x"]
DOCUMENTS = ["", "a long day in a small town " * 3, "hello", "x" * 30]
CHOSEN = [[0], [1, 2, 3], [], [3, 3]]


def memory_of(checkpoint, stage="hidden"):
    tokenizer = PassageTokenizer(checkpoint.compressor_tokenizer, rate=checkpoint.rate, max_length=512)
    passages = [document.passages[0] for document in tokenizer.tokenize(DOCUMENTS)]
    return Compressor.load(checkpoint, dtype=torch.float32).compress(passages, stage=stage)


def greedily(model, embeddings, ends, limit):
    """Greedy decoding by its definition: the whole sequence is computed again for each token."""
    ids = []
    with torch.inference_mode():
        while len(ids) < limit and not (ids and ids[-1] in ends):
            ids.append(int(model(inputs_embeds=embeddings[None]).logits[0, -1].argmax()))
            embeddings = torch.cat([embeddings, model.get_input_embeddings()(torch.tensor(ids[-1:]))])
    return ids


class TestAnyArchitecture:
    @pytest.fixture(scope="module")
    @staticmethod
    def decoder(made):
        return Decoder.load(made, dtype=torch.float32)

    @pytest.fixture(scope="module")
    @staticmethod
    def memories(made):
        memory = memory_of(made)
        return [memory.select(documents) for documents in CHOSEN]

    def test_answers_are_greedy_in_a_batch_and_one_by_one(self, decoder, memories):
        prompts = [decoder.prompt_ids(q, m.lengths) for q, m in zip(QUESTIONS, memories, strict=True)]
        end = [decoder.tokenizer.eos_token_id]
        expected = [
            greedily(decoder.model, decoder.embed(ids, m), end, 8) for ids, m in zip(prompts, memories, strict=True)
        ]
        assert decoder.generate(prompts, memories, max_new_tokens=8) == expected
        answers = [decoder.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in expected]
        assert decoder.answer_batch(QUESTIONS, memories, max_new_tokens=8) == answers
        assert [decoder.answer(q, m, max_new_tokens=8) for q, m in zip(QUESTIONS, memories, strict=True)] == answers

    def test_scores_are_the_same_in_a_batch_and_one_by_one(self, decoder, memories):
        answers = ["Ada", "in a small town", "y", "Zoë!"]
        answered = [decoder.answered_ids(q, m.lengths, a) for q, m, a in zip(QUESTIONS, memories, answers, strict=True)]
        prompts, counts = [ids for ids, _ in answered], [count for _, count in answered]
        found = decoder.answer_log_probs(prompts, counts, memories)
        for ids, count, one, log_probs in zip(prompts, counts, memories, found, strict=True):
            expected = decoder.logits(ids, one).log_softmax(-1)[-1 - count : -1]
            torch.testing.assert_close(log_probs, expected, rtol=1e-4, atol=1e-4)
            nll = -log_probs.gather(1, torch.tensor(ids[-count:])[:, None]).mean()
            labels = [-100] * (len(ids) - count) + ids[-count:]
            torch.testing.assert_close(nll, decoder.loss(ids, labels, one), rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def decoder(tiny):
    return Decoder.load(tiny, dtype=torch.float32)


@pytest.fixture(scope="module")
def memory(tiny):
    return memory_of(tiny)


class TestPrompt:
    def test_memory_takes_the_place_of_its_tokens_only(self, decoder, memory):
        chosen = memory.select([1, 0])
        ids = torch.tensor(decoder.prompt_ids("What is <MEM>?", chosen.lengths))
        slots = ids == decoder.tokenizer.convert_tokens_to_ids("<MEM>")
        assert int(slots.sum()) == sum(chosen.lengths)
        embedded = decoder.embed(ids.tolist(), chosen)
        assert torch.equal(embedded[slots], decoder.connector(chosen.values))
        assert torch.equal(embedded[~slots], decoder.model.get_input_embeddings()(ids)[~slots])

    def test_either_stage_gives_the_same_prompt(self, tiny, decoder, memory):
        ids = decoder.prompt_ids("Who?", memory.lengths)
        connected = decoder.connector.connect(memory)
        assert torch.equal(decoder.embed(ids, connected), decoder.embed(ids, memory))
        stored = memory_of(tiny, stage="embedding")
        torch.testing.assert_close(decoder.embed(ids, stored), decoder.embed(ids, memory), rtol=0, atol=1e-5)

    def test_memory_is_connected_in_the_decoders_dtype(self, tiny, memory):
        decoder = Decoder.load(tiny)
        assert (decoder.dtype, decoder.connector.weight.dtype) == (torch.bfloat16, torch.bfloat16)
        assert tiny.connector.weight.dtype == torch.float32
        ids = torch.tensor(decoder.prompt_ids("Who?", memory.lengths))
        slots = ids == decoder.tokenizer.convert_tokens_to_ids("<MEM>")
        expected = copy.deepcopy(tiny.connector).bfloat16()(memory.values)
        assert torch.equal(decoder.embed(ids.tolist(), memory)[slots], expected)
        assert isinstance(decoder.answer("Who?", memory, max_new_tokens=4), str)

    def test_embedding_changes_no_weights(self, decoder, memory):
        before = decoder.model.get_input_embeddings().weight.clone()
        decoder.embed(decoder.prompt_ids("Who?", memory.lengths), memory)
        assert torch.equal(decoder.model.get_input_embeddings().weight, before)

    def test_a_prompt_that_does_not_fit_is_an_error_that_says_what_to_do(self, decoder, memory):
        with pytest.raises(PromptError, match=r"answer of up to 5000 .* context of 4096\. Give fewer documents"):
            decoder.answer("Who?", memory, max_new_tokens=5000)
        with pytest.raises(PromptError, match="Give fewer documents"):
            decoder.answer("Who? " * 4000, memory, max_new_tokens=1)

    def test_the_whole_context_can_be_used(self, decoder, memory):
        none = memory.select([])
        assert len(decoder.generate([[5] * 4095], [none], max_new_tokens=1)[0]) == 1
        with pytest.raises(PromptError):
            decoder.generate([[5] * 4096], [none], max_new_tokens=1)

    def test_memory_of_another_connector_is_refused(self, decoder, memory):
        other = Memory(memory.values, memory.lengths, memory.stage, "abc")
        with pytest.raises(FingerprintMismatchError, match=f"connector abc, .* has {decoder.connector.digest}"):
            decoder.answer("Who?", other)

    @pytest.mark.parametrize("lengths", [[1], [1, 1, 1, 1, 1]])
    def test_a_prompt_has_one_slot_per_vector(self, decoder, memory, lengths):
        with pytest.raises(PromptError, match=f"{sum(lengths)} memory tokens for {len(memory.values)} vectors"):
            decoder.embed(decoder.prompt_ids("Who?", lengths), memory)

    def test_each_question_has_its_memory(self, decoder, memory):
        with pytest.raises(ValueError, match="2 questions for the memory of 1"):
            decoder.answer_batch(["Who?", "What?"], [memory])


class TestGreedy:
    @pytest.fixture
    def expected(self, decoder, memory):
        return decoder.answer("Who?", memory, max_new_tokens=30)

    @pytest.mark.parametrize(
        "settings",
        [
            {"do_sample": True, "temperature": 5.0, "top_p": 0.9, "top_k": 50},
            {"repetition_penalty": 9.0},
            {"no_repeat_ngram_size": 1},
            {"num_beams": 4},
            {"suppress_tokens": list(range(700))},
            {"min_new_tokens": 30},
            {"max_length": 3},
            {"do_sample": False, "temperature": 0.6, "top_p": 0.1},
        ],
        ids=lambda settings: next(iter(settings)),
    )
    def test_generation_settings_of_a_base_are_not_used(self, folder, memory, expected, settings, caplog, recwarn):
        path = folder / "base_decoder" / "generation_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))
        with caplog.at_level(logging.WARNING):
            found = Decoder.load(str(folder), dtype=torch.float32).answer("Who?", memory, max_new_tokens=30)
        assert found == expected
        assert (caplog.messages, list(recwarn)) == ([], [])

    def test_an_answer_ends_at_any_of_the_bases_end_tokens(self, folder, decoder, memory):
        prompt = decoder.prompt_ids("Who?", memory.lengths)
        (ids,) = decoder.generate([prompt], [memory], max_new_tokens=20)
        end = ids[3]
        path = folder / "base_decoder" / "generation_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [811, end]}))
        stopping = Decoder.load(str(folder), dtype=torch.float32)
        other = decoder.prompt_ids("What else?", ())
        none = memory.select([])
        short, long = stopping.generate([prompt, other], [memory, none], max_new_tokens=20)
        assert short == ids[: ids.index(end) + 1]
        unstopped = Decoder.load(str(folder), dtype=torch.float32, stop_token_ids=[])
        assert unstopped.generate([prompt], [memory], max_new_tokens=20)[0][: len(ids)] == ids
        (alone,) = decoder.generate([other], [none], max_new_tokens=20)
        assert long == (alone[: alone.index(end) + 1] if end in alone else alone)

    def test_a_model_without_end_tokens_does_not_stop(self, decoder, memory):
        model, tokenizer = decoder.model, decoder.tokenizer
        model.generation_config.eos_token_id = None

        class Endless:
            eos_token_id = None

            def __getattr__(self, name):
                return getattr(tokenizer, name)

        endless = Decoder(model, Endless(), decoder.connector)
        (ids,) = endless.generate([decoder.prompt_ids("Who?", ())], [memory.select([])], max_new_tokens=40)
        assert len(ids) == 40

    def test_no_questions_have_no_answers(self, decoder):
        assert decoder.answer_batch([], []) == []

    def test_the_models_own_generation_stops(self, decoder):
        # Other tests give copies, which share the model, other stop tokens.
        decoder.generation = decoder.generation
        ends = decoder.generation.stop_token_ids
        assert ends
        assert decoder.model.generation_config.eos_token_id == list(ends)
        assert decoder.model.generation_config.pad_token_id == decoder.tokenizer.pad_token_id
        other = copy.copy(decoder)
        other.generation = replace(decoder.generation, stop_token_ids=(5,))
        assert decoder.model.generation_config.eos_token_id == [5]
        decoder.generation = decoder.generation

    @pytest.mark.parametrize(
        ("question", "documents", "error", "message"),
        [
            ("", "memory", PromptError, "The question is empty"),
            (" \n", "memory", PromptError, "The question is empty"),
            (None, "memory", TypeError, "questions must be a list of strings; found None"),
            ("Who?", None, TypeError, "memories must be a list of Memory, one for each question; found None"),
            ("Who?", "text", TypeError, "found 'text'"),
        ],
    )
    def test_wrong_arguments(self, decoder, memory, question, documents, error, message):
        with pytest.raises(error, match=message):
            decoder.answer(question, memory if documents == "memory" else documents)


class TestScores:
    def test_the_loss_is_the_mean_over_the_labels(self, decoder, memory):
        ids = decoder.prompt_ids("Who?", memory.lengths, answer="Ada")
        labels = [-100] * (len(ids) - 3) + ids[-3:]
        logits = decoder.logits(ids, memory)
        assert logits.shape == (len(ids), len(decoder.tokenizer))
        log_probabilities = logits.log_softmax(-1)
        expected = -sum(float(log_probabilities[i - 1, ids[i]]) for i in range(len(ids) - 3, len(ids))) / 3
        assert math.isclose(float(decoder.loss(ids, labels, memory)), expected, rel_tol=1e-5)

    @pytest.mark.parametrize("answer", ["Ada", "Zoë Q. 北京", "im_end", ">", "x", "assistant", " Ada\n", "a <MEM> b"])
    def test_the_tokens_of_an_answer_are_its_words_and_the_end_token(self, decoder, answer):
        ids, count = decoder.answered_ids("Is it im_end?", ["A text: x"], answer)
        words = decoder.tokenizer.decode(ids[-count:])
        assert words == answer.strip().replace("<MEM>", "< MEM >") + decoder.tokenizer.eos_token
        assert ids[:-count] == decoder.prompt_ids("Is it im_end?", ["A text: x"])

    def test_a_prompt_with_its_answer_ends_with_the_end_token(self, decoder):
        ids, _ = decoder.answered_ids("Who?", [], "Ada")
        whole = decoder.prompt_ids("Who?", [], answer="Ada")
        assert ids == whole[:-1]
        assert decoder.tokenizer.decode(whole[-1:]) == "\n"

    @pytest.mark.parametrize(
        ("content", "answer"), [("'Sure.'", "Ada"), ("m['content'] | upper", "Ada"), ("m['content']", " ")]
    )
    def test_a_template_that_changes_answers_is_refused(self, decoder, monkeypatch, content, answer):
        template = "{% for m in messages %}{{ " + content + " }}{% endfor %}"
        monkeypatch.setattr(decoder.tokenizer, "chat_template", template)
        with pytest.raises(PromptError, match="does not keep the answer"):
            decoder.answered_ids("Who?", [], answer)

    def test_an_answer_beyond_the_context_is_not_scored(self, decoder, memory):
        ids, count = decoder.answered_ids("Who? " * 4000, [], "Ada")
        with pytest.raises(PromptError, match="context of 4096"):
            decoder.answer_log_probs([ids], [count], [memory.select([])])
        assert decoder.answer_log_probs([], [], []) == []
