"""`llm`: a model of extra-openai-models.yaml, by its command and from Python."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = tempfile.mkdtemp()
os.environ["LLM_USER_PATH"] = FOLDER

import llm  # noqa: E402
from cases import Given, case, given  # noqa: E402

assert given is not None
Path(FOLDER, "extra-openai-models.yaml").write_text(f"""
- model_id: medv
  model_name: {given.model}
  api_base: {given.url}
  api_key_name: medv
  vision: true
""")
Path(FOLDER, "keys.json").write_text(f'{{"medv": "{given.key}"}}')


def command(*arguments: str) -> str:
    program = str(Path(sys.executable).with_name("llm"))
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    return done.stdout.strip()


@case("command: multi-turn (-c), streamed")
def _(given: Given) -> list[str]:
    first = command("-m", "medv", given.first, "-a", given.image)
    return [first, command("-c", given.second)]


@case("command: multi-turn (-c), --no-stream")
def _(given: Given) -> list[str]:
    first = command("-m", "medv", given.first, "-a", given.image, "--no-stream")
    return [first, command("-c", given.second, "--no-stream")]


@case("Python: a conversation, with a system prompt at its end")
def _(given: Given) -> list[str]:
    conversation = llm.get_model("medv").conversation()
    picture = llm.Attachment(path=given.image)
    texts = [
        conversation.prompt(given.first, attachments=[picture]).text(),
        conversation.prompt(given.second, stream=False).text(),
    ]
    assert llm.get_model("medv").prompt(given.second, system="Be brief.").text()
    return texts
