"""A stage of training as a process of its own: `python -m tests.chaos.train_job FOLDER`.

FOLDER/settings.json is a TrainSettings. Prints the job's end as one line; exit code 0 once the
folder that scoring loads is there.
"""

import json
import sys
from pathlib import Path

from medv_ray.errors import MedvError
from medv_ray.on_ray.train import train
from medv_ray.training.job import TrainSettings


def main() -> int:
    settings = TrainSettings.model_validate_json((Path(sys.argv[1]) / "settings.json").read_text())
    try:
        done = train(settings)
    except MedvError as error:
        print(json.dumps({"error": str(error)}))
        return 1
    print(json.dumps(done._asdict()))
    return 0 if done.whole else 1


if __name__ == "__main__":
    sys.exit(main())
