"""Ask an endpoint through OpenAI's own client: a whole answer, other denoising, a stream.

    medv serve &                                          # the embedded toy, at http://127.0.0.1:8000
    python examples/openai_client.py demo-run/images/0.png "How many large cells are there?"

Needs `pip install openai`. `make demo` makes the picture. With an endpoint that has keys:
MEDV_API_KEY=... python examples/openai_client.py ... --url https://host
"""

import argparse
import base64
import os
from pathlib import Path

from openai import OpenAI


def main() -> None:
    parser = argparse.ArgumentParser(description="Ask an endpoint through OpenAI's client.")
    parser.add_argument("image", type=Path)
    parser.add_argument("question")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    args = parser.parse_args()

    client = OpenAI(base_url=f"{args.url}/v1", api_key=os.environ.get("MEDV_API_KEY", "none"))
    model = client.models.list().data[0].id
    picture = base64.b64encode(args.image.read_bytes()).decode()
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
                {"type": "text", "text": args.question},
            ],
        }
    ]

    # whole; beside OpenAI's fields the endpoint says how sure it is
    answer = client.chat.completions.create(model=model, messages=messages)
    ours = answer.model_extra["medv"][0]
    print(f"answer: {answer.choices[0].message.content}")
    print(f"confidence {ours['confidence']:.3f}, {ours['forward_passes']} forward passes")

    # sampler settings of this request alone
    answer = client.chat.completions.create(
        model=model, messages=messages, extra_body={"diffusion": {"preset": "turbo"}}
    )
    ours = answer.model_extra["medv"][0]
    print(f"turbo: {answer.choices[0].message.content} ({ours['forward_passes']} forward passes)")

    print("stream: ", end="")
    stream = client.chat.completions.create(
        model=model, messages=messages, stream=True, stream_options={"include_usage": True}
    )
    for chunk in stream:
        for choice in chunk.choices:
            print(choice.delta.content or "", end="", flush=True)
        if chunk.usage:
            print(f" ({chunk.usage.completion_tokens} tokens)")


if __name__ == "__main__":
    main()
