"""Options that several commands share, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

Text = str | None
AsScore = Annotated[Text, Option(help="As for `medv score`.")]
Model = Annotated[
    Text,
    Option(help="Checkpoint folder, org/name@revision of the hub, or `toy`, the embedded one."),
]
A_MODEL = "Checkpoint folder, or org/name@revision of the hub; default: the embedded toy."
Adapter = Annotated[Text, Option(help="Folder, or org/name@revision, of a LoRA adapter on it.")]
Config = Annotated[Path | None, Option(help="YAML file of settings; flags win.")]
Window = Annotated[
    Text,
    Option(help="Of grey DICOM: file, lung, brain, bone ..., number:2 or level/width (40/400)."),
]
Sets = Annotated[list[str] | None, Option("--set", help="Any setting: --set sampler.steps=32.")]
SamplerSets = Annotated[
    list[str] | None, Option("--set", help="A sampler setting: --set sampler.steps=32.")
]
Split = Annotated[str, Option(help="Of a prepared dataset.")]
SampleSeed = Annotated[int, Option(help="Which rows are drawn.", min=0)]
FirstQuestions = Annotated[int | None, Option(help="Only the first questions.", min=1)]
NumGpus = Annotated[float, Option(help="GPUs of an actor.", min=0)]
OnGpu = Annotated[float | None, Option(help="1: on the GPU.")]
Cpus = Annotated[float | None, Option(help="CPU cores.")]
MaxActors = Annotated[int | None, Option(help="Actors at most.", min=1)]
Address = Annotated[
    Text, Option(help="host:port of a Ray cluster's head; default RAY_ADDRESS or none.")
]
