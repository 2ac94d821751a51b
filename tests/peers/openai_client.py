"""Talks to a running appliance with the official OpenAI client: python3 openai_client.py BASE_URL MODEL"""

import sys

import openai

base_url, model = sys.argv[1:3]
client = openai.OpenAI(base_url=base_url, max_retries=0)
messages = [{"role": "user", "content": "What is the capital of France?"}]

assert model in [m.id for m in client.models.list().data]
whole = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=32)
text = whole.choices[0].message.content
assert text and whole.choices[0].finish_reason in ("stop", "length"), whole
assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens

parts, usage, finish = [], None, None
stream = client.chat.completions.create(
    model=model, messages=messages, temperature=0, max_tokens=32, stream=True,
    stream_options={"include_usage": True},
)
for chunk in stream:
    if chunk.choices:
        parts.append(chunk.choices[0].delta.content or "")
        finish = chunk.choices[0].finish_reason or finish
    if chunk.usage:
        usage = chunk.usage
assert "".join(parts) == text and finish == whole.choices[0].finish_reason
assert usage.total_tokens == whole.usage.total_tokens

seeded = [
    client.completions.create(model=model, prompt="Once upon a time", seed=7, temperature=0.9, max_tokens=16)
    for _ in range(2)
]
assert seeded[0].choices[0].text == seeded[1].choices[0].text, "same seed, same text"

stopped = client.chat.completions.create(
    model=model, messages=messages, temperature=0, max_tokens=32, stop=[text[4:8]]
)
assert text[4:8] not in stopped.choices[0].message.content
assert stopped.choices[0].finish_reason == "stop"

for wrong, kind in (
    (dict(temperature=-1), openai.BadRequestError),
    (dict(max_tokens=10**6), openai.BadRequestError),
    (dict(model="nothing"), openai.NotFoundError),
):
    try:
        client.chat.completions.create(**{"model": model, "messages": messages, **wrong})
    except kind as error:
        assert error.body["message"] and "param" in error.body, error.body
    else:
        raise AssertionError(f"not refused: {wrong}")
try:
    openai.OpenAI(base_url=base_url, api_key="sk-wrong", max_retries=0).models.list()
except openai.AuthenticationError:
    pass
else:
    raise AssertionError("a wrong key is not refused")
print("ok")
