#!/bin/bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../../run.sh" resnet152 train_performance_1p "$@"
