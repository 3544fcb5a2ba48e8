"""What a request's facts are, from bodies as clients send them."""

from __future__ import annotations

import json

import pytest

from router.facts import ATTACHMENT_TOKENS, facts_of
from router.wire.chat import decode_chat
from router.wire.embeddings import decode_embedding
from router.wire.legacy import decode_completion


def facts(messages, **fields):
    return facts_of(
        decode_chat(json.dumps({"model": "m", "messages": messages, **fields}).encode())
    )


def user(content):
    return {"role": "user", "content": content}


def test_tokens_are_a_quarter_of_the_characters():
    assert facts([user("x" * 4000)]).input_tokens in range(1000, 1010)
    assert facts([user("")]).input_tokens >= 1


def test_a_conversation_begins_as_its_earlier_turns_did():
    turns = [user("question " * 100), {"role": "assistant", "content": "answer " * 100}]
    first, second = facts(turns[:1]), facts([*turns, user("more " * 100)])
    assert len(first.blocks) >= 3
    assert second.blocks[: len(first.blocks)] == first.blocks
    assert len(second.blocks) > len(first.blocks)


def test_no_more_of_a_prompt_is_hashed_than_is_of_use():
    body = json.dumps({"model": "m", "messages": [user("word " * 1000)]}).encode()
    whole, part = facts_of(decode_chat(body)), facts_of(decode_chat(body), 3)
    assert part.blocks == whole.blocks[:3]
    assert (part.input_tokens, len(whole.blocks)) == (whole.input_tokens, 19)


def test_parts_and_plain_text_say_the_same():
    text = "word " * 200
    assert facts([user([{"type": "text", "text": text}])]) == facts([user(text)])


def test_tools_and_roles_make_a_difference():
    tool = {"type": "function", "function": {"name": "f", "description": "d" * 600}}
    plain, armed = facts([user("q" * 600)]), facts([user("q" * 600)], tools=[tool])
    assert armed.input_tokens > plain.input_tokens + 100
    assert not set(armed.blocks) & set(plain.blocks)
    assert facts([{"role": "system", "content": "q" * 600}]).blocks != plain.blocks


def test_images_count_and_differ_by_what_they_show():
    def image(url):
        return facts([user([{"type": "image_url", "image_url": {"url": url}}]), user("q" * 600)])

    one, two = image("https://a.test/1.png"), image("https://a.test/2.png")
    assert one.input_tokens > ATTACHMENT_TOKENS
    assert one.blocks != two.blocks


def test_calls_and_refusals_of_earlier_turns_count():
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "y" * 400}}
    said = {"role": "assistant", "tool_calls": [call]}
    refused = {"role": "assistant", "content": [{"type": "refusal", "refusal": "n" * 400}]}
    told = {"role": "tool", "tool_call_id": "1", "content": "12"}
    assert facts([user("q"), said, told]).input_tokens > 100
    assert facts([user("q"), refused]).input_tokens > 100


def test_the_limit_of_the_answer_is_known():
    assert facts([user("q")], max_tokens=7).output_limit == 7


@pytest.mark.parametrize(
    ("given", "tokens"),
    [("x" * 400, 100), (["x" * 200, "y" * 200], 100), ([1, 2, 3], 3), ([[1, 2], [3]], 3)],
)
def test_prompts_and_inputs_count_however_they_are_given(given, tokens):
    prompt = decode_completion(json.dumps({"model": "m", "prompt": given}).encode())
    text = decode_embedding(json.dumps({"model": "m", "input": given}).encode())
    assert facts_of(prompt).input_tokens == facts_of(text).input_tokens == tokens
