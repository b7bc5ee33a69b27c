"""`medv doctor`: a checkpoint folder's keys, dtype, tokenizer and licence, and one short answer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from medv_ray.errors import MedvError
from medv_ray.on_ray.findings import Check, free_memory, gib

MODEL_FIX = "`medv explain CODE` says more; jobs/import_checkpoint.py makes a folder"
ROOM = 1.25
"""Memory that a short answer takes, as a multiple of the weights."""


def check_model(model: str) -> Iterator[Check]:
    """Nothing of the folder is believed that has not been read."""
    from medv_ray.data.prompts import load_tokenizer
    from medv_ray.model import weights
    from medv_ray.settings import model_folder

    try:
        folder = Path(model_folder(model))
        config, stored = weights.read_headers(folder)
        load_tokenizer(folder)
    except MedvError as error:
        yield Check("fault", "model", str(error), MODEL_FIX)
        return
    numbers = Counter[str]()
    for entry in stored.values():
        numbers[entry.dtype] += math.prod(entry.shape)
    total = sum(numbers.values())
    kinds = ", ".join(f"{dtype} {count / total:.0%}" for dtype, count in numbers.most_common())
    said = f"{len(stored)} tensors, none missing, of {total / 1e9:.3g} billion numbers: {kinds}"
    yield Check("ok", "model", said)
    yield _licence(folder)
    yield _answers(str(folder), total, config.vision is not None)


def _licence(folder: Path) -> Check:
    from medv_ray.model.importing import licence_of
    from medv_ray.settings import TOY

    if folder == TOY:
        return Check("ok", "licence", "Apache-2.0, as this package")
    text = licence_of(folder, None)["text"]
    first = next((line.strip("# ") for line in (text or "").splitlines() if line.strip()), "")
    if not first:
        fix = "put a LICENSE into the folder, or `license:` at the top of its README.md"
        return Check("warning", "licence", "the folder names none", fix)
    lowered = text.lower() if text else ""
    if "non-commercial" in lowered or "noncommercial" in lowered or "-nc" in lowered:
        fix = "see that your use is one that it allows"
        return Check("warning", "licence", f"{first[:80]}: no commercial use", fix)
    return Check("ok", "licence", first[:80])


def _answers(folder: str, numbers: int, sees: bool) -> Check:
    """One question, answered in two forward passes, where there is memory for it."""
    import torch

    from medv_ray.data.synthetic import grey_image
    from medv_ray.engine import Predictor, Request
    from medv_ray.engine.request import Answer
    from medv_ray.settings import AnswerSettings, ModelSettings, SamplerSettings

    gpu = torch.cuda.is_available()
    needed, free = numbers * (2 if gpu else 4) * ROOM, _free(gpu)
    where = "GPU" if gpu else "CPU"
    if needed > free:
        said = (
            f"not tried: it takes {gib(needed)} of memory on this {where}, and {gib(free)} are free"
        )
        return Check("warning", "answer", said, "run it where the model is to run")
    settings = AnswerSettings(sampler=SamplerSettings(gen_length=8, block_length=8, steps=2))
    model = ModelSettings(path=folder, dtype="bfloat16" if gpu else "float32")
    pictures = (grey_image(),) if sees else ()
    try:
        with Predictor.load(model, settings) as predictor:
            [ended] = predictor.answer([Request("ready?", pictures)])
    except MedvError as error:
        return Check("fault", "answer", str(error), MODEL_FIX)
    except Exception as error:  # its text may hold anything
        fix = "`medv ask` with the same --model and MEDV_DEBUG=1 shows more"
        return Check("fault", "answer", f"{type(error).__name__} on the {where}", fix)
    if not isinstance(ended, Answer):
        return Check("fault", "answer", str(ended), MODEL_FIX)
    if any(not math.isfinite(one) for one in ended.token_confidence):
        return Check("fault", "answer", "confidences that are no numbers", MODEL_FIX)
    said = f"one in {ended.forward_passes} passes, {ended.seconds:.2f} s on the {where}"
    return Check("ok", "answer", said)


def _free(gpu: bool) -> int:
    """Bytes of memory for a model, where one process would load it."""
    import torch

    return torch.cuda.mem_get_info()[0] if gpu else free_memory()
