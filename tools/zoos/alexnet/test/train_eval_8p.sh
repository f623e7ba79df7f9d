#!/bin/bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../../run.sh" alexnet train_eval_8p "$@"
