#!/bin/bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../../run.sh" pnasnet5large train_eval_8p "$@"
