#!/usr/bin/env bash
# Trains on all hosts of a Cloud TPU pod slice; started again, it goes on from the last checkpoint.
#
#   scripts/tpu_pod.sh POD ZONE --config=configs/maskgit_tokenizer.py:scale=paper \
#       --workdir=/mnt/runs/tokenizer
#
# Copies this checkout to every host, installs it there with [tpu] and starts the same command on
# each; JAX finds the other hosts by itself. The workdir lies where all hosts see it (a Filestore or
# gcsfuse mount). Needs the gcloud client, logged in. GCLOUD is the client, "gcloud" by default.
set -euo pipefail

if (($# < 3)); then
    echo "usage: $0 POD ZONE FLAGS_OF_TRAIN..." >&2
    exit 2
fi
pod=$1 zone=$2
shift 2
cd "$(dirname "$0")/.."
gcloud=("${GCLOUD:-gcloud}" compute tpus tpu-vm)

archive=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$archive"' EXIT
git archive --format=tar.gz --output="$archive" HEAD # what is committed, and nothing else
"${gcloud[@]}" scp "$archive" "$pod:fsq_jax.tar.gz" --zone="$zone" --worker=all

on_each_host="set -e
mkdir -p fsq_jax && tar -xzf fsq_jax.tar.gz -C fsq_jax && cd fsq_jax
test -d .venv || python3 -m venv .venv
.venv/bin/pip install -q -r requirements-tpu.txt
exec .venv/bin/python -m fsq_jax.train $(printf '%q ' "$@")"
"${gcloud[@]}" ssh "$pod" --zone="$zone" --worker=all --command="$on_each_host"
