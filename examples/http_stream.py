"""Watch an answer come out of the mask, over plain HTTP: a line for every step of the denoising.

    medv serve &                                          # the embedded toy, at http://127.0.0.1:8000
    python examples/http_stream.py demo-run/images/0.png "How many large cells are there?"

Needs `pip install httpx2`. `make demo` makes the picture. A key is read from MEDV_API_KEY.
"""

import argparse
import base64
import json
import os
from pathlib import Path

import httpx2


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the denoising states of an answer.")
    parser.add_argument("image", type=Path)
    parser.add_argument("question")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    args = parser.parse_args()

    key = os.environ.get("MEDV_API_KEY")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    url = f"data:image/png;base64,{base64.b64encode(args.image.read_bytes()).decode()}"
    with httpx2.Client(base_url=args.url, headers=headers, timeout=120) as client:
        body = {
            "model": client.get("/v1/models").raise_for_status().json()["data"][0]["id"],
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": url}},
                        {"type": "text", "text": args.question},
                    ],
                }
            ],
            "stream": True,
            "stream_options": {"include_denoise": True},
        }
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                raise SystemExit(json.loads(response.read())["error"]["message"])
            show(response)


def show(response: httpx2.Response) -> None:
    """One line a step: the response's positions, dots where the mask still stands."""
    tokens: list[str] = []
    text = ""
    for line in response.iter_lines():
        data = line.removeprefix("data: ")
        if not line.startswith("data: ") or data == "[DONE]":
            continue
        chunk = json.loads(data)
        if "error" in chunk:
            raise SystemExit(chunk["error"]["message"])
        if denoise := chunk.get("denoise"):
            tokens = tokens or ["·"] * denoise["length"]
            for one in denoise["committed"]:
                tokens[one["position"]] = one["token"]
            print(f"step {denoise['step']:3}  {''.join(tokens)}")
        for choice in chunk["choices"]:
            text += choice["delta"].get("content", "")
        if "medv" in chunk:
            print(f"answer: {text} (confidence {chunk['medv']['confidence']:.3f})")


if __name__ == "__main__":
    main()
