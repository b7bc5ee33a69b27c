r"""Turn a folder of pickled weights (.bin, .pt, .pth) into safetensors, without running them.

    python jobs/import_checkpoint.py --source /downloads/LLaDA-MedV --out /models/LLaDA-MedV

In: config.json, pytorch_model.bin or its shards (with or without an index), mm_projector.bin beside
them if it is separate, tokenizer files. Out: the same tensors in the same dtype as safetensors,
config.json without `auto_map`, tokenizer and licence files, and import.json (digests of the
sources and of the result, the licence, versions). No network. A folder that holds safetensors needs
no import. Exit codes: 0 done, 2 the source or a setting is not right, 5 disk full.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from medv_ray.cli import told_cleanly


def import_command(
    source: Annotated[Path, typer.Option(help="Folder with config.json and pickled weights.")],
    out: Annotated[Path, typer.Option(help="New folder for safetensors.")],
    licence: Annotated[
        str | None, typer.Option(help="Licence of the weights, if the folder does not say it.")
    ] = None,
) -> None:
    """Turn pickled weights into safetensors; nothing that they hold is run."""
    from medv_ray.model.importing import KNOWN_LICENCES, import_folder

    done = import_folder(source, out, licence)
    stated = done.note["licence"]
    if stated["text"] is None:
        print("licence of these weights: NOT STATED by the folder; --licence TEXT records it.")
    else:
        print(f"licence of these weights (from {stated['from']}): {stated['text'].strip()}")
    print(f"for comparison: {KNOWN_LICENCES}")
    for name in done.note["left_out"]:
        print(f"left out, no weight: {name}")
    said = {"tensors": done.num_tensors, "bytes": done.num_bytes, "sha256": done.note["sha256"]}
    print(json.dumps({"imported": out.name, **said}))


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command(help=import_command.__doc__)(told_cleanly(import_command))
    app()
