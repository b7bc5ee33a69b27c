r"""Write a checkpoint of a training run as a folder that scoring and the next stage load.

    python jobs/export_checkpoint.py --run /shared/pathvqa-run --out /models/pathvqa

In: the run folder of jobs/finetune_pathvqa.py and the folder that the run began with. Out:
config.json, safetensors in one dtype, tokenizer and licence files; the folder appears once it was
loaded. A LoRA adapter is merged; with --adapter its own folder is written, for
`--set model.adapter=DIR` of a scoring job. A stage that is not done needs --step or --best.

Exit codes: 0 done, 1 no whole checkpoint, 2 a setting is not right, 3 the base model is another
one, 5 disk full. The last line of stdout is one JSON object.
"""

import json
import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from medv_ray.cli import told_cleanly
from medv_ray.errors import SettingsError

Option = typer.Option


def export_command(
    run: Annotated[Path, Option(help="Run folder of a training job.")],
    out: Annotated[Path, Option(help="New folder.")],
    step: Annotated[int | None, Option(help="A checkpoint; default: the end of the stage.")] = None,
    best: Annotated[
        bool, Option("--best", help="The checkpoint of the best validation so far.")
    ] = False,
    dtype: Annotated[
        Literal["float32", "bfloat16"] | None, Option(help="Of the weights; default: the run's.")
    ] = None,
    adapter: Annotated[
        bool, Option("--adapter", help="The LoRA adapter alone, instead of merging it.")
    ] = False,
    model: Annotated[
        str | None, Option(help="Where the base lies now; default: where it lay.")
    ] = None,
) -> None:
    """Write a training checkpoint as a folder that scoring loads."""
    from medv_ray.settings import build, model_folder
    from medv_ray.training.export import export
    from medv_ray.training.job import TrainSettings
    from medv_ray.training.run import read_run

    if best and step is not None:
        raise SettingsError("E1001", "--best and --step name a checkpoint each; leave one out.")
    if adapter and dtype:
        raise SettingsError("E1001", "--dtype: an adapter stays float32; leave it out.")
    _, values = read_run(run.absolute())
    if model is not None:
        values["model"] = os.path.abspath(model_folder(model))
    done = export(build(TrainSettings, values), out.absolute(), dtype, step, adapter, best)
    print(json.dumps({"exported": out.name, "step": done, "adapter": adapter}))


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command(help=export_command.__doc__)(told_cleanly(export_command))
    app()
