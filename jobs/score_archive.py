r"""Score an archive: id, image, question -> id, question, answer, status, reason, confidence.

On this machine:

    python jobs/score_archive.py --archive /data/pathvqa/test --model /models/LLaDA-MedV \
        --out /data/run1

On a cluster, from the repository root:

    ray job submit --address http://HEAD:8265 --runtime-env cluster/runtime_env.yaml -- \
        python jobs/score_archive.py --archive s3://bucket/archive --model /shared/LLaDA-MedV \
        --out s3://bucket/run1 --num-gpus 1 --min-actors 1 --max-actors 16

Run the same line again after a crash: it goes on where it stopped. `--allow-added` scores what was
added to the archive since. `--plan` says what would be done. Columns of the output:
medv_ray/schema.py. Exit codes: 0 all rows accounted for, 1 something was not scored (or Ctrl-C:
running chunks are committed), 2 settings, 3 the run changed, 4 another job writes there, 5 disk
full, 130 a second Ctrl-C, 143 SIGTERM. The last line of stdout is one JSON object. The same as
`medv score`.
"""

import typer

from medv_ray.cli import score_command, told_cleanly

if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command(help=score_command.__doc__)(told_cleanly(score_command))
    app()
