"""Predict the classes of images: `python tools/predict.py CHECKPOINT IMAGES... | FOLDER`."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.cli import run_command
from tools.prediction.predict import PredictSettings, predict

if __name__ == "__main__":
    sys.exit(run_command(predict, PredictSettings))
