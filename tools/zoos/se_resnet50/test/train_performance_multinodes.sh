#!/bin/bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../../run.sh" se_resnet50 train_performance_multinodes "$@"
