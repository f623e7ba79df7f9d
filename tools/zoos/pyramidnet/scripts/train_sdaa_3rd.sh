#!/bin/bash
exec bash "$(dirname "${BASH_SOURCE[0]}")/../../run.sh" pyramidnet train_sdaa_3rd "$@"
