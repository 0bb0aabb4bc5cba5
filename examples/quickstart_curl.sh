#!/bin/sh
# The digits of quickstart.py through curl. Run quickstart.py first, in a folder where `forebay up` runs, then this:
# `sh quickstart_curl.sh [HOST:PORT]`.
set -eu
jobs=http://${1:-127.0.0.1:8000}/api/v1/jobs

zero='0 0 5 13 9 1 0 0   0 0 13 15 10 15 5 0   0 3 15 2 0 11 8 0   0 4 12 0 0 8 8 0
      0 5 8 0 0 9 8 0    0 4 11 0 1 12 7 0     0 2 14 5 10 12 0 0  0 0 6 13 10 0 0 0'
one=' 0 0 0 12 13 5 0 0  0 0 0 11 16 9 0 0     0 0 3 15 16 6 0 0   0 7 15 16 16 2 0 0
      0 0 1 16 16 3 0 0  0 0 1 16 16 6 0 0     0 0 1 16 16 6 0 0   0 0 0 11 16 10 0 0'

# 64 grey values from 0 to 16 -> a JSON array of values from 0 to 1, on one line
image() { echo $1 | awk '{ for (i = 1; i <= NF; i++) printf "%s%s", (i > 1 ? ", " : "["), $i / 16; print "]" }'; }
# a JSON array of ten scores -> the digit with the highest
digit() { tr -d '[]' | tr ',' '\n' | awk 'NR == 1 || $1 > best { best = $1; at = NR - 1 } END { print at }'; }

# One job. It is durable when this returns; the header Location has its address.
location=$(curl -fsS -o /dev/null -w '%header{location}' \
    -d "{\"model\": \"digits@champion\", \"inputs\": $(image "$zero")}" "$jobs")
echo "the first image shows a $(curl -fsS "${jobs%/api/v1/jobs}$location/result?wait=60" | digit)"

# A job for each line. The key makes it safe to send the same again when an answer was lost.
ids=$({ image "$zero"; image "$one"; } | curl -fsS --data-binary @- -H "Idempotency-Key: digits-$$" \
    "$jobs:many?model=digits@champion" | tr -cs '0-9a-f' '\n' | awk 'length == 32')
for id in $ids; do
    echo "job $id: a $(curl -fsS "$jobs/$id/result?wait=60" | digit)"
done
