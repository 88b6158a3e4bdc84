"""A search through OpenAI's own client: `pip install openai`, and `marco serve` elsewhere.

    export OPENAI_BASE_URL=http://127.0.0.1:8781/v1 OPENAI_API_KEY=marco_...
    python examples/openai_client.py

Prints progress, the three best distinct answers with how sure each is, and what they cost.
"""

from openai import OpenAI

QUESTION = "Tom has 12 apples and buys 7 more. How many apples does he have now?"

client = OpenAI()  # address and key come from the environment
stream = client.chat.completions.create(
    model="tree",
    messages=[{"role": "user", "content": QUESTION}],
    n=3,
    max_completion_tokens=4096,
    stream=True,
    stream_options={"include_usage": True},
)
for chunk in stream:
    if chunk.usage:
        print(f"{chunk.usage.completion_tokens} tokens generated")
    for choice in chunk.choices:
        if choice.delta.content:
            print(f"answer {choice.index + 1}: {choice.delta.content}")
        elif choice.finish_reason:
            print(f"  confidence {choice.marco['confidence']:.2f}, {choice.marco['votes']} votes")
        else:
            print(f"{chunk.marco['state']}: {chunk.marco['rollouts']} rollouts")
